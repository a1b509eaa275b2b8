"""What the workers of ``ingest`` do after reading: sort and merge a bucket. Items are added up in ``items``.

    log files ──read_logs──▶ chunk files, one record batch per bucket ──▶ build_bucket ──▶ sorted table files
                                       └── names by item shard ──▶ build_items ◀── counts ──┘

Every task is a plain function of paths, writes its files whole under names of their own, and leaves a receipt in the
run's directory; done again it finds the receipt and hands on the same values. Memory of a task: ``chunk_rows`` rows
while reading, a small multiple of ``max_rows`` rows while sorting; a larger bucket is sorted in parts and merged.
"""

from __future__ import annotations

import contextlib
import posixpath
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import xxhash

from beam_jobs.ingest.spill import Spilled, groups_of, read_pieces
from beam_jobs.ingest.units import (
    KINDS,
    Bucket,
    IngestSettings,
    OldFile,
    Routed,
    by_item,
    finished,
    inputs_digest,
    write_unit,
)
from beam_jobs.run.record import DeadLetter
from vista.data import paths
from vista.data.tables import sorting
from vista.data.tables.items import ItemTally
from vista.data.tables.merge import joined, merged
from vista.data.tables.reading import DataFile
from vista.data.tables.rows import DTYPES, HISTORY, Kind, Rows, SortedWriter, batches_of
from vista.errors import DataError


def build_bucket(task: Bucket, settings: IngestSettings) -> dict[str, int]:
    """Sort the new rows of a bucket, drop those that are repeated or in the table, write one file per table."""
    bucket, name, values = task.number, task.name, task.values
    new = {tag: [v for v in values if isinstance(v, Spilled) and v.tag == tag] for tag in KINDS}
    old = {tag: [v.file for v in values if isinstance(v, OldFile) and v.tag == tag] for tag in KINDS}
    inputs = inputs_digest([asdict(v) for v in values], settings)
    if done := finished(settings, name, inputs):
        return {count: done["counts"].get(count, 0) for count in ("users", "events")}
    start = time.monotonic()
    events = _write_table(bucket, "events", new["events"], old["events"], settings)
    files, counts = list(events.files), {f"events_{k}": v for k, v in events.counts.items()}
    dead: list[DeadLetter] = []
    if new["impressions"]:
        history = [*events.files, *(f.path for f in old["events"])]

        def fill(rows: Rows) -> Rows:
            return _fill_times(rows, history, bucket, dead)

        shown = _write_table(bucket, "impressions", new["impressions"], old["impressions"], settings, fill)
        files += shown.files
        counts |= {f"impressions_{k}": v for k, v in shown.counts.items()}
        counts["impressions_dead"] = sum(d.rows for d in dead)
    settings.directory.write_dead_letters(name, dead)
    routed: list[Routed] = []
    if events.items is not None and len(events.items[0]):
        columns = dict(zip(("item", "surface", "events"), events.items, strict=True))
        routed = by_item("counts", columns, f"{name}.arrow", settings)
    told = {"users": events.counts["users"], "events": events.counts["written"]}
    write_unit(settings, name, inputs, routed, counts | told, start, files)
    return told


@dataclass(frozen=True)
class _Written:
    files: list[str]
    counts: dict[str, int]
    items: tuple[np.ndarray, np.ndarray, np.ndarray] | None


def _write_table(
    bucket: int,
    tag: str,
    pieces: Sequence[Spilled],
    old: Sequence[DataFile],
    settings: IngestSettings,
    fill: Callable[[Rows], Rows] | None = None,
) -> _Written:
    kind = KINDS[tag]
    file = f"{settings.commit:08d}-{settings.run}-{bucket:05d}.parquet"
    uri = posixpath.join(settings.roots[kind.name], "data", f"bucket={bucket:05d}", file)
    counts = dict.fromkeys(("written", "repeated", "in_table", "forgotten", "late", "users"), 0)
    tally = ItemTally()
    last_user = None
    writer: SortedWriter | None = None
    copies: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        for rows, repeated in _sorted_rows(bucket, pieces, kind, settings, fill, copies):
            counts["repeated"] += repeated
            rows, gone = settings.forgotten.leave_out(rows)
            counts["forgotten"] += gone
            known, late = _in_table(rows, old, kind, settings.max_rows)
            counts["late"] += late
            counts["in_table"] += int(known.sum())
            if known.any():
                rows = rows.take(~known)
            if not len(rows):
                continue
            if writer is None:
                writer = stack.enter_context(SortedWriter(uri, kind, settings.user_kind, bucket))
            writer.write(rows)
            counts["written"] += len(rows)
            counts["users"] += len(rows.users) - int(last_user is not None and rows.users[0] == last_user)
            last_user = rows.users[-1]
            if kind is HISTORY:
                tally.add(rows.columns["item"], rows.columns["surface"])
    if writer is None:
        return _Written([], counts | copies, None)
    return _Written([uri], counts | copies, tally.total() if kind is HISTORY else None)


