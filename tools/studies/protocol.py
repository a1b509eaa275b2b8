"""Data and questions: rank the touched item among 100 candidates, the others drawn evenly from its surface.

Judged are requests after the time split of users with at least ``min_history`` earlier events. A positive is
a *return* if its group was touched before but not within the last 64 events, and *far* if the last touch lies
more than 1,024 events back. The group of an item is the item itself, or a coarser one where items rarely
repeat (a niche of the generated catalogue).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from vista.data.events import Events
from vista.data.generator import ACTIONS, GeneratorOptions, content_vectors, generate
from vista.data.tables.warehouse import Warehouse
from vista.errors import DataError
from vista.stage1.clusters import company
from vista.training.examples import Batch, ExampleConfig, PopularItems, Visit, collate
from vista.training.loader import Arrays, Source, Tables, visit_stream
from vista.training.survey import Catalogue, survey

NEAR, FAR = 64, 1_024
CANDIDATES = 100


@dataclass(frozen=True)
class Data:
    """Histories in memory, and what the study needs to know of them.

    Attributes:
        events: U histories, in contract order.
        users: int64 [U], numbers.
        actions: names.
        catalogue: items and the time split.
        group_size: items ``i`` and ``j`` are of one group if ``i // group_size == j // group_size``.
        content: float32 [I, W] of ``catalogue.item``: what an item is about. Given by the generator; for
            logs, the company it keeps in the training period (random indexing). Every variant gets it, so
            that a short run need not learn the items before it can show what a summary keeps.
    """

    name: str
    users: np.ndarray
    events: Events
    actions: tuple[str, ...]
    catalogue: Catalogue
    content: np.ndarray
    group_size: int = 1

    def candidates(self) -> PopularItems:
        """Draws candidates evenly from a surface's items."""
        return PopularItems(*self.catalogue.rows, power=0.0)

    @property
    def source(self) -> Source:
        return Arrays(self.users, self.events, of=min(8, max(self.events.users, 1)))


def _finish(
    name: str,
    users: np.ndarray,
    events: Events,
    actions: tuple[str, ...],
    held_out: float,
    content: Callable[[Catalogue], np.ndarray],
    group_size: int = 1,
) -> Data:
    catalogue = survey(Arrays(users, events), held_out, sample_events=4_000_000, sample_user=1 << 20)
    return Data(name, users, events, actions, catalogue, content(catalogue), group_size)


def _company(catalogue: Catalogue) -> np.ndarray:
    """float32 [I, W]: what each item of the catalogue occurs near in the training period; 0 if never."""
    items, vector = company(catalogue.sample)
    found = np.zeros((len(catalogue.item), vector.shape[1]), np.float32)
    found[np.searchsorted(catalogue.item, items)] = vector.numpy()
    return found


def from_columns(
    name: str,
    user: np.ndarray,
    columns: dict[str, np.ndarray],
    actions: tuple[str, ...],
    held_out: float,
    content: Callable[[Catalogue], np.ndarray] | None = None,
    group_size: int = 1,
) -> Data:
    """From one row per event, any order; ``action`` is a bit mask. ``content``: see :class:`Data`."""
    order = np.argsort(user, kind="stable")
    users, lengths = np.unique(user, return_counts=True)
    events = Events.of(lengths, **{n: c[order] for n, c in columns.items()}).sorted()
    return _finish(name, users, events, actions, held_out, content or _company, group_size)


def load(path: str | Path, held_out: float = 0.1) -> Data:
    """Events of an ingested warehouse, or of Parquet files (columns user_id, item_id, action, surface,
    timestamp_ms, request_id; actions numbered).

    Raises:
        DataError: neither, or a column is missing.
    """
    path = Path(path)
    if (path / "catalog.db").exists():
        warehouse = Warehouse(path).open()
        source = Tables.of(warehouse)
        pieces = [p for bucket in source.buckets() for p in source.pieces(bucket)]
        owners = np.concatenate([np.asarray([str(u) for u in p.users], object) for p in pieces])
        events = Events.concat([p.events for p in pieces])
        # A user that spans pieces is one history again.
        names, first = np.unique(owners, return_inverse=True)
        order = np.argsort(np.repeat(first, events.lengths), kind="stable")
        lengths = np.bincount(first, weights=events.lengths, minlength=len(names)).astype(np.int64)
        events = Events.of(lengths, **{n: c[order] for n, c in events.columns.items()}).sorted()
        return _finish(path.name, np.arange(len(names)), events, warehouse.actions, held_out, _company)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    names = ["user_id", "item_id", "action", "surface", "timestamp_ms", "request_id"]
    try:
        table = pq.read_table(files, columns=names)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: expected a warehouse (`vista ingest`) or Parquet files with {names}, found {error}"
        ) from error
    column = {n: table[n].to_numpy() for n in names}
    kinds = int(column["action"].max()) + 1
    return from_columns(
        path.stem,
        column["user_id"],
        {
            "item": column["item_id"],
            "action": 1 << column["action"].astype(np.int64),
            "surface": column["surface"],
            "time": column["timestamp_ms"],
            "request": column["request_id"],
        },
        tuple(str(a) for a in range(kinds)),
        held_out,
    )


