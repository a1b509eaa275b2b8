"""Data and questions: rank the touched item among 100 candidates, the others drawn evenly from its surface.

Judged are requests after the time split of users with at least ``min_history`` earlier events, of as many users as
there are. What is fitted to histories (co-occurrence vectors, the clusters made of them) is fitted to the older half
of the training period, and training asks about requests after it, as judging asks about requests after all of it:
fitted to what training asks, an untrained cosine scores .81 on training slates and .63 on held-out ones, and a model
learns to trust it. A positive is a *return* if its group was touched before but not within the last 64 events, and
*far* if the last touch lies more than 1,024 events back. The group of an item is the item itself, or a coarser one
where items rarely repeat (a niche of the generated catalogue).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vista.data.events import Events
from vista.data.generator import ACTIONS, GeneratorOptions, content_vectors, generate
from vista.data.tables.warehouse import Warehouse
from vista.errors import DataError
from vista.stage1.clusters import company
from vista.training.batches import Batch, Visit, collate
from vista.training.examples import ExampleConfig, PopularItems
from vista.training.loader import Arrays, PieceSource, WarehouseSource, visit_stream
from vista.training.survey import Catalogue, before, survey

NEAR, FAR = 64, 1_024
CANDIDATES = 100
PER_VISIT = 3
"""Questions that share a window."""
FIT_SHARE = 0.5
"""Of the training period: what vectors and clusters are fitted to."""


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
        asks_after_ms: training asks about requests at or after it; None where nothing was fitted to histories.
    """

    name: str
    users: np.ndarray
    events: Events
    actions: tuple[str, ...]
    catalogue: Catalogue
    content: np.ndarray
    group_size: int = 1
    asks_after_ms: int | None = None

    def candidates(self) -> PopularItems:
        """Draws candidates evenly from a surface's items."""
        return PopularItems(*self.catalogue.rows, power=0.0)

    @property
    def source(self) -> PieceSource:
        return Arrays(self.users, self.events, of=min(8, max(self.events.users, 1)))


def _finish(
    name: str,
    users: np.ndarray,
    events: Events,
    actions: tuple[str, ...],
    held_out: float,
    content: Callable[[Catalogue], np.ndarray] | None = None,
    group_size: int = 1,
) -> Data:
    source = Arrays(users, events)
    catalogue = survey(source, held_out, sample_events=4_000_000, sample_user=1 << 20, fit_share=FIT_SHARE)
    found = (content or _company)(catalogue)
    after = None if content else catalogue.fit_ms
    return Data(name, users, events, actions, catalogue, found, group_size, after)


def _company(catalogue: Catalogue) -> np.ndarray:
    """float32 [I, W]: what each item of the catalogue occurs near before ``fit_ms``; 0 if never."""
    assert catalogue.fit_ms is not None
    items, vector = company(before(catalogue.sample, catalogue.fit_ms))
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
    return _finish(name, users, events, actions, held_out, content, group_size)


def load(path: str | Path, held_out: float = 0.1, users: int = 0, events: int = 0) -> Data:
    """Events of an ingested warehouse, or of Parquet files (columns user_id, item_id, action, surface,
    timestamp_ms, request_id; actions numbered).

    Args:
        users, events: of a warehouse, about the most that are read: whole buckets in random order until one is
            reached; 0 reads all.

    Raises:
        DataError: neither, or a column is missing.
    """
    path = Path(path)
    if (path / "catalog.db").exists():
        warehouse = Warehouse(path).open()
        source = WarehouseSource.of(warehouse)
        pieces, held, seen = [], 0, 0
        for bucket in np.random.default_rng(0).permutation(source.buckets()).tolist():
            if (users and seen >= users) or (events and held >= events):
                break  # users are in buckets by hash, so some buckets are a sample of users
            for piece in source.pieces(bucket):
                pieces.append(piece)
                held, seen = held + len(piece.events), seen + piece.events.users
        owners = np.concatenate([np.asarray([str(u) for u in p.users], object) for p in pieces])
        joined = Events.concat([p.events for p in pieces])
        # A user that spans pieces is one history again.
        names, first = np.unique(owners, return_inverse=True)
        order = np.argsort(np.repeat(first, joined.lengths), kind="stable")
        lengths = np.bincount(first, weights=joined.lengths, minlength=len(names)).astype(np.int64)
        joined = Events.of(lengths, **{n: c[order] for n, c in joined.columns.items()}).sorted()
        return _finish(path.name, np.arange(len(names)), joined, warehouse.actions, held_out)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    wanted = ["user_id", "item_id", "action", "surface", "timestamp_ms", "request_id"]
    try:
        table = pq.read_table(files, columns=wanted)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: expected a warehouse (`vista ingest`) or Parquet files with {wanted}, found {error}"
        ) from error
    column = {n: table[n].to_numpy() for n in wanted}
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


