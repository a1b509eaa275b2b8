"""The tables at a glance, and what of them a generation of the store has not seen."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cache_store.format.manifest import Manifest
    from cache_store.store import Store
    from vista.data.tables.warehouse import Warehouse

COUNTED_ROWS = 5_000_000
"""New rows whose users are counted, at most; reading their ids takes about a second."""


@dataclass(frozen=True)
class Lag:
    """What the tables have and a generation has not.

    Attributes:
        events: rows that came after its snapshot; None where that cannot be told (``why``).
        since_ms: when the first of them was committed.
        new_users: users of these rows who have no record yet: their lookups are MISSING. None: not counted.
        why: what could not be read of the tables.
    """

    events: int | None
    since_ms: int | None = None
    new_users: int | None = None
    why: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def overview(tables: Warehouse, store: Path) -> dict[str, Any]:
    """Facts of the tables by name."""
    from cache_store import Store
    from vista.data.tables.compaction import horizon, most_files

    files = [f for bucket in tables.bucket_files().values() for f in bucket]
    kept = Store(store).generations() if (store / "FORMAT").exists() else []
    most, due = most_files(tables, horizon(tables, [m.table_snapshot for m in kept]))
    times = [f.max_time for f in files if f.max_time is not None]
    return {
        "path": tables.name,
        "snapshot": None if tables.snapshot() is None else str(tables.snapshot()),
        "buckets": tables.num_buckets,
        "users are": tables.user_kind,
        "events": sum(f.rows for f in files),
        "newest_event_ms": max(times, default=None),
        "files": len(files),
        "most files of a bucket": f"{most}; {due} buckets due for `vista compact tables`" if due else most,
        "buckets due": due,
        "bytes": sum(f.bytes for f in files),
        "items": tables.count_items(),
        "actions": ", ".join(tables.actions),
        "surfaces": ", ".join(tables.surfaces),
    }


def lag(tables: Warehouse, manifest: Manifest, store: Store | None = None) -> Lag:
    """How far a generation is behind the tables.

    Args:
        store: opened at that generation, to count users that it lacks; None leaves them uncounted.
    """
    from vista.data.tables.manifests import PREFIX, commit_of, summary_of
    from vista.errors import DataError, VistaError

    now = tables.snapshot()
    if manifest.table_snapshot is None:
        return Lag(None, why="the generation does not say from which snapshot it was made")
    if now is None or int(manifest.table_snapshot) == now:
        return Lag(0, new_users=0)
    try:
        files = [
            f for found in tables.bucket_files(since=int(manifest.table_snapshot)).values() for f in found
        ]
        seen, _ = commit_of(tables.history, int(manifest.table_snapshot))
    except DataError as error:
        return Lag(None, why=str(error))
    rows = sum(f.rows for f in files)
    if not rows:
        return Lag(0, new_users=0)
    later = [s.timestamp_ms for s in tables.history.snapshots()
             if int(summary_of(s).get(PREFIX + "commit", 0)) > seen]  # fmt: skip
    counted, why = None, ""
    if store is not None and rows <= COUNTED_ROWS:
        try:
            counted = _new_users(files, store)
        except (OSError, VistaError) as error:  # what is wrong is told, and the rest of the look goes on
            why = str(error)
    return Lag(rows, min(later, default=None), counted, why)


def _new_users(files: list[Any], store: Store) -> int:
    import pyarrow as pa
    import pyarrow.compute as pc

    from vista.data.tables.rows import open_sorted

    missing = 0
    by_bucket: dict[int, list[Any]] = {}
    for file in files:
        by_bucket.setdefault(file.bucket, []).append(file)
    for found in by_bucket.values():
        chunks = []
        for file in found:
            with open_sorted(file.path) as parquet:
                chunks += [pc.unique(batch.column(0)) for batch in parquet.iter_batches(columns=["user_id"])]
        users = pc.unique(pa.chunked_array(chunks)) if chunks else pa.array([])
        missing += sum(place is None for place in store.places(users.to_pylist()))
    return missing