def generated(folder: Path, users: int, events: int, seed: int = 0, held_out: float = 0.1) -> Data:
    """Lives of 2,000 to 50,000 events with interests that sleep; an item seldom comes twice, its niche
    does."""
    options = GeneratorOptions(
        users=users,
        events=events,
        min_events=2_000,
        max_events=50_000,
        slate=0,
        content_width=32,
        session_events=4,
        sleep_share=0.4,
        order="user",
        seed=seed,
    )
    if not (folder / "options.json").exists():
        generate(options, folder)
    files = sorted(folder.glob("events-*.parquet"))
    table = pq.read_table(files)
    return from_columns(
        "generated",
        table["user_id"].to_numpy(),
        {
            "item": table["item_id"].to_numpy(),
            "action": 1 << table["action"].to_numpy().astype(np.int64),
            "surface": table["surface"].to_numpy(),
            "time": table["timestamp_ms"].to_numpy(),
            "request": table["request_id"].to_numpy(),
        },
        ACTIONS,
        held_out,
        lambda catalogue: content_vectors(options, catalogue.item),
        options.niche_items,
    )


def last_touch(events: Events, group_size: int) -> np.ndarray:
    """int64 [N]: row of the user's previous event of the same group, -1 where there is none."""
    n = len(events)
    user = np.repeat(np.arange(events.users), events.lengths)
    group = events.item // group_size
    order = np.lexsort((np.arange(n), group, user))
    before = np.full(n, -1, np.int64)
    same = (user[order][1:] == user[order][:-1]) & (group[order][1:] == group[order][:-1])
    before[order[1:][same]] = order[:-1][same]
    return before


@dataclass(frozen=True)
class Questions:
    """Held-out slates with one positive each.

    Attributes:
        batches: what stage 2 is asked.
        owner: int64 [P].
        distance: int64 [P], events since the last touch of the positive's group, before the request; -1 for
            never.
    """

    batches: list[Batch]
    owner: np.ndarray
    distance: np.ndarray

    def slices(self) -> dict[str, np.ndarray]:
        """Masks bool [P] by name."""
        return {
            "all": np.ones(len(self.distance), bool),
            "near": (self.distance >= 0) & (self.distance <= NEAR),
            "returns": self.distance > NEAR,
            "far": self.distance > FAR,
            "new": self.distance < 0,
        }


def examples(
    max_history: int, negatives: int, per_visit: int, min_history: int = 512, pause_minutes: float = 0.0
) -> ExampleConfig:
    """Summaries up to 63 events old; the last events raw, as they are.

    Args:
        pause_minutes: requests that begin after so long a pause only; 0 takes all requests.
    """
    return ExampleConfig(
        lag_jitter_events=63,
        negatives=negatives,
        max_positives=1,
        min_history=min_history,
        min_pause_ms=int(pause_minutes * 60_000),
        slates_per_visit=per_visit,
        recent_pool=0,
        max_history=max_history,
    )


def held_out(
    data: Data, config: ExampleConfig, recent: int, positives: int, seed: int = 0, per_batch: int = 64
) -> Questions:
    """At most ``positives`` questions, drawn over all users who can be asked."""
    config = replace(config, negatives=CANDIDATES - 1, slates_per_visit=8)
    stream = list(
        visit_stream(
            data.source,
            data.source.buckets(),
            config,
            recent,
            data.candidates(),
            (seed, 21),
            after_ms=data.catalogue.split_ms,
        )
    )
    order = np.random.default_rng([seed, 22]).permutation(len(stream))
    chosen: list[Visit] = []
    count = 0
    for i in order:
        if count >= positives:
            break
        chosen.append(stream[i])
        count += len(stream[i].slates)
    groups, held = [], 0
    batches: list[Batch] = []
    for visit in chosen:
        groups.append(visit)
        held += len(visit.slates)
        if held >= per_batch:
            batches.append(collate(groups, recent))
            groups, held = [], 0
    if groups:
        batches.append(collate(groups, recent))
    if not batches:
        raise DataError(
            f"quality: expected held-out requests of users with {config.min_history} earlier events, found "
            "none; "
            "ingest longer histories (`vista ingest`)"
        )
    owner = np.concatenate([b.owner[b.user_of] for b in batches])
    return Questions(batches, owner, np.concatenate([_distances(b, data) for b in batches]))


def _distances(batch: Batch, data: Data) -> np.ndarray:
    """Events since the last touch of each slate's positive, in the user's whole history."""
    place = {int(u) & (2**63 - 1): i for i, u in enumerate(data.users.tolist())}
    out = np.empty(len(batch), np.int64)
    for k in range(len(batch)):
        a, b = batch.offsets[k], batch.offsets[k + 1]
        positive = batch.item[a:b][batch.action[a:b] != 0][0]
        own = data.events.user(place[int(batch.owner[batch.user_of[k]])])
        seen = int(np.searchsorted(own.time, batch.now_ms[k], side="left"))
        touches = np.flatnonzero(own.item[:seen] // data.group_size == positive // data.group_size)
        out[k] = seen - touches[-1] if len(touches) else -1
    return out


def training_batches(
    data: Data, config: ExampleConfig, recent: int, steps: int, slates: int, seed: int
) -> list[Batch]:
    """The batches of one run, the same for every variant: random visits before the split."""
    rng = np.random.default_rng([seed, 31])
    out: list[Batch] = []
    epoch = 0
    while len(out) < steps:
        stream = list(
            visit_stream(
                data.source,
                data.source.buckets(),
                config,
                recent,
                data.candidates(),
                (seed, 32, epoch),
                before_ms=data.catalogue.split_ms,
            )
        )
        if not stream:
            raise DataError(
                "quality: expected requests before the time split, found none; ingest longer histories"
            )
        group: list[Visit] = []
        held = 0
        for i in rng.permutation(len(stream)):
            group.append(stream[i])
            held += len(stream[i].slates)
            if held >= slates:
                out.append(collate(group, recent))
                group, held = [], 0
                if len(out) == steps:
                    break
        epoch += 1
    return out
