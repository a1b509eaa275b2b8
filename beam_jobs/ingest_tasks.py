"""What the workers of ``ingest`` do: read and check, sort and merge a bucket, add up items.

    log files ──read_logs──▶ chunk files, one record batch per bucket ─┐
                                                     (bucket, Piece) ──┴─▶ build_bucket ──▶ sorted table files
                          (item shard, Piece: names) ──┐                        │
                                                       └──▶ build_items ◀───────┘ (item shard, Piece: counts)

Every task is a plain function of paths, writes its files whole under names of their own, and leaves a receipt in the
run's directory; done again it finds the receipt and hands on the same values. Memory of a task: ``chunk_rows`` rows
while reading, a small multiple of ``max_rows`` rows while sorting; a larger bucket is sorted in parts and merged.
"""

from __future__ import annotations

import json
import posixpath
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from beam_jobs.run_record import DEAD_LETTER_SCHEMA, DeadLetter, RunDirectory, peak_memory_bytes, unit_name
from beam_jobs.spill import Piece, groups_of, read_pieces, write_chunk
from cache_store.keys import bucket_of
from vista.data import paths, sorting
from vista.data.importer import Checked, Letter, Rules, check
from vista.data.items import ItemTable, added_up
from vista.data.merge import joined, merged
from vista.data.rows import DTYPES, HISTORY, IMPRESSIONS, Kind, Rows, SortedWriter, batches_of
from vista.data.schema import Source, UnreadableFile, open_source
from vista.data.tables import DataFile

KINDS = {"events": HISTORY, "impressions": IMPRESSIONS}


@dataclass(frozen=True)
class Settings:
    """What all tasks of a run share; plain values."""

    run_dir: str
    run: str
    commit: int
    user_kind: str
    num_buckets: int
    item_shards: int
    roots: dict[str, str]
    rules: Rules
    chunk_rows: int
    max_rows: int
    skip_bad_files: bool

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.run_dir)

    def spill(self, *names: str) -> Path:
        return Path(self.run_dir, "spill", *names)


@dataclass(frozen=True)
class ReadTask:
    """Some row groups of some files of one kind: (source, row groups, number of the first row) each."""

    number: int
    tag: str
    parts: tuple[tuple[Source, tuple[int, ...], int], ...]

    @property
    def name(self) -> str:
        return f"read-{self.tag}-{self.number:06d}"

    @property
    def rows(self) -> int:
        return sum(source.groups[g] for source, groups, _ in self.parts for g in groups)


@dataclass(frozen=True)
class OldFile:
    """A file that the table has already; its rows are looked up before new ones are written."""

    tag: str
    file: DataFile


Routed = tuple[str, int, Piece]
"""(``bucket`` or ``items``, number of the bucket or item shard, piece)."""


# Read ----------------------------------------------------------------------------------------------------


def read_logs(task: ReadTask, settings: Settings) -> list[Routed]:
    """Read, check and spill the rows of a task.

    Raises:
        UnreadableFile: pages of a file cannot be read and ``skip_bad_files`` is off.
    """
    inputs = _digest([asdict(task)], settings)
    done = _finished(settings, task.name, inputs)
    if done is not None:
        return done
    start = time.monotonic()
    chunks = _Chunks(task, settings)
    letters: list[pa.Table] = []
    rows = 0
    for source, groups, first_row in task.parts:
        # Where bad pages are skipped, row groups are read one by one: a bad one costs its own rows alone.
        for some in [(g,) for g in groups] if settings.skip_bad_files else [groups]:
            expected = sum(source.groups[g] for g in some)
            seen = 0
            try:
                with open_source(source.path) as file:
                    wanted = list(dict.fromkeys(source.names.values()))
                    for batch in file.iter_batches(
                        settings.chunk_rows, list(some), wanted, use_threads=False
                    ):
                        checked = check(batch, source, settings.rules, first_row + seen)
                        seen += batch.num_rows
                        chunks.add(checked)
                        letters.append(_letters(checked.letters, source.path))
            except (UnreadableFile, OSError, ValueError, pa.ArrowException) as error:
                why = str(error).split("\n", 1)[0]
                if not settings.skip_bad_files:
                    raise UnreadableFile(
                        f"{source.path}: expected {expected} readable rows from row {first_row}, found {seen}, then: "
                        f"{why}; replace the file, or run vista ingest --skip-bad-files"
                    ) from error
                lost = DeadLetter(
                    "ingest",
                    "unreadable_rows",
                    why,
                    source=source.path,
                    row=first_row + seen,
                    rows=expected - seen,
                )
                letters.append(pa.Table.from_pylist([asdict(lost)], schema=DEAD_LETTER_SCHEMA))
            rows += expected
            first_row += expected
    routed = chunks.finish()
    dead = pa.concat_tables(letters) if letters else DEAD_LETTER_SCHEMA.empty_table()
    settings.directory.write_dead_letters(task.name, dead)
    lost_rows = int(pa.compute.sum(dead["rows"]).as_py() or 0)
    counts = {"rows": rows, "dead": lost_rows, "kept": chunks.rows, "events": rows}
    _receipt(settings, task.name, inputs, routed, counts, start)
    return routed


