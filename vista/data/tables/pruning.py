"""What the tables no longer need: old snapshots, and data files that no snapshot has.

A snapshot goes when no kept generation was made from it and it is old enough that no job reads it any more; then the
files that only such snapshots had. The number of its commit is remembered, so that a refresh can still ask what was
added since.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pyiceberg.table import Table

from vista.data import paths
from vista.data.tables.commits import alone, recover
from vista.data.tables.manifests import PREFIX, sound, summary_of
from vista.data.tables.warehouse import Warehouse

KEPT_SNAPSHOTS = 512
"""Expired snapshots of history whose commit number is remembered for ``bucket_files(since=...)``: 27 bytes each, in
every metadata file that is kept."""


@dataclass(frozen=True)
class Pruned:
    """What pruning took out of the tables.

    Attributes:
        snapshots: their ids.
        files, metadata: URIs of files of data, and of manifests and their lists.
    """

    snapshots: list[int]
    files: list[str]
    metadata: list[str]


def prune(warehouse: Warehouse, keep: Collection[int], before_ms: int, dry_run: bool = False) -> Pruned:
    """Expire snapshots that nobody needs and delete the files that only they, or no commit, had.

    Args:
        keep: history snapshots to keep: those that kept generations were made from. The current one stays anyway.
        before_ms: what is younger is left, for a job may be reading or writing it.
        dry_run: change nothing, only say what would go.
    """
    recover(warehouse)
    with alone(warehouse):
        warehouse.refresh()
        gone = Pruned([], [], [])
        for name in ("history", "impressions", "items", "content", "sources", "forgotten"):
            if not warehouse.has_table(name):
                continue
            table = warehouse.table(name)
            expired = old_snapshots(table, keep, before_ms)
            gone.snapshots.extend(expired)
            # PyIceberg names the files of the small tables, and nobody writes one without the lock.
            named, whole = name not in ("sources", "forgotten"), warehouse.commit_number
            how: Any = {"before_ms": before_ms, "dry_run": dry_run}
            gone.files.extend(sweep(table, whole, named=named, expire=expired, **how))
            gone.metadata.extend(sweep_metadata(table, without=expired, **how))
        warehouse.refresh()
    return gone


def old_snapshots(table: Table, keep: Collection[int], before_ms: int) -> list[int]:
    """Ids of snapshots made before ``before_ms``, without the current one and those in ``keep``."""
    current = table.current_snapshot()
    keep = {*keep, *(() if current is None else (current.snapshot_id,))}
    old = [s.snapshot_id for s in table.snapshots() if s.timestamp_ms < before_ms]
    return [snapshot_id for snapshot_id in old if snapshot_id not in keep]


def sweep(
    table: Table,
    whole: int | None,
    *,
    named: bool = True,
    expire: Collection[int] = (),
    before_ms: int | None = None,
    dry_run: bool = False,
) -> list[str]:
    """Delete data files that no snapshot needs: those of forgotten or merged rows, and of runs that never committed.

    Args:
        whole: number of the last whole commit; files of a later one may belong to a run under way and are left. None
            takes those too.
        named: files say their commit; others are not ours and are left.
        expire: snapshots to expire first; the commit number of each is remembered. The current one always stays.
        before_ms: leave files that were written later than this.
        dry_run: change nothing.

    Returns:
        URIs of the files deleted.
    """
    current = table.current_snapshot()
    if current is None:
        return []
    older = [s for s in table.snapshots() if s.snapshot_id in set(expire) - {current.snapshot_id}]
    if older and not dry_run:
        with sound(".".join(table.name())):
            _remember(table, older)
            table.maintenance.expire_snapshots().by_ids([s.snapshot_id for s in older]).commit()
            table.refresh()
    gone = {s.snapshot_id for s in older}
    with sound(".".join(table.name())):
        lists = [s.manifests(table.io) for s in table.snapshots() if s.snapshot_id not in gone]
        manifests = {m.manifest_path: m for listed in lists for m in listed}  # snapshots share most of them
        needed = {
            paths.as_uri(entry.data_file.file_path)
            for manifest in manifests.values()
            for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True)
        }

    def ours(name: str) -> bool:
        head = name.split("-", 1)[0]
        return not named or len(head) == 8 and head.isdigit() and (whole is None or int(head) <= whole)

    return _delete(posixpath.join(table.location(), "data"), ours, needed, before_ms, dry_run)


def _delete(
    folder: str, ours: Callable[[str], bool], needed: Collection[str], before_ms: int | None, dry_run: bool
) -> list[str]:
    """Delete the files below a folder that are ours by their name, not needed, and not newer; their URIs."""
    fs, root = paths.filesystem(folder)
    unneeded = []
    for found in fs.find(root) if fs.exists(root) else ():
        uri = paths.as_uri(fs.unstrip_protocol(found))
        if not ours(posixpath.basename(found)) or uri in needed:
            continue
        if before_ms is None or fs.modified(found).timestamp() * 1000 <= before_ms:
            unneeded.append(uri)
    if not dry_run:
        paths.remove(unneeded)
    return unneeded


def _remember(table: Table, expired: Sequence[Any]) -> None:
    """Keep the commit numbers of expired snapshots; of history alone, since nobody asks the other tables for them."""
    key = PREFIX + "expired"
    if table.name()[-1] != "history":
        if key in table.properties:  # as earlier versions left it
            with table.transaction() as tx:
                tx.remove_properties(key)
        return
    remembered = json.loads(table.properties.get(key, "{}"))
    numbers = {s.snapshot_id: summary_of(s).get(PREFIX + "commit") for s in expired}
    remembered |= {str(name): int(n) for name, n in numbers.items() if n is not None}
    with table.transaction() as tx:
        tx.set_properties({key: json.dumps(dict(list(remembered.items())[-KEPT_SNAPSHOTS:]))})


def sweep_metadata(
    table: Table, *, without: Collection[int] = (), before_ms: int | None = None, dry_run: bool = False
) -> list[str]:
    """Delete files of metadata that no snapshot needs: manifests and lists of expired ones, and what crashes left.

    Hold ``commits.alone``: what a writer under way has written looks the same.

    Args:
        without: snapshots that are about to be expired (``dry_run``); the others are as of :func:`sweep`.
    """
    metadata = table.metadata
    needed = {table.metadata_location, *(entry.metadata_file for entry in metadata.metadata_log)}
    needed |= {s.statistics_path for s in metadata.statistics}
    with sound(".".join(table.name())):
        for snapshot in table.snapshots():
            if snapshot.snapshot_id not in without:
                needed |= {snapshot.manifest_list, *(m.manifest_path for m in snapshot.manifests(table.io))}
    kept = {paths.as_uri(uri) for uri in needed if uri is not None}

    def ours(name: str) -> bool:
        return name.endswith((".avro", ".metadata.json"))

    return _delete(posixpath.join(table.location(), "metadata"), ours, kept, before_ms, dry_run)
