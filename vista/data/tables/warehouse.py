"""History, impressions and items as Iceberg tables; what readers and writers of them need.

    WAREHOUSE/
      catalog.db                      PyIceberg SQL catalog (any other catalog by its properties)
      vista/history/data/bucket=00003/00000001-RUN-00003.parquet
      vista/impressions/...           vista/items/...           vista/sources/...

History and impressions are partitioned by the column ``bucket`` (identity), one or more sorted files per bucket and
commit (``rows``). A file's name begins with the number of the commit that added its rows; ``forget`` keeps
that number when it rewrites a file, so "what was added since" survives it.

A commit touches several tables and is whole once history has it (``commits``). A folder that was copied or moved is
refused (``folder``). Bounds of ``user_id`` are kept out of the metadata, so that no user id outlives the data files.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import posixpath
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import NamespaceAlreadyExistsError, NoSuchTableError, TableAlreadyExistsError
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.table import Table
from sqlalchemy.exc import OperationalError

from vista.data import paths
from vista.data.tables import content, items
from vista.data.tables.content import ItemContent
from vista.data.tables.folder import check_at_home, check_not_lost, folder_properties, placed
from vista.data.tables.items import ItemCounts, count_items
from vista.data.tables.manifests import PREFIX, UNDONE, TableDamaged, commit_of, files_of, sound, summary_of
from vista.data.tables.reading import DataFile
from vista.data.tables.rows import HISTORY, IMPRESSIONS, Kind
from vista.data.tables.schemas import MAX_ACTIONS, SOURCES, TABLE_PROPERTIES, check_vocabulary, layout_of
from vista.errors import DataError

NAMESPACE = "vista"


class TableExists(DataError):
    """``create`` was asked for tables that are there already."""


class TableMissing(DataError):
    """The warehouse has no tables yet."""


class CatalogAway(DataError):
    """The catalog that was named cannot be reached, or its driver is not installed."""

    exit_code = 4


def _are_names(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(name, str) for name in found)


def _are_numbers(found: Any) -> bool:
    return isinstance(found, dict) and all(
        type(n) in (int, float) and math.isfinite(n) for n in found.values()
    )


def _are_pairs(found: Any) -> bool:
    return isinstance(found, dict) and all(
        isinstance(pair, list) and [type(n) for n in pair] == [int, int] for pair in found.values()
    )


class Warehouse:
    """The tables under one folder or in one catalog.

    Args:
        where: a folder (local, or any URI that PyIceberg can write), or properties of a PyIceberg catalog
            (``{"type": "rest", "uri": ...}``), with ``name`` and ``namespace`` where they are not ``vista``.
    """

    def __init__(self, where: str | Path | Mapping[str, str], namespace: str = NAMESPACE):
        if isinstance(where, Mapping):
            properties = dict(where)
            self.namespace = properties.pop("namespace", namespace)
            self.path: str | None = None
        else:
            self.namespace, self.path = namespace, str(where)
            if not paths.is_local(self.path):
                raise DataError(
                    f"{where}: an SQLite catalog needs a local folder; give catalog properties instead "
                    f"(uri of a shared catalog and warehouse={where}), see vista ingest --help"
                )
            root = os.path.abspath(paths.local_path(self.path))
            if "://" not in self.path:
                self.path = root  # a process that goes elsewhere stays with its tables
            properties = {"type": "sql", **folder_properties(root)}
        self._properties = properties
        self._catalog: Catalog | None = None
        self._tables: dict[str, Table] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        where = self.path if self.path is not None else {**self._properties, "namespace": self.namespace}
        return (type(self), (where, self.namespace))

    # Opening ------------------------------------------------------------------------------------------------

    @property
    def catalog(self) -> Catalog:
        if self._catalog is None:
            if self.path is not None:
                Path(paths.local_path(self.path)).mkdir(parents=True, exist_ok=True)
                check_at_home(paths.local_path(self.path))
            try:
                self._catalog = self._connect()
                # its connections lie in a cycle, and would stay open
                weakref.finalize(self, self._catalog.close)
            except Exception as error:  # drivers and clients of catalogs raise what they like
                raise CatalogAway(
                    f"{self.name}: expected a catalog that answers, found {type(error).__name__}: "
                    f"{paths.without_login(str(error))}; mend what --warehouse names and look with vista status"
                ) from error
        return self._catalog

    def _connect(self) -> Catalog:
        properties = dict(self._properties)
        name = properties.pop("name", NAMESPACE)
        try:
            return load_catalog(name, **properties)
        except OperationalError:  # two processes made the tables of one SQLite catalog at the same moment
            return load_catalog(name, **properties)

    def create(
        self,
        *,
        user_kind: str = "int64",
        num_buckets: int,
        actions: Sequence[str] = (),
        surfaces: Sequence[str] = (),
        properties: Mapping[str, str] | None = None,
    ) -> Warehouse:
        """Make the empty tables.

        Args:
            user_kind: ``int64`` or ``string``; fixed for good, as is ``num_buckets``.
            actions, surfaces: first entries of the vocabularies; later runs may append.
            properties: further properties of the history table.

        Raises:
            DataError: a value out of range. TableExists: the tables are there.
        """
        if user_kind not in ("int64", "string"):
            raise DataError(
                f"user_kind: expected int64 or string, found {user_kind!r}; see vista ingest --help"
            )
        if not 1 <= num_buckets <= 1_000_000:
            raise DataError(
                f"num_buckets: expected 1 to 1000000, found {num_buckets}; see vista ingest --help"
            )
        check_vocabulary(actions, surfaces)
        if self.exists():
            raise TableExists(f"{self.name}: tables exist already; add to them with vista ingest")
        with contextlib.suppress(NamespaceAlreadyExistsError):
            self.catalog.create_namespace(self.namespace)
        facts = {
            "user-kind": user_kind,
            "buckets": str(num_buckets),
            "bucket-function": "xxh64(key,0) mod n",
            "actions": json.dumps(list(actions)),
            "surfaces": json.dumps(list(surfaces)),
            "commit": "0",
            **(properties or {}),
        }
        # History last: it is what says that the warehouse exists.
        self.create_others(user_kind)
        told = {**TABLE_PROPERTIES, **{PREFIX + k: v for k, v in facts.items()}}
        history = layout_of(HISTORY, user_kind)
        try:
            self.catalog.create_table((self.namespace, "history"), **history, properties=told)
        except TableAlreadyExistsError as error:
            raise TableExists(
                f"{self.name}: tables were made meanwhile; add to them with vista ingest"
            ) from error
        return self

    def create_others(self, user_kind: str) -> None:
        """Make the tables beside history that are not there."""
        self._make("sources", schema=SOURCES)
        self._make("items", schema=items.ARROW_SCHEMA)
        self._make("impressions", **layout_of(IMPRESSIONS, user_kind))

    def create_content(self) -> None:
        """Make the table of what items are about, where it is not there: the tables of earlier versions have none."""
        self._make("content", schema=content.ARROW_SCHEMA)

    def _make(self, name: str, **layout: Any) -> None:
        self.catalog.create_table_if_not_exists((self.namespace, name), properties=TABLE_PROPERTIES, **layout)

    def exists(self) -> bool:
        folder = None if self.path is None else Path(paths.local_path(self.path))
        if (folder is None or (folder / "catalog.db").exists()) and self.has_table("history"):
            return True
        return folder is not None and check_not_lost(folder, self.namespace)

    def open(self) -> Warehouse:
        """Check that the tables are there.

        Raises:
            TableMissing: they are not. DataError: they lack what ``create`` or ``adopt`` records.
        """
        if not self.exists():
            raise TableMissing(
                f"{self.name}: expected a history table, found none; make it with vista ingest"
            )
        self.refresh()
        for key in ("user-kind", "buckets", "actions", "surfaces"):
            if PREFIX + key not in self.history.properties:
                raise DataError(
                    f"{self.name}: table history lacks the property {PREFIX}{key}; it was not made by vista ingest. "
                    f"Take it over once with `vista ingest --adopt`, or make another with vista ingest"
                )
        return self

    @property
    def name(self) -> str:
        where = self._properties.get("uri", self._properties.get("type", "catalog"))
        return self.path or f"{paths.without_login(where)}/{self.namespace}"

    def refresh(self) -> Warehouse:
        """See what others committed."""
        self._tables.clear()
        return self

    def table(self, name: str) -> Table:
        """One of ``history``, ``impressions``, ``items``, ``sources``; where they were made ``content``, ``forgotten``.

        Raises:
            TableMissing: it is not there. TableDamaged: its metadata is no table's, or names places that depend on the
                folder a process works in.
        """
        if name not in self._tables:
            catalog = self.catalog
            try:
                with sound(f"{self.name}, table {name}"):
                    self._tables[name] = placed(catalog.load_table((self.namespace, name)))
            except NoSuchTableError as error:
                raise TableMissing(
                    f"{self.name}: expected a table {name}, found none; make it with vista ingest"
                ) from error
        return self._tables[name]

    def has_table(self, name: str) -> bool:
        if name in self._tables:
            return True
        catalog = self.catalog
        with sound(f"{self.name}, table {name}"):
            return bool(catalog.table_exists((self.namespace, name)))

    @property
    def history(self) -> Table:
        return self.table("history")

    @property
    def impressions(self) -> Table:
        return self.table("impressions")

    @property
    def items(self) -> Table:
        return self.table("items")

    @property
    def sources(self) -> Table:
        return self.table("sources")

    # Facts --------------------------------------------------------------------------------------------------

    def fact(self, key: str, default: str = "") -> str:
        """Property ``vista.KEY`` of the history table."""
        return str(self.history.properties.get(PREFIX + key, default))

    def _told(self, key: str, default: str, what: str, right: Callable[[Any], bool]) -> Any:
        """A fact that is JSON.

        Raises:
            TableDamaged: it is not what it should be.
        """
        text = self.fact(key, default)
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(text)
            if right(found):
                return found
        raise TableDamaged(
            f"{self.name}, table history, property {PREFIX}{key}: expected {what}, found {text[:80]!r}; restore the "
            f"folder from a copy, or ingest the logs into another (vista ingest --home)"
        )

    @property
    def user_kind(self) -> str:
        if (found := self.fact("user-kind")) in ("int64", "string"):
            return found
        return str(self._told("user-kind", "", "int64 or string", lambda _: False))

    @property
    def num_buckets(self) -> int:
        return int(self._told("buckets", "", "1 to 1000000", lambda n: type(n) is int and 0 < n <= 1_000_000))

    @property
    def actions(self) -> tuple[str, ...]:
        """Names of the bits of ``action``."""
        names = tuple(self._told("actions", "[]", f"at most {MAX_ACTIONS} names", _are_names))
        check_vocabulary(names, ())
        return names

    @property
    def surfaces(self) -> tuple[str, ...]:
        """Names of surface ids; empty where the logs number their surfaces."""
        return tuple(self._told("surfaces", "[]", "names", _are_names))

    @property
    def weights(self) -> dict[str, float]:
        """What actions are worth in a score, as far as ingests were told."""
        return dict(self._told("weights", "{}", "a number for each action", _are_numbers))

    @property
    def undone(self) -> dict[str, tuple[int, int]]:
        """Run that was taken back to its first commit and to the commit that took it back."""
        found = self._told(UNDONE, "{}", "two commits for each run", _are_pairs)
        return {run: (first, number) for run, (first, number) in found.items()}

    @property
    def commit_number(self) -> int:
        """How many commits the tables have seen."""
        return int(
            self._told("commit", "0", "a number of commits", lambda n: type(n) is int and 0 <= n < 1 << 53)
        )

    def basis(self) -> str:
        """What a run builds on: identity of the history table, its commits, and who was forgotten; empty where there
        are no tables. A commit that was built for another is refused (``commits``)."""
        if not self.exists():
            return ""
        forgotten = self.table("forgotten").current_snapshot() if self.has_table("forgotten") else None
        snapshot = 0 if forgotten is None else forgotten.snapshot_id
        return f"{self.history.metadata.table_uuid}:{self.commit_number}:{snapshot}"

    def snapshot(self) -> int | None:
        """Current snapshot id of the history table, None while it is empty."""
        current = self.history.current_snapshot()
        return None if current is None else current.snapshot_id

    def data_uri(self, kind: Kind, commit: int, run: str, bucket: int, part: str = "") -> str:
        """Where a commit's file of a bucket lies."""
        name = f"{commit:08d}-{run}-{bucket:05d}{part}.parquet"
        return posixpath.join(self.table(kind.name).location(), "data", f"bucket={bucket:05d}", name)

    def item_uri(self, commit: int, run: str, shard: int) -> str:
        """Where a commit's file of an item shard lies."""
        return posixpath.join(self.items.location(), "data", f"{commit:08d}-{run}-{shard:05d}.parquet")

    def has_commit(self, run: str) -> bool:
        """Whether the commit of a run is whole: history says so last. Call ``commits.recover`` first: then the ledger
        holds whole commits alone, and remembers them when their snapshots are gone."""
        return (
            self.fact("run") == run
            or any(summary_of(s).get(PREFIX + "run") == run for s in self.history.snapshots())
            or run in self.read_sources()["run"].to_pylist()
        )

    # Reading ------------------------------------------------------------------------------------------------

    def bucket_files(
        self, snapshot: int | None = None, since: int | None = None, kind: Kind = HISTORY
    ) -> dict[int, list[DataFile]]:
        """Sorted files by bucket, in order of path; buckets without files are left out.

        Args:
            snapshot: history snapshot to read; the current one by default. For impressions: as they were then.
            since: leave out files whose rows were there at this earlier history snapshot.

        Raises:
            DataError: a snapshot that is not known (any more), delete files, or no partition by ``bucket``.
        """
        table = self.table(kind.name)
        if table.current_snapshot() is None:
            return {}
        files = files_of(table, snapshot if kind is HISTORY else None)
        if snapshot is not None and kind is not HISTORY:
            until, _ = commit_of(self.history, snapshot)
            self._apart(files, until)
            files = [f for f in files if f.commit <= until]
        if since is not None:
            before, still_there = commit_of(self.history, since)
            self._taken_back(before)
            known = {f.path for f in files_of(table, since)} if still_there and kind is HISTORY else set()
            # A file rewritten by forget has a new path, and the commit number of the rows it had before.
            files = [f for f in files if f.path not in known and not 0 < f.commit <= before]
            self._apart(files, before)
        files.sort(key=lambda f: (f.bucket, f.path))
        return {bucket: list(some) for bucket, some in itertools.groupby(files, key=lambda f: f.bucket)}

    def _taken_back(self, commit: int) -> None:
        """Raises DataError where rows that were there at a commit have been taken back since."""
        for run, (first, number) in self.undone.items():
            if first <= commit < number:
                raise DataError(
                    f"{self.name}: expected rows of commit {commit} in the tables, found those of {run} taken back by "
                    f"vista ingest --undo; run vista summarize"
                )

    def _apart(self, files: Sequence[DataFile], commit: int) -> None:
        """Raises DataError where a merged file has rows of before and after a commit."""
        both = [f.path for f in files if 0 < f.first_commit <= commit < f.commit]
        if both:
            raise DataError(
                f"{self.name}: expected files from before or from after commit {commit}, found {len(both)} that vista "
                f"compact merged over it, such as {both[0]}; run vista summarize, or vista refresh without --since"
            )

    def read_items(self) -> ItemCounts:
        """All items with their names, commonest surface and number of events."""
        with sound(f"{self.name}, table items"):
            return ItemCounts.read([f.path for f in files_of(self.items)])

    def count_items(self) -> int:
        """How many items :meth:`read_items` has."""
        with sound(f"{self.name}, table items"):
            return count_items([f.path for f in files_of(self.items)])

    def read_content(self) -> ItemContent:
        """What items are about, as the newest ingest of each field told it; nothing where no item file said any."""
        files = files_of(self.table("content")) if self.has_table("content") else []
        with sound(f"{self.name}, table content"):
            return ItemContent.read([f.path for f in files])

    def read_sources(self) -> pa.Table:
        """The ledger of input files: path, bytes, digest, rows, run."""
        return self.read_rows("sources")

    def read_rows(self, name: str) -> pa.Table:
        """All rows of a table without buckets; columns that came later are null in older files."""
        table = self.table(name)
        schema = schema_to_pyarrow(table.schema(), include_field_ids=False)
        found = [schema.empty_table()]
        with sound(f"{self.name}, table {name}"):
            for file in files_of(table):
                with paths.open_input(file.path) as source:
                    found.append(pq.read_table(source).replace_schema_metadata(None))
            return pa.concat_tables(found, promote_options="permissive").select(schema.names)