def _letters(letters: Sequence[Letter], path: str) -> pa.Table:
    n = len(letters)
    columns = {
        "job": pa.array(["ingest"] * n, pa.string()),
        "bucket": pa.array(np.full(n, -1, np.int32)),
        "user": pa.array([x.user for x in letters], pa.string()),
        "reason": pa.array([x.reason for x in letters], pa.string()),
        "detail": pa.array([x.values for x in letters], pa.string()),
        "source": pa.array([path] * n, pa.string()),
        "row": pa.array([x.row for x in letters], pa.int64()),
        "rows": pa.array(np.ones(n, np.int64)),
    }
    return pa.table(columns, schema=DEAD_LETTER_SCHEMA)


class _Chunks:
    """Checked batches gathered to chunks of about ``chunk_rows`` rows, then written by bucket."""

    def __init__(self, task: ReadTask, settings: Settings):
        self._task, self._settings = task, settings
        self._held: list[Checked] = []
        self._held_rows = 0
        self._written = 0
        self._routed: list[Routed] = []
        self._names: list[tuple[np.ndarray, pa.Array]] = []
        self._name_rows = 0
        self.rows = 0

    def add(self, checked: Checked) -> None:
        if len(checked.names[0]):
            self._names.append(checked.names)
            self._name_rows += len(checked.names[0])
            if self._name_rows > 2 * self._settings.chunk_rows:
                self._names = [_distinct(self._names)]
                self._name_rows = len(self._names[0][0])
        if not len(checked):
            return
        self._held.append(checked)
        self._held_rows += len(checked)
        self.rows += len(checked)
        if self._held_rows >= self._settings.chunk_rows:
            self._write()

    def _write(self) -> None:
        s, task = self._settings, self._task
        user = pa.concat_arrays([c.user for c in self._held])
        columns = {n: np.concatenate([c.columns[n] for c in self._held]) for n in self._held[0].columns}
        if s.user_kind == "int64":
            part = bucket_of(user.to_numpy(), s.num_buckets)
        else:
            encoded = user.dictionary_encode()
            part = bucket_of(encoded.dictionary.to_pylist(), s.num_buckets)[encoded.indices.to_numpy()]
        path = s.spill(task.tag, f"{task.number:06d}-{self._written:04d}.arrow")
        pieces = write_chunk(path, task.tag, part, {"user": user, **columns})
        self._routed += [("bucket", bucket, piece) for bucket, piece in pieces.items()]
        self._held, self._held_rows = [], 0
        self._written += 1

    def finish(self) -> list[Routed]:
        if self._held:
            self._write()
        if self._names:
            self._routed += spill_names(*_distinct(self._names), f"{self._task.name}.arrow", self._settings)
        return self._routed


def _distinct(parts: Sequence[tuple[np.ndarray, pa.Array]]) -> tuple[np.ndarray, pa.Array]:
    """Names of items, each item once."""
    item, names = np.concatenate([p[0] for p in parts]), pa.concat_arrays([p[1] for p in parts])
    item, first = np.unique(item, return_index=True)
    return item, names.take(pa.array(first))


def spill_names(item: np.ndarray, names: pa.Array, file: str, settings: Settings) -> list[Routed]:
    """Names of items (int64 [M], string [M]) by item shard."""
    part = item_shard(item, settings.item_shards)
    pieces = write_chunk(settings.spill("names", file), "names", part, {"item": item, "name": names})
    return [("items", shard, piece) for shard, piece in pieces.items()]


def item_shard(item: np.ndarray, shards: int) -> np.ndarray:
    """int32 [N]: which task adds an item up; any even spread will do."""
    with np.errstate(over="ignore"):
        mixed = item.astype(np.int64).view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return ((mixed >> np.uint64(32)) % np.uint64(shards)).astype(np.int32)


# Bucket --------------------------------------------------------------------------------------------------


