"""Many small sorted files of a bucket into few: same rows, same order, fewer files to open for every reader.

Which files, and why: docs/data.md.

    00000001-..., 00000002-..., ..., 00000009-...   ──▶   00000009-RUN-00003-from-00000001.parquet

A merged file is named by the last and the first commit whose rows it has. "What was added since commit n" is answered
from whole files, so only files up to a *horizon* may be merged: the oldest commit that a kept generation was made
from. A merge is published as one snapshot per table in which the new files stand for the old; the old files stay until
``vista prune``, as do old generations.
"""

from __future__ import annotations

import contextlib
import posixpath
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vista.data import paths
from vista.data.arrow import write_table
from vista.data.tables import content
from vista.data.tables.commits import alone, recover, replace_files
from vista.data.tables.items import ItemCounts
from vista.data.tables.manifests import MERGED, PREFIX, commit_of, files_of, sound
from vista.data.tables.merge import MIN_WINDOW, merged
from vista.data.tables.reading import DataFile
from vista.data.tables.rows import HISTORY, IMPRESSIONS, Kind, SortedWriter, batches_of
from vista.data.tables.warehouse import Warehouse
from vista.errors import DataError

MAX_FILES = 8
"""A bucket with more files than this, up to the horizon, is due."""

RATIO = 4
KINDS: dict[str, Kind] = {"history": HISTORY, "impressions": IMPRESSIONS}


@dataclass(frozen=True)
class Merge:
    """One bucket's work; plain values.

    Attributes:
        table: ``history`` or ``impressions``.
        target: URI of the file to write.
    """

    table: str
    bucket: int
    files: tuple[DataFile, ...]
    target: str
    user_kind: str

    @property
    def name(self) -> str:
        return f"{self.table}-{self.bucket:05d}"

    @property
    def rows(self) -> int:
        return sum(f.rows for f in self.files)


def mergeable(files: Sequence[DataFile], until: int, most: int, everything: bool) -> list[DataFile]:
    """The files of a bucket to merge into one, oldest first; none where it is not due.

    Args:
        until: files of later commits, and files of other engines, are left.
        most: how many files are too few to bother.
        everything: down to one file, whatever the sizes.
    """
    ours = sorted((f for f in files if 0 < f.commit <= until), key=lambda f: (f.commit, f.path))
    if len(ours) <= (1 if everything else most):
        return []
    taken, size = [ours[-1]], ours[-1].bytes
    for f in reversed(ours[:-1]):
        if not everything and f.bytes > RATIO * size:
            break
        taken.append(f)
        size += f.bytes
    return taken[::-1] if len(taken) > 1 else []


def horizon(warehouse: Warehouse, snapshots: Iterable[int | str | None]) -> int:
    """The last commit that all of these history snapshots have seen, by which files up to it may be merged.

    Args:
        snapshots: those that kept generations were made from. None, and what the tables no longer know, do not count:
            no refresh can go on from there.
    """
    last = warehouse.commit_number
    for snapshot in snapshots:
        if snapshot is not None:
            with contextlib.suppress(DataError):
                last = min(last, commit_of(warehouse.history, int(snapshot))[0])
    return last


def merges(
    warehouse: Warehouse, run: str, until: int | None = None, most: int = MAX_FILES, everything: bool = False
) -> list[Merge]:
    """What is due, in order of table and bucket.

    Args:
        run: in the names of the new files.
        until: number of a commit (:func:`horizon`); the last one by default.
    """
    until = warehouse.commit_number if until is None else until
    found = []
    for name, kind in KINDS.items():
        for bucket, files in warehouse.bucket_files(kind=kind).items():
            if chosen := mergeable(files, until, most, everything):
                part = f"{MERGED}{min(f.first_commit for f in chosen):08d}"
                target = warehouse.data_uri(kind, chosen[-1].commit, run, bucket, part)
                found.append(Merge(name, bucket, tuple(chosen), target, warehouse.user_kind))
    return found