def _sorted_rows(
    bucket: int,
    pieces: Sequence[Spilled],
    kind: Kind,
    settings: IngestSettings,
    fill: Callable[[Rows], Rows] | None,
    copies: Counter[str],
) -> Iterator[tuple[Rows, int]]:
    """The rows of all pieces in order without repeats, and how many repeats were dropped, block by block.

    Args:
        copies: takes, by ``copies-FILE``, how many were copies of another row of the same file.
    """
    groups = groups_of(pieces, settings.max_rows)
    keep = kind is HISTORY and settings.rules.reading.keep_repeats
    if keep and len(groups) > 1:
        raise DataError(
            f"--keep-repeats: expected a bucket's rows to fit into --memory-rows {settings.max_rows}, found "
            f"{sum(p.rows for p in pieces)} in bucket {bucket}; run vista ingest with more --memory-rows, or more "
            f"--buckets for new tables"
        )
    if len(groups) <= 1:
        for group in groups:
            yield _sort_group(group, kind, fill, copies, keep)
        return
    # Larger than the knob: sort parts of it, then merge them.
    parts = []
    for g, group in enumerate(groups):
        rows, repeated = _sort_group(group, kind, fill, copies, False)
        uri = str(settings.spill("sorted", kind.name, f"{bucket:05d}-{g:05d}.parquet"))
        with SortedWriter(uri, kind, settings.user_kind, bucket) as writer:
            writer.write(rows)
        parts.append(uri)
        yield Rows.empty(kind, rows.users), repeated
    window = max(2_048, settings.max_rows // len(parts))
    yield from merged([batches_of(uri, kind, window) for uri in parts], kind)
    paths.remove(parts)


def _sort_group(
    pieces: Sequence[Spilled],
    kind: Kind,
    fill: Callable[[Rows], Rows] | None,
    copies: Counter[str],
    keep_repeats: bool,
) -> tuple[Rows, int]:
    table = pa.Table.from_batches(list(read_pieces(pieces)))
    # Users by number: hashing is several times faster than sorting them.
    encoded = table["user"].combine_chunks().dictionary_encode()
    values = encoded.dictionary
    numbers = pa.types.is_integer(values.type)
    users = values.to_numpy() if numbers else np.array(values.to_pylist(), dtype=object)
    order = np.argsort(users)
    place = np.empty(len(users), np.int64)
    place[order] = np.arange(len(users))
    rank = place[encoded.indices.to_numpy()]
    columns = {n: table[n].to_numpy().astype(DTYPES[n], copy=False) for n in kind.order}
    if fill is not None and len(rank) and int(columns["time"].min()) < 0:
        by_user = np.argsort(rank, kind="stable")
        lengths = np.bincount(rank, minlength=len(users)).astype(np.int64)
        rows = fill(Rows(users[order], lengths, {n: c[by_user] for n, c in columns.items()}))
        return joined([rows], kind, presorted=False) if len(rows) else (Rows.empty(kind, users), 0)
    columns["file"] = table["file"].to_numpy()
    rank, columns, again = _in_order(rank, columns, kind)
    if again.any():
        copy = _copies(again, columns["file"])
        if keep_repeats and copy.any():
            columns["request"] = _numbered(columns, copy)
            rank, columns, again = _in_order(rank, columns, kind)
            copy = np.zeros(0, np.int64)
        for file, n in zip(*np.unique(columns["file"][copy > 0], return_counts=True), strict=True):
            copies[f"copies-{file}"] += int(n)
    del columns["file"]
    repeated = int(again.sum())
    if repeated:
        rank, columns = rank[~again], {n: c[~again] for n, c in columns.items()}
    return Rows(users[order], np.bincount(rank, minlength=len(users)).astype(np.int64), columns), repeated


def _in_order(
    rank: np.ndarray, columns: dict[str, np.ndarray], kind: Kind
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Rows sorted, and bool [N]: the row equals the one before it."""
    index = sorting.order(rank, columns, names=kind.order)
    if index is not None:
        rank, columns = rank[index], {n: c[index] for n, c in columns.items()}
    return rank, columns, sorting.repeats(rank, columns, kind.order)


def _copies(again: np.ndarray, file: np.ndarray) -> np.ndarray:
    """int64 [N]: how many rows of the same file equal a row and stand before it."""
    member = again.copy()
    member[:-1] |= again[1:]
    rows = np.flatnonzero(member)
    run = np.cumsum(~again)[rows]
    order = np.lexsort((file[rows], run))
    ordered_run, ordered_file = run[order], file[rows][order]
    first = np.ones(len(rows), bool)
    first[1:] = (ordered_run[1:] != ordered_run[:-1]) | (ordered_file[1:] != ordered_file[:-1])
    starts = np.flatnonzero(first)
    place = np.arange(len(rows)) - starts[np.cumsum(first) - 1]
    copy = np.zeros(len(again), np.int64)
    copy[rows[order]] = place
    return copy


def _numbered(columns: dict[str, np.ndarray], copy: np.ndarray) -> np.ndarray:
    """int64 [N]: a request of its own for the k-th of equal rows, the same in every file that has as many."""
    rows = np.flatnonzero(copy)
    keys = np.stack([columns[n][rows] for n in ("request", "time", "item")] + [copy[rows]], axis=1)
    request = columns["request"].copy()
    request[rows] = [xxhash.xxh64_intdigest(key.tobytes()) - (1 << 63) for key in keys]
    return request


def _in_table(rows: Rows, old: Sequence[DataFile], kind: Kind, max_rows: int) -> tuple[np.ndarray, int]:
    """(bool [N]: the row is in the old files; how many others are not later than their user's newest there).

    Of a file only users are looked up whose new rows do not all come after the newest row of the file; row groups
    without them are not read. In a log that arrives in time that is nobody.
    """
    known = np.zeros(len(rows), bool)
    if not len(rows):
        return known, 0
    time_, offsets = rows.columns["time"], rows.offsets
    first = time_[offsets[:-1]]
    newest = np.full(len(rows.users), np.iinfo(np.int64).min)
    for file in old:
        asked = rows.users if file.max_time is None else rows.users[first <= file.max_time]
        if not len(asked):
            continue
        for found in batches_of(file.path, kind, max_rows, asked):
            at = np.searchsorted(rows.users, found.users)
            ends = found.columns["time"][found.offsets[1:] - 1]
            newest[at] = np.maximum(newest[at], ends)
            late = found.columns["time"] >= np.repeat(first[at], found.lengths)
            if not late.any():
                continue
            found = found.take(late)
            at = np.searchsorted(rows.users, found.users)
            a, b = int(at[0]), int(at[-1]) + 1
            part = slice(int(offsets[a]), int(offsets[b]))
            known[part] |= sorting.present(
                np.repeat(np.arange(a, b), rows.lengths[a:b]),
                {n: c[part] for n, c in rows.columns.items()},
                np.repeat(at, found.lengths),
                found.columns,
                kind.order,
            )
    late_rows = (time_ <= np.repeat(newest, rows.lengths)) & ~known
    return known, int(late_rows.sum())


def _fill_times(rows: Rows, history: Sequence[str], bucket: int, dead: list[DeadLetter]) -> Rows:
    """Give impressions without a time that of their request's first event; those without one are set aside."""
    requests, code = np.unique(rows.columns["request"], return_inverse=True)
    own = np.repeat(np.arange(len(rows.users)), rows.lengths) * len(requests) + code
    keys = np.unique(own)
    earliest = np.full(len(keys), np.iinfo(np.int64).max)
    for uri in history:
        for found in batches_of(uri, HISTORY, 1 << 20, rows.users, ("time", "request")):
            user = np.repeat(np.searchsorted(rows.users, found.users), found.lengths)
            at = np.minimum(np.searchsorted(requests, found.columns["request"]), len(requests) - 1)
            key = user * len(requests) + at
            place = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
            hit = (requests[at] == found.columns["request"]) & (keys[place] == key)
            np.minimum.at(earliest, place[hit], found.columns["time"][hit])
    filled = earliest[np.searchsorted(keys, own)]
    time_ = np.where(rows.columns["time"] < 0, filled, rows.columns["time"])
    lost = time_ == np.iinfo(np.int64).max
    if lost.any():
        detail = "no timestamp_ms, and no event of the same request and user to take it from"
        dead += [
            DeadLetter("ingest", "no_time", f"request {r}, item {i}: {detail}", bucket, str(u))
            for u, r, i in zip(
                np.repeat(rows.users, rows.lengths)[lost].tolist(),
                rows.columns["request"][lost].tolist(),
                rows.columns["item"][lost].tolist(),
                strict=True,
            )
        ]
    columns = {**rows.columns, "time": time_}
    return Rows(rows.users, rows.lengths, columns).take(~lost)