def build_bucket(bucket: int, values: Iterable[Piece | OldFile], settings: Settings) -> list[Routed]:
    """Sort the new rows of a bucket, drop those that are repeated or in the table, write one file per table."""
    values = list(values)
    new = {tag: [v for v in values if isinstance(v, Piece) and v.tag == tag] for tag in KINDS}
    old = {tag: [v.file for v in values if isinstance(v, OldFile) and v.tag == tag] for tag in KINDS}
    if not any(new.values()):
        return []
    name = unit_name(bucket)
    inputs = _digest([asdict(v) for v in values], settings)
    done = _finished(settings, name, inputs)
    if done is not None:
        return done
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
    total = events.items
    if total is not None and len(total[0]):
        item, surface, number = total
        columns = {"item": item, "surface": surface, "events": number}
        part = item_shard(item, settings.item_shards)
        pieces = write_chunk(settings.spill("counts", f"{name}.arrow"), "counts", part, columns)
        routed = [("items", shard, piece) for shard, piece in pieces.items()]
    counts |= {"users": events.counts["users"], "events": events.counts["written"]}
    _receipt(settings, name, inputs, routed, counts, start, files)
    return routed


@dataclass(frozen=True)
class _Written:
    files: list[str]
    counts: dict[str, int]
    items: tuple[np.ndarray, np.ndarray, np.ndarray] | None


def _write_table(
    bucket: int,
    tag: str,
    pieces: Sequence[Piece],
    old: Sequence[DataFile],
    settings: Settings,
    fill: Callable[[Rows], Rows] | None = None,
) -> _Written:
    kind = KINDS[tag]
    file = f"{settings.commit:08d}-{settings.run}-{bucket:05d}.parquet"
    uri = posixpath.join(settings.roots[kind.name], "data", f"bucket={bucket:05d}", file)
    counts = dict.fromkeys(("written", "repeated", "in_table", "late", "users"), 0)
    tally = _ItemTally()
    last_user = None
    writer = None
    try:
        for rows, repeated in _sorted_rows(bucket, pieces, kind, settings, fill):
            counts["repeated"] += repeated
            known, late = _in_table(rows, old, kind, settings.max_rows)
            counts["late"] += late
            counts["in_table"] += int(known.sum())
            if known.any():
                rows = rows.take(~known)
            if not len(rows):
                continue
            if writer is None:
                writer = SortedWriter(uri, kind, settings.user_kind, bucket)
            writer.write(rows)
            counts["written"] += len(rows)
            counts["users"] += len(rows.users) - int(last_user is not None and rows.users[0] == last_user)
            last_user = rows.users[-1]
            if kind is HISTORY:
                tally.add(rows.columns["item"], rows.columns["surface"])
    except BaseException as error:
        if writer is not None:
            writer.__exit__(type(error))
        raise
    if writer is None:
        return _Written([], counts, None)
    writer.close()
    return _Written([uri], counts, tally.total() if kind is HISTORY else None)


