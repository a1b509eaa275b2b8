"""Made-up lives with a known reason for every event, at the length and shape real data at hand lacks.

    FOLDER/
      events-00000.parquet       user_id, item_id, action, surface, timestamp_ms, request_id; in order of time
      impressions-00000.parquet  request_id, user_id, item_id, position, actions, timestamp_ms   (slate > 0)
      later-00000.parquet        events of the last ``held_back_days``                           (if > 0)
      items.parquet              item_id, cluster, niche, vector (content_width > 0)
      options.json               last; until then UNFINISHED

The catalogue has clusters of niches of items; an item's content vector is near its cluster's and its niche's centre.
A life is a row of sessions, and a session has one interest:

- *core* interests: a user's phase (``phase_events``) has ``active`` of them; each phase dwells in another niche of
  the cluster, so the items are new while the cluster is not;
- *sleepers*: each takes one session, then sleeps until all others had theirs (about ``sleep_events`` events, at most
  a third of the life), and returns to the niche that it left. When it returns, nothing in between has spoken of it:
  what comes next can be told from the old occurrences alone;
- *noise*: any item, by popularity.

Everything is drawn from ``(seed, block)``, a block being some users, so the files do not depend on the number of
worker processes.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vista.config import _check, _check_least, to_text
from vista.data.arrow import lists
from vista.jagged import lengths_between, offsets_of, owners_of, places_of, starts_of
from vista.ops.hashing import finalised

DAY_MS = 86_400_000
BLOCK_EVENTS = 2_000_000
UNFINISHED = ".options.json.unfinished"
"""The options, while files are written: the same call goes on where one was killed."""
ACTIONS = ("click", "save", "share")
"""Names of actions 0, 1, 2 of the generated logs."""


@dataclass(frozen=True)
class GeneratorOptions:
    """What to generate.

    Attributes:
        users: U.
        events: in all (exact); 0 takes what the length distribution gives.
        min_events, max_events, tail: lengths are Pareto with this exponent between the bounds (scaled to ``events``);
            a larger ``tail`` is a lighter one.
        clusters, niches, niche_items: the catalogue has ``clusters * niches * niche_items`` items.
        core, active, phase_events: core interests of a user, how many a phase has, events per phase.
        sleep_share: share of sessions that are sleepers'.
        sleep_events: events between two sessions of a sleeper.
        session_events: mean events per session.
        request_events: mean engaged events per request.
        noise: share of events with any item.
        surfaces: surfaces; a cluster lives on one of them.
        slate: items shown per request; 0 writes no impressions.
        slates_per_user: the newest so many requests of each user have impressions; 0 for all.
        start_ms, days: the span of all lives.
        held_back_days: events later than this before the end are kept apart.
        content_width: floats per item vector; 0 writes none.
        user_ids: ``int64`` or ``string``.
        order: ``time`` (as a log arrives) or ``user``.
    """

    users: int = 1_000
    events: int = 0
    min_events: int = 20
    max_events: int = 50_000
    tail: float = 1.0
    clusters: int = 256
    niches: int = 16
    niche_items: int = 256
    core: int = 8
    active: int = 3
    phase_events: int = 300
    sleep_share: float = 0.3
    sleep_events: int = 3_000
    session_events: int = 12
    request_events: float = 2.0
    noise: float = 0.05
    surfaces: int = 3
    slate: int = 20
    slates_per_user: int = 16
    start_ms: int = 1_640_995_200_000
    days: float = 1_000.0
    held_back_days: float = 0.0
    content_width: int = 0
    user_ids: str = "int64"
    order: str = "time"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in "users min_events clusters niches niche_items core active phase_events".split():
            _check(1 <= getattr(self, name) < 1 << 40, name, "1 to 2**40", getattr(self, name))
        least, most, events = self.min_events, self.max_events, self.events
        _check(most >= least, "max_events", f"{least} or more", most)
        low, high = self.users * least, self.users * most
        _check(events == 0 or low <= events <= high, "events", f"0, or {low} to {high}", events)
        _check(self.tail > 0, "tail", "positive", self.tail)
        for name in ("sleep_share", "noise"):
            _check(0 <= getattr(self, name) <= 1, name, "0 to 1", getattr(self, name))
        _check_least(self, "", sleep_events=1, session_events=1, surfaces=1, request_events=1)
        _check_least(self, "", slate=0, slates_per_user=0, content_width=0, seed=0, held_back_days=0)
        _check(self.days > self.held_back_days, "days", "more than held_back_days", self.days)
        _check(self.user_ids in ("int64", "string"), "user_ids", "int64 or string", self.user_ids)
        _check(self.order in ("time", "user"), "order", "time or user", self.order)
        _check(self.items < 2**40, "clusters * niches * niche_items", "fewer than 2**40", self.items)

    @property
    def items(self) -> int:
        """Items in the catalogue."""
        return self.clusters * self.niches * self.niche_items


@dataclass(frozen=True)
class Generated:
    """What :func:`generate` wrote: files and counts."""

    events: list[str]
    impressions: list[str]
    later: list[str]
    items: str
    users: int
    event_rows: int
    later_rows: int
    impression_rows: int


@dataclass(frozen=True)
class Lives:
    """The events of a block of users, user after user, each in order of time.

    Attributes:
        user: int64 [N], number of the user (0 to users - 1).
        item, time, request: int64 [N].
        action: int8 [N].
        surface: int16 [N].
        kind: int8 [N]: 0 core, 1 sleeper, 2 noise.
    """

    user: np.ndarray
    item: np.ndarray
    action: np.ndarray
    surface: np.ndarray
    time: np.ndarray
    request: np.ndarray
    kind: np.ndarray


def mixed(*keys: np.ndarray | int) -> np.ndarray:
    """uint64 hash of integer keys, elementwise (the finaliser of SplitMix64, folded over the keys)."""
    with np.errstate(over="ignore"):
        value: np.ndarray | np.uint64 = np.uint64(0x9E3779B97F4A7C15)
        for key in keys:
            value = finalised(np.asarray(key).astype(np.uint64) + value * np.uint64(0xBF58476D1CE4E5B9))
    return np.asarray(value)


def user_lengths(options: GeneratorOptions) -> np.ndarray:
    """int64 [U]: events per user, bounded Pareto by inverse transform, scaled to ``options.events``."""
    o = options
    rng = np.random.default_rng([o.seed, 1])
    low, high = float(o.min_events), float(o.max_events) + 1.0
    ratio = (low / high) ** o.tail
    drawn = low * (1 - rng.random(o.users) * (1 - ratio)) ** (-1 / o.tail)
    if not o.events:
        return np.clip(drawn.astype(np.int64), o.min_events, o.max_events)
    # The factor that gives the total after clipping, by bisection; the rest is dealt out one by one.
    small, large = 1e-9, 1e9
    for _ in range(100):
        factor = (small * large) ** 0.5
        total = np.clip(drawn * factor, o.min_events, o.max_events).astype(np.int64).sum()
        small, large = (factor, large) if total <= o.events else (small, factor)
    lengths = np.clip(drawn * small, o.min_events, o.max_events).astype(np.int64)
    missing = o.events - int(lengths.sum())
    while missing:
        room = np.flatnonzero(lengths < o.max_events)[:missing]
        lengths[room] += 1
        missing -= len(room)
    return lengths


def blocks(lengths: np.ndarray) -> list[tuple[int, int]]:
    """User ranges of about ``BLOCK_EVENTS`` events each."""
    ends = np.cumsum(lengths)
    cuts = np.searchsorted(ends, np.arange(BLOCK_EVENTS, int(ends[-1]), BLOCK_EVENTS)) + 1
    edges = np.unique(np.concatenate([[0], cuts, [len(lengths)]]))
    return [(int(a), int(b)) for a, b in zip(edges, edges[1:], strict=False)]


def user_ids(options: GeneratorOptions, users: np.ndarray) -> np.ndarray:
    """int64: the id written for user number ``users``; scattered over all 64 bits, distinct."""
    # The finaliser is a bijection on 64 bits, so distinct numbers give distinct ids.
    return mixed(users.astype(np.uint64) ^ np.uint64(options.seed << 40)).view(np.int64)


def lives(options: GeneratorOptions, first: int, lengths: np.ndarray, block: int) -> Lives:
    """The events of users ``first``, ``first + 1``, ... with ``lengths`` int64 [U] events each."""
    o = options
    rng = np.random.default_rng([o.seed, 2, block])
    n = int(lengths.sum())
    starts = offsets_of(lengths)[:-1]
    local, place = owners_of(lengths), places_of(lengths)

    # Sessions and requests: flags where a new one starts, then running numbers.
    draw = rng.random(n, dtype=np.float32)
    new_session = draw < 1.0 / o.session_events
    new_session[starts] = True
    new_request = (draw < 1.0 / o.session_events + (1.0 / o.request_events)) | new_session
    session = np.cumsum(new_session) - 1
    first_event = np.flatnonzero(new_session)
    s_user = local[first_event]

    # The interest of each session.
    s = len(first_event)
    life = lengths[s_user]
    is_sleeper = rng.random(s, dtype=np.float32) < o.sleep_share
    sleep = np.clip(life // 3, 1, o.sleep_events)
    sleepers = np.maximum(1, np.round(sleep * o.sleep_share / o.session_events)).astype(np.int64)
    turn = np.cumsum(is_sleeper)
    first_session = np.searchsorted(first_event, starts)
    turn = turn - turn[first_session][s_user] + is_sleeper[first_session][s_user] - 1
    # Sleepers return in their order, a little shuffled: by up to a quarter of the round.
    wobble = (rng.random(s) * 0.5 - 0.25) * sleepers
    which = np.mod(turn + np.rint(wobble).astype(np.int64), sleepers)
    phase = place[first_event] // o.phase_events
    member = rng.integers(0, o.active, s)
    number = first + s_user
    core = (mixed(o.seed, 3, number, phase, member) % np.uint64(o.core)).astype(np.int64)
    interest = np.where(is_sleeper, o.core + which, core)
    cluster = (mixed(o.seed, 4, number, interest) % np.uint64(o.clusters)).astype(np.int64)
    dwelling = np.where(is_sleeper, 0, phase + 1)
    niche = (mixed(o.seed, 5, number, interest, dwelling) % np.uint64(o.niches)).astype(np.int64)

    # The item of each event: some items of a niche are commoner than others.
    u = rng.random(n, dtype=np.float32)
    within = np.minimum((u * np.sqrt(u) * o.niche_items).astype(np.int64), o.niche_items - 1)
    item = ((cluster * o.niches + niche) * o.niche_items)[session] + within
    noise = rng.random(n, dtype=np.float32) < o.noise
    item[noise] = popular_items(o, rng, int(noise.sum()))
    kind = is_sleeper.astype(np.int8)[session]
    kind[noise] = 2

    # What is done: a click, sometimes more where the interest is real.
    v = rng.random(n, dtype=np.float32)
    eager = np.where(noise, np.float32(0.02), np.float32(0.25))
    action = (v < eager).astype(np.int8) + (v < eager * np.float32(0.2)).astype(np.int8)
    surface = (item // (o.niches * o.niche_items) % o.surfaces).astype(np.int16)

    time = _times(o, rng, lengths, starts, local, new_session, new_request)
    request = (np.int64(block) << 40) + np.cumsum(new_request)
    return Lives(first + local, item, action, surface, time, request, kind)


def popular_items(options: GeneratorOptions, rng: np.random.Generator, n: int) -> np.ndarray:
    """int64 [n]: items of any cluster, the first of each niche commonest."""
    o = options
    u = rng.random(n)
    within = np.minimum((u * np.sqrt(u) * o.niche_items).astype(np.int64), o.niche_items - 1)
    return rng.integers(0, o.clusters * o.niches, n) * o.niche_items + within


def _times(
    o: GeneratorOptions,
    rng: np.random.Generator,
    lengths: np.ndarray,
    starts: np.ndarray,
    local: np.ndarray,
    new_session: np.ndarray,
    new_request: np.ndarray,
) -> np.ndarray:
    """int64 [N] ms: a life ends within the last 30 days; sessions are far apart, requests minutes, events seconds."""
    n = len(local)
    span = o.days * DAY_MS
    end = o.start_ms + span - rng.random(len(lengths)) * min(30.0, o.days / 10) * DAY_MS
    born = o.start_ms + (rng.random(len(lengths)) ** 2) * span * 0.8
    # Milliseconds since the event before, as waiting times of three sizes, scaled to the length of the life.
    weight = rng.standard_exponential(n, dtype=np.float32)
    gap = np.where(new_session, weight * np.float32(400.0), np.where(new_request, weight, np.float32(0.02)))
    run = np.cumsum(gap, dtype=np.float64)
    run -= (run[starts] - gap[starts])[local]
    last = run[starts + lengths - 1]
    scale = (end - born) / last
    return (born[local] + run * scale[local]).astype(np.int64)


def slates(options: GeneratorOptions, life: Lives, block: int) -> dict[str, np.ndarray]:
    """Impressions of the block: the engaged items of a request among others, in random order.

    Returns:
        request, user (number), item, time int64 [M]; position int32 [M]; action int8 [M], -1 where not engaged.
    """
    o = options
    rng = np.random.default_rng([o.seed, 6, block])
    starts = starts_of(life.request)
    sizes = lengths_between(starts, len(life.request))
    user = life.user[starts]
    if o.slates_per_user:
        # Requests ascend within a user: how many of the user's come after this one.
        last = np.searchsorted(user, user, side="right") - 1
        keep = last - np.arange(len(user)) < o.slates_per_user
        starts, sizes, user = starts[keep], sizes[keep], user[keep]
    engaged = np.minimum(sizes, o.slate)
    r = len(starts)
    item = popular_items(o, rng, r * o.slate).reshape(r, o.slate)
    action = np.full((r, o.slate), -1, np.int8)
    column = np.arange(o.slate)
    hit = column[None] < engaged[:, None]
    source = np.minimum(starts[:, None] + column[None], len(life.item) - 1)
    item[hit] = life.item[source][hit]
    action[hit] = life.action[source][hit]
    position = np.argsort(rng.random((r, o.slate), dtype=np.float32), axis=1).astype(np.int32)
    spread = {
        "request": np.repeat(life.request[starts], o.slate),
        "user": np.repeat(user, o.slate),
        "time": np.repeat(life.time[starts], o.slate),
    }
    return {**spread, "item": item.ravel(), "position": position.ravel(), "action": action.ravel()}


def _user_column(o: GeneratorOptions, number: np.ndarray) -> pa.Array:
    ids = user_ids(o, number)
    if o.user_ids == "int64":
        return pa.array(ids)
    distinct, codes = np.unique(number, return_inverse=True)
    names = pa.array([f"user-{x:016x}" for x in user_ids(o, distinct).view(np.uint64).tolist()])
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), names).cast(pa.string())


def _write(path: Path, table: pa.Table) -> None:
    plain = ["timestamp_ms", "item_id"]
    rest = [name for name in table.column_names if name not in plain and name != "actions"]
    pq.write_table(
        table, path, compression="zstd", compression_level=1, use_dictionary=rest, row_group_size=1 << 20
    )


def _write_block(job: tuple[GeneratorOptions, str, int, int, np.ndarray]) -> tuple[int, int, int]:
    """Files of one block; (event rows, later rows, impression rows)."""
    o, folder, block, first, lengths = job
    life = lives(o, first, lengths, block)
    cut = int(o.start_ms + (o.days - o.held_back_days) * DAY_MS)
    columns = {
        "user_id": life.user,
        "item_id": life.item,
        "action": life.action,
        "surface": life.surface,
        "timestamp_ms": life.time,
        "request_id": life.request,
    }
    if o.order == "time":
        order = np.argsort(life.time, kind="stable")
        columns = {name: c[order] for name, c in columns.items()}
    table = pa.table(columns | {"user_id": _user_column(o, columns["user_id"])})
    counts = [table.num_rows, 0, 0]
    if o.held_back_days:
        late = columns["timestamp_ms"] > cut
        counts[:2] = [int((~late).sum()), int(late.sum())]
        _write(Path(folder, f"later-{block:05d}.parquet"), table.filter(pa.array(late)))
        table = table.filter(pa.array(~late))
    _write(Path(folder, f"events-{block:05d}.parquet"), table)
    if o.slate:
        shown = slates(o, life, block)
        done = shown["action"] >= 0
        table = pa.table(
            {
                "request_id": shown["request"],
                "user_id": _user_column(o, shown["user"]),
                "item_id": shown["item"],
                "position": shown["position"],
                "actions": lists(done, shown["action"][done]),
                "timestamp_ms": shown["time"],
            }
        )
        counts[2] = table.num_rows
        _write(Path(folder, f"impressions-{block:05d}.parquet"), table)
    return counts[0], counts[1], counts[2]


def content_vectors(options: GeneratorOptions, items: np.ndarray) -> np.ndarray:
    """float32 [n, content_width], unit length: cluster centre, plus 0.6 niche centre, plus 0.4 of the item's own."""
    o = options
    rng = np.random.default_rng([o.seed, 7])
    cluster = rng.standard_normal((o.clusters, o.content_width), dtype=np.float32)
    niche = rng.standard_normal((o.clusters * o.niches, o.content_width), dtype=np.float32)
    # A cheap normal from hashes: a vector does not depend on which others are asked for.
    bits = mixed(o.seed, 8, np.asarray(items)[:, None], np.arange(o.content_width)[None])
    lanes = bits[..., None] >> np.array([0, 16, 32, 48], np.uint64) & np.uint64(0xFFFF)
    own = (lanes.astype(np.float32).sum(-1) / 65_535 - 2.0) * np.float32(3**0.5)
    place = np.asarray(items) // o.niche_items
    vector = cluster[place // o.niches] + 0.6 * niche[place] + 0.4 * own
    return vector / np.linalg.norm(vector, axis=1, keepdims=True)


def _item_tables(o: GeneratorOptions) -> Iterator[pa.Table]:
    step = 1 << 17
    for start in range(0, o.items, step):
        items = np.arange(start, min(start + step, o.items), dtype=np.int64)
        niche = items // o.niche_items
        columns = {
            "item_id": pa.array(items),
            "cluster": pa.array((niche // o.niches).astype(np.int32)),
            "niche": pa.array(niche.astype(np.int32)),
        }
        if o.content_width:
            flat = pa.array(content_vectors(o, items).ravel())
            columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, o.content_width)
        yield pa.table(columns)


def generate(options: GeneratorOptions, folder: str | Path, workers: int = 1) -> Generated:
    """Write the files of the docstring above; the same options give the same rows.

    Args:
        folder: made if missing; files of the same names are replaced.
        workers: processes; memory is about 0.5 GB each.
    """
    o, target = options, Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    (target / UNFINISHED).write_text(to_text(o))
    lengths = user_lengths(o)
    parts = blocks(lengths)
    jobs = [(o, str(target), i, a, lengths[a:b]) for i, (a, b) in enumerate(parts)]
    if workers > 1 and len(jobs) > 1:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            counts = list(pool.map(_write_block, jobs))
    else:
        counts = [_write_block(job) for job in jobs]
    tables = _item_tables(o)
    head = next(tables)
    with pq.ParquetWriter(target / "items.parquet", head.schema, compression="zstd") as writer:
        writer.write_table(head)
        for table in tables:
            writer.write_table(table)
    os.replace(target / UNFINISHED, target / "options.json")

    def named(prefix: str, there: bool) -> list[str]:
        return [str(target / f"{prefix}-{i:05d}.parquet") for i in range(len(parts))] if there else []

    total = np.array(counts, np.int64).sum(axis=0)
    return Generated(
        events=named("events", True),
        impressions=named("impressions", o.slate > 0),
        later=named("later", o.held_back_days > 0),
        items=str(target / "items.parquet"),
        users=o.users,
        event_rows=int(total[0]),
        later_rows=int(total[1]),
        impression_rows=int(total[2]),
    )