def write_merged(merge: Merge, max_rows: int) -> int:
    """Write the target of a merge; the rows in it. Memory is that of a reader with the same knob.

    Raises:
        DataError: a file cannot be read, or does not have the rows that the table says.
    """
    kind = KINDS[merge.table]
    window = max(MIN_WINDOW, max_rows // len(merge.files))
    dropped = 0
    with SortedWriter(merge.target, kind, merge.user_kind, merge.bucket) as writer:
        for rows, repeated in merged([batches_of(f.path, kind, window) for f in merge.files], kind):
            dropped += repeated
            if len(rows):
                writer.write(rows)
        if writer.rows + dropped != merge.rows:
            raise DataError(
                f"bucket {merge.bucket} of {merge.table}: expected {merge.rows} rows in {len(merge.files)} files, "
                f"found {writer.rows + dropped}; restore the files, or rebuild the table with vista ingest"
            )
    return writer.rows


def publish_merges(warehouse: Warehouse, done: Sequence[Merge], run: str) -> list[Merge]:
    """Let merged files stand for the old ones, in one snapshot per table; those that could be.

    A merge whose files changed meanwhile (``vista forget``), or whose target is gone, is left out and its target
    deleted; one that was published before counts as done. So this can be called again after a crash.

    Raises:
        TableChanged: another writer without the lock committed in between.
    """
    recover(warehouse)
    published = []
    with alone(warehouse):
        warehouse.refresh()
        summary = {PREFIX + "commit": str(warehouse.commit_number), PREFIX + "run": run}
        for name in KINDS:
            table = warehouse.table(name)
            there = {f.path for f in files_of(table)}
            mine = [m for m in done if m.table == name]
            ready = [m for m in mine if {f.path for f in m.files} <= there and paths.exists(m.target)]
            replace_files(table, {f.path for m in ready for f in m.files}, [m.target for m in ready], summary)
            published += [m for m in mine if m in ready or m.target in there]
        paths.remove(m.target for m in done if m not in published)
        warehouse.refresh()
    return published


def merge_small(warehouse: Warehouse, run: str, most: int) -> dict[str, int]:
    """Write every table without buckets as one file where it has more than ``most``: each ingest, and each forgetting,
    adds some. Items are added up; of what they are about the newest word on each field stays.

    Returns:
        By table, how many files there were; 0 where they were left.
    """
    names = ("items", "sources", "forgotten", "content")
    return {name: _as_one(warehouse, name, run, most) for name in names}


def _as_one(warehouse: Warehouse, name: str, run: str, most: int) -> int:
    recover(warehouse)
    with alone(warehouse):
        if not warehouse.refresh().has_table(name):
            return 0
        table, whole = warehouse.table(name), warehouse.commit_number
        files = files_of(table)
        if len(files) <= most:
            return 0
        uris, part = [f.path for f in files], uuid.uuid4().hex[:8]
        with sound(f"{warehouse.name}, table {name}"):
            if name == "items":
                rows, part = ItemCounts.read(uris).to_arrow(), "00000"
            elif name == "content":
                rows = content.merged(content.rows_of(uris))
                part = f"00000{MERGED}{min(f.first_commit for f in files):08d}"
            else:
                rows = warehouse.read_rows(name)
            uri = posixpath.join(table.location(), "data", f"{whole:08d}-{run}-{part}.parquet")
            write_table(rows, uri)
        replace_files(table, set(uris), [uri], {PREFIX + "commit": str(whole), PREFIX + "run": run})
        warehouse.refresh()
    return len(files)


def most_files(warehouse: Warehouse, until: int | None = None) -> tuple[int, int]:
    """(files of the history bucket that has most of them, buckets that are due)."""
    until = warehouse.commit_number if until is None else until
    buckets = warehouse.bucket_files().values()
    due = [files for files in buckets if mergeable(files, until, MAX_FILES, False)]
    return max(map(len, buckets), default=0), len(due)