class _ItemTally:
    """Events per (item, surface), added up now and then so that memory follows the items, not the events."""

    LIMIT = 4_000_000

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._rows = 0

    def add(self, item: np.ndarray, surface: np.ndarray) -> None:
        self._parts.append(added_up(item, surface))
        self._rows += len(self._parts[-1][0])
        if self._rows > self.LIMIT:
            self._parts = [self.total()]
            self._rows = len(self._parts[0][0])

    def total(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(item, surface, events), each pair once."""
        if len(self._parts) == 1:
            return self._parts[0]
        kinds = (np.int64, np.int32, np.int64)
        columns = zip(*self._parts, strict=True) if self._parts else ((), (), ())
        return added_up(*(np.concatenate([np.zeros(0, k), *c]) for k, c in zip(kinds, columns, strict=True)))


def _sorted_rows(
    bucket: int, pieces: Sequence[Piece], kind: Kind, settings: Settings, fill: Callable[[Rows], Rows] | None
) -> Iterator[tuple[Rows, int]]:
    """The rows of all pieces in order without repeats, and how many repeats were dropped, block by block."""
    groups = groups_of(pieces, settings.max_rows)
    if len(groups) <= 1:
        for group in groups:
            yield _sort_group(group, kind, fill)
        return
    # Larger than the knob: sort parts of it, then merge them.
    parts = []
    for g, group in enumerate(groups):
        rows, repeated = _sort_group(group, kind, fill)
        uri = str(settings.spill("sorted", kind.name, f"{bucket:05d}-{g:05d}.parquet"))
        with SortedWriter(uri, kind, settings.user_kind, bucket) as writer:
            writer.write(rows)
        parts.append(uri)
        yield Rows.empty(kind, rows.users), repeated
    window = max(2_048, settings.max_rows // len(parts))
    yield from merged([batches_of(uri, kind, window) for uri in parts], kind)
    paths.remove(parts)


def _sort_group(pieces: Sequence[Piece], kind: Kind, fill: Callable[[Rows], Rows] | None) -> tuple[Rows, int]:
    table = pa.Table.from_batches(list(read_pieces(pieces)))
    # Users by number: hashing is several times faster than sorting them.
    encoded = table["user"].combine_chunks().dictionary_encode()
    values = encoded.dictionary
    users = (
        values.to_numpy() if pa.types.is_integer(values.type) else np.array(values.to_pylist(), dtype=object)
    )
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
    index = sorting.order(rank, columns, names=kind.order)
    if index is not None:
        rank, columns = rank[index], {n: c[index] for n, c in columns.items()}
    again = sorting.repeats(rank, columns, kind.order)
    repeated = int(again.sum())
    if repeated:
        rank, columns = rank[~again], {n: c[~again] for n, c in columns.items()}
    return Rows(users[order], np.bincount(rank, minlength=len(users)).astype(np.int64), columns), repeated


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


# Items ---------------------------------------------------------------------------------------------------


def build_items(shard: int, values: Iterable[Piece], settings: Settings) -> None:
    """Add up the items of a shard over all buckets and write their file."""
    name = f"items-{shard:05d}"
    pieces = list(values)
    inputs = _digest([asdict(p) for p in pieces], settings)
    if _finished(settings, name, inputs) is not None:
        return
    start = time.monotonic()
    counted = [b for b in read_pieces([p for p in pieces if p.tag == "counts"])]
    named = [b for b in read_pieces([p for p in pieces if p.tag == "names"])]
    parts = [[b.column(n).to_numpy() for b in counted] for n in ("item", "surface", "events")]
    kinds = (np.int64, np.int32, np.int64)
    item, surface, events = (np.concatenate([np.zeros(0, k), *p]) for p, k in zip(parts, kinds, strict=True))
    names = None
    if named:
        table = pa.Table.from_batches(named).group_by("item", use_threads=False).aggregate([("name", "min")])
        names = (table["item"].to_numpy(), np.array(table["name_min"].to_pylist(), dtype=object))
    total = ItemTable.of(item, surface, events, names)
    uri = posixpath.join(
        settings.roots["items"], "data", f"{settings.commit:08d}-{settings.run}-{shard:05d}.parquet"
    )
    total.write(uri)
    _receipt(
        settings,
        name,
        inputs,
        [],
        {"items": len(total), "item_events": int(total.events.sum())},
        start,
        [uri],
    )


# Receipts ------------------------------------------------------------------------------------------------


def _receipt(
    settings: Settings,
    name: str,
    inputs: str,
    routed: Sequence[Routed],
    counts: dict[str, int],
    start: float,
    files: Sequence[str] = (),
) -> None:
    """Declare a unit finished. Table files that are local are named with their digests."""
    run = settings.directory
    local = [paths.local_path(f) for f in files if paths.is_local(f)]
    receipt = {
        "files": run.describe_files(local),
        "inputs": inputs,
        "table_files": list(files),
        "routed": [[to, number, asdict(piece)] for to, number, piece in routed],
        "counts": counts,
        "timings": {"seconds": round(time.monotonic() - start, 3)},
        "peak_memory_bytes": peak_memory_bytes(),
    }
    run.write_receipt(name, receipt)


def _digest(values: Sequence[dict[str, Any]], settings: Settings) -> str:
    """What a unit's receipt stands for: the same inputs, read by the same rules, for the same commit."""
    facts = [settings.commit, asdict(settings.rules), sorted(json.dumps(v, sort_keys=True) for v in values)]
    return xxhash.xxh3_128_hexdigest(json.dumps(facts).encode())


def _finished(settings: Settings, name: str, inputs: str) -> list[Routed] | None:
    """What a unit handed on, where its receipt is for these inputs and its files are still there."""
    receipt = settings.directory.receipt(name)
    if receipt is None or receipt["inputs"] != inputs:
        return None
    routed = [(to, number, Piece(**piece)) for to, number, piece in receipt["routed"]]
    return routed if all(Path(p).exists() for p in {piece.path for _, _, piece in routed}) else None
