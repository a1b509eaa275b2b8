"""Users out of the tables, to the last byte: files rewritten, snapshots expired, old files deleted.

Order of events, so that a crash at any point is repaired by the same call again:
rewritten files appear under new names → one snapshot per table swaps them in → older snapshots are expired → files
that no snapshot needs are deleted. A rewritten file keeps the commit number in its name, so readers that ask for
"what was added since" do not take it for new.

What stays: counts of events per item (sums over all users), and names of log files in the ledger. The logs
themselves are their owner's to delete.
"""

from __future__ import annotations

import posixpath
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyiceberg.table import Table

from vista.data.tables.commits import alone, recover, replace_files
from vista.data.tables.manifests import PREFIX, files_of
from vista.data.tables.pruning import sweep
from vista.data.tables.reading import DataFile, sorted_users
from vista.data.tables.rows import (
    HISTORY,
    IMPRESSIONS,
    Kind,
    SortedWriter,
    batches_of,
    member,
    open_sorted,
    wanted_groups,
)
from vista.data.tables.warehouse import Warehouse
from vista.errors import DataError

BATCH_ROWS = 262_144


@dataclass(frozen=True)
class RowsForgotten:
    """What :func:`forget_in` did to one table."""

    table: str
    rows: int
    files_rewritten: int
    files_deleted: int


def forget_users(
    warehouse: Warehouse,
    users: Sequence[Any] | np.ndarray,
    buckets: Sequence[int] | np.ndarray | None = None,
) -> dict[str, RowsForgotten]:
    """Take users out of history and impressions, rows and bytes.

    Args:
        users: ids of this warehouse's kind.
        buckets: their buckets, so that no other file is looked at.

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
        done = {}
        for kind in (HISTORY, IMPRESSIONS):
            table = warehouse.table(kind.name)
            done[kind.name] = forget_in(
                table, kind, warehouse.user_kind, users, buckets, warehouse.commit_number
            )
        warehouse.refresh()
    return done


def forget_in(
    table: Table,
    kind: Kind,
    user_kind: str,
    users: Sequence[Any] | np.ndarray,
    buckets: Iterable[int] | None,
    whole: int,
) -> RowsForgotten:
    """Take users out of one table; see the module.

    Args:
        users: ids.
        buckets: where their rows lie; None looks in all (row groups are skipped by their bounds).
        whole: number of the last whole commit.

    Raises:
        DataError: tags or branches keep old snapshots, or another writer committed in between.
    """
    wanted = sorted_users(users)
    assert wanted is not None
    held = [name for name in table.metadata.refs if name != "main"]
    if held:
        raise DataError(
            f"{'.'.join(table.name())}: expected no tags or branches, found {', '.join(sorted(held))}, which keep old "
            f"snapshots and with them the rows; remove them, then run vista forget again"
        )
    current = table.current_snapshot()
    if current is None:
        return RowsForgotten(kind.name, 0, 0, 0)
    within = None if buckets is None else {int(b) for b in buckets}
    replaced: dict[str, str | None] = {}
    gone = 0
    for file in files_of(table, current.snapshot_id):
        if within is not None and file.bucket not in within:
            continue
        rows = _rows_of(file, kind, wanted)
        if rows:
            replaced[file.path] = _rewrite(file, kind, user_kind, wanted, left=file.rows - rows)
            gone += rows
    added = [uri for uri in replaced.values() if uri is not None]
    replace_files(table, replaced, added, {PREFIX + "commit": str(whole), PREFIX + "run": "forget"})
    older = [
        s.snapshot_id for s in table.snapshots() if s.snapshot_id != table.current_snapshot().snapshot_id
    ]
    return RowsForgotten(kind.name, gone, len(replaced), len(sweep(table, whole, expire=older)))


def _rows_of(file: DataFile, kind: Kind, users: np.ndarray) -> int:
    with open_sorted(file.path) as parquet:
        if not wanted_groups(parquet, users):
            return 0
    return sum(len(rows) for rows in batches_of(file.path, kind, BATCH_ROWS, users, ("time",)))


def _rewrite(file: DataFile, kind: Kind, user_kind: str, users: np.ndarray, left: int) -> str | None:
    """The file without these users under a new name; None where nothing is left."""
    if not left:
        return None
    stem = posixpath.basename(file.path).removesuffix(".parquet").split("-without-")[0]
    uri = posixpath.join(posixpath.dirname(file.path), f"{stem}-without-{uuid.uuid4().hex[:12]}.parquet")
    with SortedWriter(uri, kind, user_kind, file.bucket) as writer:
        for rows in batches_of(file.path, kind, BATCH_ROWS):
            keep = ~np.repeat(member(rows.users, users), rows.lengths)
            if keep.any():
                writer.write(rows if keep.all() else rows.take(keep))
    return uri
