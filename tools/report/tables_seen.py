"""The tables at a glance, and what of them a generation of the store has not seen.

Opening the tables costs more than all else that ``vista status`` looks at: half a second for their library alone. So
what was told is kept in ``HOME/.tables-seen.json``, with a mark: what the catalog says, name, size and time of every
file of the tables, and the seals of all generations. While these are the same, so is what there is to tell; else the
tables are opened. What could not be told is not kept.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import xxhash

from vista.small_text import replacing, small_json

if TYPE_CHECKING:
    from cache_store.format.manifest import Manifest
    from cache_store.store import Store
    from vista.data.tables.warehouse import Warehouse

KEPT = ".tables-seen.json"
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


class TablesSeen:
    """The tables beside a store.

    Args:
        where: their folder, or the properties of a catalog, of which nothing is kept.
        home: where it is kept what was told.
        keep: also keep what is told now.
    """

    def __init__(self, where: str | dict[str, str], store: Path, home: Path, keep: bool = False) -> None:
        self._where, self._store, self._path, self._keep = where, store, home / KEPT, keep
        self._mark = _mark(where, store)
        self._kept = None if self._mark is None else _kept(self._path, self._mark)

    @cached_property
    def tables(self) -> Warehouse | None:
        """None where there are none; a folder that is not there is not asked by their library."""
        if isinstance(self._where, str) and "://" not in self._where and not Path(self._where).exists():
            return None
        from vista.data.tables.warehouse import Warehouse

        tables = Warehouse(self._where)
        return tables.open() if tables.exists() else None

    @cached_property
    def overview(self) -> dict[str, Any] | None:
        """Facts of the tables by name."""
        if self._kept is not None:
            return self._kept["overview"]
        return None if self.tables is None else overview(self.tables, self._store)

    def lag(self, manifest: Manifest, store: Store) -> Lag | None:
        """As :func:`lag`; None where there are no tables."""
        if self._kept is not None:
            return Lag(**self._kept["lag"])
        if self.tables is None:
            return None
        found = lag(self.tables, manifest, store)
        keep = self._keep and self._mark is not None and found.events is not None and not found.why
        if keep and self._mark == _mark(self._where, self._store):
            text = json.dumps({"overview": self.overview, "lag": asdict(found)})
            # a home that may only be read, or is full, is looked at the slow way
            with suppress(OSError), replacing(self._path) as file:
                file.write(json.dumps({"mark": self._mark, "sum": _sum(text), "told": text}).encode())
        return found


def _sum(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())


def _kept(path: Path, mark: str) -> dict[str, Any] | None:
    try:
        found = small_json(path)
        same = found["mark"] == mark and found["sum"] == _sum(found["told"])
        return json.loads(found["told"]) if same else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _mark(where: str | dict[str, str], store: Path) -> str | None:
    """What decides what there is to tell; None where that cannot be said without opening the tables."""
    from cache_store import Store, __version__
    from cache_store.errors import StoreError
    from cache_store.format import lines
    from cache_store.format import manifest as manifests

    if not isinstance(where, str) or "://" in where:
        return None
    folder = Path(where).absolute()
    try:
        address = f"file:{quote(str(folder / 'catalog.db'))}?mode=ro"
        with closing(sqlite3.connect(address, uri=True)) as catalog:
            rows = catalog.execute("select * from iceberg_tables order by 1, 2, 3").fetchall()
        facts_of = [(str(f), f.stat()) for f in folder.glob("*/*/*/**/*")]
        files = [(name, fact.st_size, fact.st_mtime_ns) for name, fact in facts_of]
        layout = Store(store).layout
        seals = [(n, manifests.read_seal(layout.generation(n)).hex()) for n in layout.generation_names()]
        facts = (__version__, str(folder), rows, sorted(files), seals, lines.live(layout, "main").live)
    except (sqlite3.Error, OSError, StoreError):
        return None
    return _sum(repr(facts))


def overview(tables: Warehouse, store: Path) -> dict[str, Any]:
    """Facts of the tables by name."""
    from cache_store import Store
    from cache_store.format.layout import holds_store
    from vista.data.tables.compaction import horizon, most_files

    files = [f for bucket in tables.bucket_files().values() for f in bucket]
    kept = Store(store).generations() if holds_store(store) else []
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


def lag(tables: Warehouse, manifest: Manifest, store: Store) -> Lag:
    """How far a generation, which the store is opened at, is behind the tables."""
    from vista.data.tables.manifests import PREFIX, commit_of, summary_of
    from vista.errors import DataError, VistaError

    now = tables.snapshot()
    if manifest.table_snapshot is None:
        return Lag(None, why="the generation does not say from which snapshot it was made")
    if now is None or int(manifest.table_snapshot) == now:
        return Lag(0, new_users=0)
    try:
        later_files = tables.bucket_files(since=int(manifest.table_snapshot))
        seen, _ = commit_of(tables.history, int(manifest.table_snapshot))
    except DataError as error:
        return Lag(None, why=str(error))
    rows = sum(f.rows for found in later_files.values() for f in found)
    if not rows:
        return Lag(0, new_users=0)
    later = [s.timestamp_ms for s in tables.history.snapshots()
             if int(summary_of(s).get(PREFIX + "commit", 0)) > seen]  # fmt: skip
    counted, why = None, ""
    if rows <= COUNTED_ROWS:
        try:
            counted = sum(_new_users(found, store) for found in later_files.values())
        except (OSError, VistaError) as error:  # what is wrong is told, and the rest of the look goes on
            why = str(error)
    return Lag(rows, min(later, default=None), counted, why)


def _new_users(files: Iterable[Any], store: Store) -> int:
    """Users in files of one bucket who have no record."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from vista.data.tables.rows import open_sorted

    chunks = []
    for file in files:
        with open_sorted(file.path) as parquet:
            chunks += [pc.unique(batch.column(0)) for batch in parquet.iter_batches(columns=["user_id"])]
    users = pc.unique(pa.chunked_array(chunks)) if chunks else pa.array([])
    return sum(place is None for place in store.places(users.to_pylist()))
