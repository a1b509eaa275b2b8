"""Users out of the tables, to the last byte: files rewritten, snapshots expired, old files deleted.

Order of events, so that a crash at any point is repaired by the same call again: the users are remembered as forgotten
(``forgotten``), which keeps them out of every later commit → rewritten files appear under new names → one snapshot per
table swaps them in → older snapshots are expired → files that no snapshot needs are deleted, those of metadata too, for
they hold bounds of items and times. A rewritten file keeps the commit number in its name, so readers that ask for
"what was added since" do not take it for new.

What stays: counts of events per item (sums over all users), and names of log files in the ledger. The logs
themselves are their owner's to delete.
"""

from __future__ import annotations

import posixpath
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vista.data.tables.commits import alone, recover, replace_files
from vista.data.tables.manifests import PREFIX, files_of
from vista.data.tables.pruning import sweep, sweep_metadata
from vista.data.tables.reading import DataFile, sorted_users
from vista.data.tables.remembering import NAME as FORGOTTEN_TABLE
from vista.data.tables.remembering import remember
from vista.data.tables.rows import HISTORY, IMPRESSIONS, Kind, SortedWriter, batches_of, member
from vista.data.tables.warehouse import Warehouse
from vista.errors import DataError

BATCH_ROWS = 262_144
Users = Sequence[Any] | np.ndarray
Spread = Callable[[str, Sequence[Any], Callable[[Any], Any]], Sequence[Any]]
"""Does a function with each of some plain values, here or on other machines, and hands the answers (JSON) back in
order; the first argument names the step."""


def in_turn(step: str, tasks: Sequence[Any], do: Callable[[Any], Any]) -> list[Any]:
    return [do(task) for task in tasks]


@dataclass(frozen=True)
class RowsForgotten:
    """What :func:`forget_users` did to one table."""

    table: str
    rows: int
    files_rewritten: int
    files_deleted: int


def forget_users(
    warehouse: Warehouse,
    users: Users,
    buckets: Sequence[int] | np.ndarray | None = None,
    *,
    now_ms: int | None = None,
    spread: Spread = in_turn,
) -> dict[str, RowsForgotten]:
    """Take users out of history and impressions, rows and bytes, and remember that they are not to come back.

    Args:
        users: ids of this warehouse's kind.
        buckets: their buckets, so that no other file is looked at.
        now_ms: the moment of forgetting; now by default, and never before the newest of the rows that go.
        spread: does the work on the files.

    Returns:
        What was done, by table.

    Raises:
        DataError: ids of the other kind, tags that keep old snapshots, or a writer in between.
    """
    strings = [isinstance(u, str) for u in users]
    if any(s != (warehouse.user_kind == "string") for s in strings):
        raise DataError(
            f"{warehouse.name}: expected {warehouse.user_kind} user ids, found others; see vista forget --help"
        )
    recover(warehouse)
    with alone(warehouse):
        warehouse.refresh()
        todo = {kind: files_with(warehouse, kind, users, buckets, spread) for kind in (HISTORY, IMPRESSIONS)}
        newest = max((found.newest for some in todo.values() for found in some), default=0)
        now_ms = int(time.time() * 1000) if now_ms is None else now_ms
        # First of all: from now on no commit brings their rows, whatever becomes of this process.
        remember(warehouse, users, max(now_ms, newest))
        done = {kind.name: _forget_in(warehouse, kind, users, found, spread) for kind, found in todo.items()}
        if warehouse.path is not None:
            sweep(warehouse.items, None)
        for name in ("items", "sources", FORGOTTEN_TABLE):
            if warehouse.has_table(name):
                sweep_metadata(warehouse.table(name))
        warehouse.refresh()
    return done


@dataclass(frozen=True)
class _Holding:
    """A file with rows of the users: how many, and the time of the newest."""

    file: DataFile
    rows: int
    newest: int


def files_with(
    warehouse: Warehouse, kind: Kind, users: Users, buckets: Iterable[int] | None, spread: Spread = in_turn
) -> list[_Holding]:
    """Files of a table that have rows of these users.

    Raises:
        DataError: tags or branches keep old snapshots.
    """
    table = warehouse.table(kind.name)
    held = [name for name in table.metadata.refs if name != "main"]
    if held:
        raise DataError(
            f"{'.'.join(table.name())}: expected no tags or branches, found {', '.join(sorted(held))}, which keep old "
            f"snapshots and with them the rows; remove them, then run vista forget again"
        )
    within = None if buckets is None else {int(b) for b in buckets}
    files = [file for file in files_of(table) if within is None or file.bucket in within]
    looked = spread(f"look-{kind.name}", files, partial(_rows_of, kind=kind, users=sorted_users(users)))
    return [_Holding(file, *found) for file, found in zip(files, looked, strict=True) if found[0]]


def _forget_in(
    warehouse: Warehouse, kind: Kind, users: Users, found: Sequence[_Holding], spread: Spread
) -> RowsForgotten:
    table, whole = warehouse.table(kind.name), warehouse.commit_number
    current = table.current_snapshot()
    if current is None:
        return RowsForgotten(kind.name, 0, 0, 0)
    replaced = {f.file.path: _without(f.file.path) for f in found}
    left = {f.file.path: replaced[f.file.path] for f in found if f.rows < f.file.rows}
    do = partial(_rewrite, names=left, kind=kind, user_kind=warehouse.user_kind, users=sorted_users(users))
    spread(f"rewrite-{kind.name}", [f.file for f in found if f.file.path in left], do)
    summary = {PREFIX + "commit": str(whole), PREFIX + "run": "forget"}
    replace_files(table, replaced, list(left.values()), summary)
    newest = table.current_snapshot().snapshot_id
    older = [s.snapshot_id for s in table.snapshots() if s.snapshot_id != newest]
    # Under the lock of a folder, what a run under way has written is for a commit that is refused from now on.
    gone = sweep(table, None if warehouse.path is not None else whole, expire=older)
    sweep_metadata(table)
    return RowsForgotten(kind.name, sum(f.rows for f in found), len(replaced), len(gone))


def _without(path: str) -> str:
    """A name for the file without somebody."""
    stem = posixpath.basename(path).removesuffix(".parquet").split("-without-")[0]
    return posixpath.join(posixpath.dirname(path), f"{stem}-without-{uuid.uuid4().hex[:12]}.parquet")


def _rows_of(file: DataFile, kind: Kind, users: np.ndarray) -> tuple[int, int]:
    times = [rows.columns["time"] for rows in batches_of(file.path, kind, BATCH_ROWS, users, ("time",))]
    return sum(map(len, times)), max((int(t.max()) for t in times if len(t)), default=0)


def _rewrite(file: DataFile, names: Mapping[str, str], kind: Kind, user_kind: str, users: np.ndarray) -> None:
    """Write the file without these users under its new name."""
    with SortedWriter(names[file.path], kind, user_kind, file.bucket) as writer:
        for rows in batches_of(file.path, kind, BATCH_ROWS):
            keep = ~np.repeat(member(rows.users, users), rows.lengths)
            if keep.any():
                writer.write(rows if keep.all() else rows.take(keep))