SETS: dict[str, dict[str, Any]] = {
    "generated": dict(min_events=2_000, max_events=50_000, session_events=4, sleep_share=0.4),
    "fresh": dict(
        min_events=3_000, max_events=40_000, tail=1.4, clusters=128, niches=32, niche_items=512, session_events=16,
        request_events=4.0, noise=0.15, sleep_share=0.25, sleep_events=6_000, phase_events=800, surfaces=1, seed=7,
    ),
    "long": dict(min_events=100_000, max_events=130_000, session_events=4, sleep_share=0.4, seed=11),
}  # fmt: skip
"""Made lives. ``generated``: interests that sleep; an item seldom comes twice, its niche does. ``fresh``, unlike it and
never tuned for: longer lives, 2,000,000 items that hardly ever come twice, long sessions, more noise. ``long``: as
``generated``, a hundred thousand events each, for a few users and a window as long."""


def generated(folder: Path, users: int, events: int, which: str = "generated", held_out: float = 0.1) -> Data:
    """Lives of one of ``SETS``; made in ``folder`` where they are not yet."""
    options = GeneratorOptions(
        users=users, events=events, slate=0, content_width=32, order="user", **SETS[which]
    )
    if not (folder / "options.json").exists():
        generate(options, folder)
    files = sorted(folder.glob("events-*.parquet"))
    table = pq.read_table(files)
    return from_columns(
        which,
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


def bytes_per_event(events: Events, users: int = 64, seed: int = 0) -> float:
    """What a raw event (item, second, action) takes under zstd, a user's history as one block; the mean over users."""
    long = np.flatnonzero(events.lengths >= 512)
    some = np.random.default_rng(seed).permutation(long if len(long) else np.arange(events.users))[:users]
    size = count = 0
    for u in some.tolist():
        own = events.user(u).rows(max(0, int(events.lengths[u]) - 8_192), int(events.lengths[u]))
        # columns one after the other, times as differences: what any columnar store would do
        seconds = np.diff(own.time // 1000, prepend=own.time[0] // 1000)
        known, code = np.unique(own.item, return_inverse=True)
        columns = (
            np.diff(known, prepend=0),
            code.astype(np.uint16),
            seconds.astype(np.int32),
            own.action.astype(np.uint8),
        )
        size += len(pa.compress(b"".join(c.tobytes() for c in columns), codec="zstd", asbytes=True))
        count += len(own)
    return size / max(count, 1)


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
    """At most ``positives`` questions, of as many users as there are: one visit of each, then a second one, ..."""
    config = replace(config, negatives=CANDIDATES - 1, slates_per_visit=PER_VISIT)
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
    turn: dict[int, int] = {}
    rounds = np.empty(len(stream), np.int64)
    for i in order.tolist():
        rounds[i] = turn[stream[i].owner] = turn.get(stream[i].owner, -1) + 1
    chosen: list[Visit] = []
    count = 0
    for i in order[np.argsort(rounds[order], kind="stable")]:
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
                after_ms=data.asks_after_ms,
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
