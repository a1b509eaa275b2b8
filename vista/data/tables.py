"""History, impressions and items as Iceberg tables; what readers and writers of them need.

    WAREHOUSE/
      catalog.db                      PyIceberg SQL catalog (any other catalog by its properties)
      vista/history/data/bucket=00003/00000001-RUN-00003.parquet
      vista/impressions/...           vista/items/...           vista/sources/...

History and impressions are partitioned by the column ``bucket`` (identity), one or more sorted files per bucket and
commit (vista/data/rows.py). A file's name begins with the number of the commit that added its rows; ``forget`` keeps
that number when it rewrites a file, so "what was added since" survives it.

A commit touches several tables: ``sources``, ``items`` and ``impressions`` first, ``history`` last. History carries
the number of the last whole commit; a table that is ahead of it was left by a crash and is rolled back by
:meth:`Warehouse.recover`, which every writer calls first.

Iceberg metadata holds absolute paths: move a warehouse only with a tool that rewrites them. Bounds of ``user_id`` are
kept out of the metadata, so that no user id outlives the data files.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.conversions import from_bytes
from pyiceberg.exceptions import CommitFailedException, NamespaceAlreadyExistsError, NoSuchTableError
from pyiceberg.manifest import DataFileContent
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table, Transaction
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import IntegerType, LongType, NestedField, StringType

from vista.data import paths
from vista.data.events import Events
from vista.data.items import ItemTable, item_schema
from vista.data.merge import joined, read_sorted
from vista.data.rows import HISTORY, IMPRESSIONS, Kind, Rows, SortedWriter
from vista.errors import DataError

NAMESPACE = "vista"
PREFIX = "vista."
MAX_ACTIONS = 31
KEPT_SNAPSHOTS = 4_096
"""Expired snapshots whose commit number is remembered for ``bucket_files(since=...)``."""

TABLE_PROPERTIES = {
    "format-version": "2",
    "write.parquet.compression-codec": "zstd",
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "16",
    "commit.manifest-merge.enabled": "true",
    "write.metadata.metrics.column.user_id": "none",
}


class TableExists(DataError):
    """``create`` was asked for tables that are there already."""


class TableMissing(DataError):
    """The warehouse has no tables yet."""


class TableChanged(DataError):
    """Another writer committed in between; nothing of this commit is visible."""

    exit_code = 4


@dataclass(frozen=True)
class DataFile:
    """One sorted file of one bucket; plain values, so it can be sent to a worker.

    Attributes:
        commit: number of the commit that added its rows; 0 where another engine wrote the file.
        min_time, max_time: bounds in milliseconds, None where the table has none.
    """

    path: str
    bucket: int
    rows: int
    bytes: int
    min_time: int | None = None
    max_time: int | None = None
    commit: int = 0


@dataclass(frozen=True)
class UserBatch:
    """Consecutive users in key order; ``continues``: the last one goes on as the first of the next batch.

    Attributes:
        users: int64 [U], or object [U] of str.
        events: their histories, U of them, in contract order.
    """

    users: np.ndarray
    events: Events
    continues: bool = False


@dataclass(frozen=True)
class ImpressionBatch:
    """Consecutive users in key order with what they were shown, ordered by (time, request, position, item).

    Attributes:
        users: int64 [U], or object [U] of str.
        offsets: int64 [U + 1].
        time, request, item: int64 [N]. position: int32 [N], 0 is the top.
        action: int32 [N], bit mask; 0 where not engaged.
        continues: the last user goes on as the first of the next batch.
    """

    users: np.ndarray
    offsets: np.ndarray
    time: np.ndarray
    request: np.ndarray
    item: np.ndarray
    position: np.ndarray
    action: np.ndarray
    continues: bool = False


@dataclass(frozen=True)
class Addition:
    """What one commit adds: files already written, and vocabularies as they are after it.

    Attributes:
        run: name of the run, kept in the snapshots' summaries.
        history, impressions, items: URIs of files in the tables' data folders.
        sources: rows of the ledger: path, bytes, digest, rows.
    """

    run: str
    history: Sequence[str] = ()
    impressions: Sequence[str] = ()
    items: Sequence[str] = ()
    sources: Sequence[tuple[str, int, str, int]] = ()
    actions: tuple[str, ...] | None = None
    surfaces: tuple[str, ...] | None = None
    properties: Mapping[str, str] = field(default_factory=dict)


class Warehouse:
    """The tables under one folder or in one catalog.

    Args:
        where: a folder (local, or any URI that PyIceberg can write), or properties of a PyIceberg catalog
            (``{"type": "rest", "uri": ...}``) with ``namespace`` (default ``vista``).
    """

    def __init__(self, where: str | Path | Mapping[str, str], namespace: str = NAMESPACE):
        if isinstance(where, Mapping):
            properties = dict(where)
            self.namespace = properties.pop("namespace", namespace)
            self.path: str | None = None
        else:
            uri = paths.as_uri(where)
            self.namespace, self.path = namespace, str(where)
            database = f"sqlite:///{paths.local_path(uri)}/catalog.db"
            properties = {"type": "sql", "uri": database, "warehouse": uri}
            if not paths.is_local(uri):
                raise DataError(
                    f"{where}: an SQLite catalog needs a local folder; give catalog properties instead "
                    f"(uri of a shared catalog and warehouse={where}), see vista ingest --help"
                )
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
            self._catalog = load_catalog(NAMESPACE, **self._properties)
        return self._catalog

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
        _check_vocabulary(actions, surfaces)
        if self.exists():
            raise TableExists(f"{self.name}: tables exist already; add to them with vista ingest")
        try:
            self.catalog.create_namespace(self.namespace)
        except NamespaceAlreadyExistsError:
            pass
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
        schemas = {"sources": SOURCES, "items": item_schema(), "impressions": _schema(IMPRESSIONS, user_kind)}
        for name, schema in schemas.items():
            self.catalog.create_table_if_not_exists(
                (self.namespace, name), schema, partition_spec=_spec(schema), properties=TABLE_PROPERTIES
            )
        schema = _schema(HISTORY, user_kind)
        self.catalog.create_table(
            (self.namespace, "history"),
            schema,
            partition_spec=_spec(schema),
            properties={**TABLE_PROPERTIES, **{PREFIX + k: v for k, v in facts.items()}},
        )
        return self

    def exists(self) -> bool:
        if self.path is not None and not Path(paths.local_path(self.path), "catalog.db").exists():
            return False
        return self.catalog.table_exists((self.namespace, "history"))

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
                    f"Take it over with vista ingest --adopt"
                )
        return self

    @property
    def name(self) -> str:
        return (
            self.path
            or f"{self._properties.get('uri', self._properties.get('type', 'catalog'))}/{self.namespace}"
        )

    def refresh(self) -> Warehouse:
        """See what others committed."""
        self._tables.clear()
        return self

    def table(self, name: str) -> Table:
        """One of ``history``, ``impressions``, ``items``, ``sources``.

        Raises:
            TableMissing: it is not there.
        """
        if name not in self._tables:
            try:
                self._tables[name] = self.catalog.load_table((self.namespace, name))
            except NoSuchTableError as error:
                raise TableMissing(
                    f"{self.name}: expected a table {name}, found none; make it with vista ingest"
                ) from error
        return self._tables[name]

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

    @property
    def user_kind(self) -> str:
        return self.fact("user-kind")

    @property
    def num_buckets(self) -> int:
        return int(self.fact("buckets"))

    @property
    def actions(self) -> tuple[str, ...]:
        """Names of the bits of ``action``."""
        return tuple(json.loads(self.fact("actions", "[]")))

    @property
    def surfaces(self) -> tuple[str, ...]:
        """Names of surface ids; empty where the logs number their surfaces."""
        return tuple(json.loads(self.fact("surfaces", "[]")))

    @property
    def commit_number(self) -> int:
        """How many commits the tables have seen."""
        return int(self.fact("commit", "0"))

    def snapshot(self) -> int | None:
        """Current snapshot id of the history table, None while it is empty."""
        current = self.history.current_snapshot()
        return None if current is None else current.snapshot_id

    def data_uri(self, kind: Kind, commit: int, run: str, bucket: int, part: str = "") -> str:
        """Where a commit's file of a bucket lies."""
        root = self.table(kind.name).location()
        return posixpath.join(
            root, "data", f"bucket={bucket:05d}", f"{commit:08d}-{run}-{bucket:05d}{part}.parquet"
        )

    def has_commit(self, run: str) -> bool:
        """Whether the commit of a run is whole: history says so last."""
        return any(_summary(s).get(PREFIX + "run") == run for s in self.history.snapshots()) or (
            self.fact("run") == run
        )

    # Reading ------------------------------------------------------------------------------------------------

    def bucket_files(
        self, snapshot: int | None = None, since: int | None = None, kind: Kind = HISTORY
    ) -> dict[int, list[DataFile]]:
        """Sorted files by bucket, in order of path; buckets without files are left out.

        Args:
            snapshot: history snapshot to read; the current one by default.
            since: leave out files whose rows were there at this earlier snapshot.

        Raises:
            DataError: a snapshot that is not known (any more), delete files, or no partition by ``bucket``.
        """
        table = self.table(kind.name)
        if snapshot is None:
            current = table.current_snapshot()
            if current is None:
                return {}
            snapshot = current.snapshot_id
        files = _files_of(table, snapshot)
        if since is not None:
            before = _commit_of(table, since)
            if before is None:
                known = {f.path for f in _files_of(table, since)}
                files = [f for f in files if f.path not in known]
            else:
                files = [f for f in files if f.commit > before]
        found: dict[int, list[DataFile]] = {}
        for f in sorted(files, key=lambda f: f.path):
            found.setdefault(f.bucket, []).append(f)
        return dict(sorted(found.items()))

    def read_items(self) -> ItemTable:
        """All items with their names, commonest surface and number of events."""
        current = self.items.current_snapshot()
        if current is None:
            return ItemTable.empty()
        return ItemTable.read([f.path for f in _files_of(self.items, current.snapshot_id)])

    def read_sources(self) -> pa.Table:
        """The ledger of input files: path, bytes, digest, rows, run."""
        return self.sources.scan().to_arrow()

    # Writing ------------------------------------------------------------------------------------------------

    def recover(self) -> list[str]:
        """Roll back tables that an interrupted commit left ahead of history; names of those.

        The files of the interrupted commit stay as orphans until ``forget`` or ``prune`` sweeps them.
        """
        self.refresh()
        whole = self.commit_number
        undone = []
        for name in ("sources", "items", "impressions"):
            table = self.table(name)
            current = table.current_snapshot()
            target = current
            while target is not None and int(_summary(target).get(PREFIX + "commit", 0)) > whole:
                target = (
                    None
                    if target.parent_snapshot_id is None
                    else table.snapshot_by_id(target.parent_snapshot_id)
                )
            if target is current:
                continue
            undone.append(name)
            if target is not None:
                table.manage_snapshots().rollback_to_snapshot(target.snapshot_id).commit()
            else:
                # The first commit: Iceberg cannot go back to "no snapshot", so take its files out.
                with table.transaction() as tx, tx.update_snapshot().overwrite() as update:
                    for entry in _entries(table, current.snapshot_id):
                        update.delete_data_file(entry.data_file)
        if undone:
            self.refresh()
        return undone

    def commit(self, addition: Addition) -> int | None:
        """Make an addition visible: one snapshot per table that gains files, history last.

        Returns:
            The history snapshot after it.

        Raises:
            TableChanged: another writer committed since this object last read the tables.
            DataError: vocabularies that do not extend the present ones, or a file that does not fit the table.
        """
        actions = self.actions if addition.actions is None else tuple(addition.actions)
        surfaces = self.surfaces if addition.surfaces is None else tuple(addition.surfaces)
        _check_vocabulary(actions, surfaces)
        for name, old, new in (("actions", self.actions, actions), ("surfaces", self.surfaces, surfaces)):
            if new[: len(old)] != old:
                raise DataError(
                    f"{self.name}: {name} only grow at the end; expected a continuation of {list(old)}, found "
                    f"{list(new)}; repeat vista ingest without --{name}"
                )
        number = self.commit_number + 1
        summary = {PREFIX + "commit": str(number), PREFIX + "run": addition.run}
        try:
            if addition.sources:
                with self.sources.transaction() as tx:
                    tx.append(_source_rows(addition, number), snapshot_properties=summary)
            for name, files in (("items", addition.items), ("impressions", addition.impressions)):
                if files:
                    with self.table(name).transaction() as tx:
                        _add(tx, files, summary)
            with self.history.transaction() as tx:
                tx.set_properties(
                    {
                        PREFIX + "commit": str(number),
                        PREFIX + "run": addition.run,
                        PREFIX + "actions": json.dumps(list(actions)),
                        PREFIX + "surfaces": json.dumps(list(surfaces)),
                        **{PREFIX + k: v for k, v in addition.properties.items()},
                    }
                )
                if addition.history:
                    _add(tx, addition.history, summary)
        except CommitFailedException as error:
            raise TableChanged(
                f"{self.name}: another writer committed at the same time; nothing was added. Run vista ingest again"
            ) from error
        self.refresh()
        return self.snapshot()

    def append(
        self,
        users: np.ndarray,
        events: Events,
        buckets: np.ndarray,
        run: str = "append",
        actions: tuple[str, ...] | None = None,
    ) -> int | None:
        """Write histories held in memory and commit them; for small data, tests and tools (else ``beam_jobs.ingest``).

        Args:
            users: int64 [U] or object [U] of str, distinct, any order.
            events: U histories, any order; duplicates within the call are dropped, those of earlier calls are not.
            buckets: int [U], ``cache_store.keys.bucket_of(users, num_buckets)``.

        Raises:
            as :meth:`commit`.
        """
        self.recover()
        commit = self.commit_number + 1
        written = []
        for bucket in np.unique(buckets):
            mine = np.flatnonzero(np.asarray(buckets) == bucket)
            mine = mine[np.argsort(users[mine])]
            mine = mine[events.lengths[mine] > 0]
            if not len(mine):
                continue
            chosen = events.select(mine).sorted()
            rows, _ = joined([Rows(users[mine], chosen.lengths, chosen.columns)], HISTORY)
            uri = self.data_uri(HISTORY, commit, run, int(bucket))
            with SortedWriter(uri, HISTORY, self.user_kind, int(bucket)) as writer:
                writer.write(rows)
            written.append(uri)
        item_file = ItemTable.count(events.item, events.surface).write(self._item_uri(commit, run, 0))
        return self.commit(Addition(run, written, items=[item_file], actions=actions))

    def _item_uri(self, commit: int, run: str, shard: int) -> str:
        return posixpath.join(self.items.location(), "data", f"{commit:08d}-{run}-{shard:05d}.parquet")


SOURCES = Schema(
    NestedField(1, "path", StringType(), required=True),
    NestedField(2, "bytes", LongType(), required=True),
    NestedField(3, "digest", StringType(), required=True),
    NestedField(4, "rows", LongType(), required=True),
    NestedField(5, "run", StringType(), required=True),
)


def _schema(kind: Kind, user_kind: str) -> Schema:
    user = LongType() if user_kind == "int64" else StringType()
    types = {"action": IntegerType(), "surface": IntegerType(), "position": IntegerType()}
    names = ["time", "request", "item", "action", "surface"]
    if kind is IMPRESSIONS:
        names = ["time", "request", "item", "position", "action"]
    columns = [("bucket", IntegerType()), ("user_id", user), *((n, types.get(n, LongType())) for n in names)]
    return Schema(*(NestedField(i + 1, n, t, required=True) for i, (n, t) in enumerate(columns)))


def _spec(schema: Schema) -> PartitionSpec:
    if "bucket" not in schema.column_names:
        return PartitionSpec()
    return PartitionSpec(
        PartitionField(schema.find_field("bucket").field_id, 1000, IdentityTransform(), "bucket")
    )


def _check_vocabulary(actions: Sequence[str], surfaces: Sequence[str]) -> None:
    if len(actions) > MAX_ACTIONS:
        raise DataError(
            f"actions: expected at most {MAX_ACTIONS} (an event's actions are a 31-bit mask), found {len(actions)}: "
            f"{list(actions)}; map rare actions to one before vista ingest"
        )
    for name, values in (("actions", actions), ("surfaces", surfaces)):
        if len(set(values)) != len(values):
            raise DataError(f"{name}: expected distinct names, found {list(values)}; see vista ingest --help")


def _summary(snapshot: Any) -> dict[str, str]:
    return {} if snapshot.summary is None else dict(snapshot.summary.additional_properties)


def _add(tx: Transaction, files: Sequence[str], summary: dict[str, str]) -> None:
    tx.add_files(list(files), snapshot_properties=summary, check_duplicate_files=False)


def _source_rows(addition: Addition, commit: int) -> pa.Table:
    schema = pa.schema(
        [
            pa.field("path", pa.string(), False),
            pa.field("bytes", pa.int64(), False),
            pa.field("digest", pa.string(), False),
            pa.field("rows", pa.int64(), False),
            pa.field("run", pa.string(), False),
        ]
    )
    rows = [(*source, addition.run) for source in addition.sources]
    return pa.table(
        [pa.array(c, f.type) for c, f in zip(zip(*rows, strict=True), schema, strict=True)], schema=schema
    )


def _entries(table: Table, snapshot_id: int) -> Iterator[Any]:
    snapshot = table.snapshot_by_id(snapshot_id)
    if snapshot is None:
        raise DataError(
            f"{'.'.join(table.name())}: expected snapshot {snapshot_id}, found none (expired?); "
            f"start from a full run of vista summarize"
        )
    for manifest in snapshot.manifests(table.io):
        yield from manifest.fetch_manifest_entry(table.io, discard_deleted=True)


def _files_of(table: Table, snapshot_id: int) -> list[DataFile]:
    name = ".".join(table.name())
    schema, spec = table.schema(), table.spec()
    partitioned = [f.name for f in spec.fields]
    by_bucket = "bucket" in schema.column_names
    place = partitioned.index("bucket") if "bucket" in partitioned else None
    if by_bucket and place is None:
        raise DataError(
            f"{name}: expected a partition by bucket (identity), found {partitioned}; bring its rows in with vista "
            f"ingest"
        )
    time_id = schema.find_field("time").field_id if "time" in schema.column_names else -1
    files = []
    for entry in _entries(table, snapshot_id):
        f = entry.data_file
        if f.content != DataFileContent.DATA:
            raise DataError(
                f"{name}: expected data files alone, found the delete file {f.file_path}; compact the table with the "
                f"engine that wrote it, then run vista ingest --adopt"
            )
        low, high = (f.lower_bounds or {}).get(time_id), (f.upper_bounds or {}).get(time_id)
        files.append(
            DataFile(
                path=f.file_path,
                bucket=0 if place is None else int(f.partition[place]),
                rows=int(f.record_count),
                bytes=int(f.file_size_in_bytes),
                min_time=None if low is None else from_bytes(LongType(), low),
                max_time=None if high is None else from_bytes(LongType(), high),
                commit=_commit_in_name(f.file_path),
            )
        )
    return files


def _commit_in_name(path: str) -> int:
    head = posixpath.basename(path).split("-", 1)[0]
    return int(head) if len(head) == 8 and head.isdigit() else 0


def _commit_of(table: Table, snapshot_id: int) -> int | None:
    """Number of the last commit in a snapshot; None where another engine keeps the table.

    Raises:
        DataError: the snapshot is not known.
    """
    remembered = json.loads(table.properties.get(PREFIX + "expired", "{}"))
    if str(snapshot_id) in remembered:
        return int(remembered[str(snapshot_id)])
    snapshot = table.snapshot_by_id(snapshot_id)
    if snapshot is None:
        raise DataError(
            f"{'.'.join(table.name())}: expected snapshot {snapshot_id}, found none (expired?); "
            f"start from a full run of vista summarize"
        )
    commit = _summary(snapshot).get(PREFIX + "commit")
    return None if commit is None else int(commit)


def read_bucket(
    files: Sequence[DataFile | str], *, max_rows: int, users: np.ndarray | Sequence[str] | None = None
) -> Iterator[UserBatch]:
    """Histories of one bucket out of its sorted files: merged, duplicates dropped, in key order.

    Workers call this with paths alone; no catalog is needed. A table sorted by (user, time) by any engine will do.

    Args:
        files: of one bucket.
        max_rows: most events per batch; a user with more spans several. Memory is a small multiple of it
            (vista/data/merge.py), whatever the size of the bucket or of a user.
        users: only these, any order; row groups without them are not read.

    Raises:
        DataError: a file that is missing, lacks a column, or is not sorted.
    """
    for rows, continues in read_sorted(_uris(files), HISTORY, max_rows=max_rows, users=_sorted_users(users)):
        yield UserBatch(rows.users, Events(rows.offsets, **rows.columns), continues)


def read_impressions(
    files: Sequence[DataFile | str], *, max_rows: int, users: np.ndarray | Sequence[str] | None = None
) -> Iterator[ImpressionBatch]:
    """As :func:`read_bucket`, for files of the impressions table (``bucket_files(kind=IMPRESSIONS)``)."""
    for rows, continues in read_sorted(
        _uris(files), IMPRESSIONS, max_rows=max_rows, users=_sorted_users(users)
    ):
        yield ImpressionBatch(rows.users, rows.offsets, **rows.columns, continues=continues)


def _uris(files: Sequence[DataFile | str]) -> list[str]:
    return [f.path if isinstance(f, DataFile) else f for f in files]


def _sorted_users(users: np.ndarray | Sequence[str] | None) -> np.ndarray | None:
    if users is None:
        return None
    array = np.asarray(users, dtype=None if isinstance(users, np.ndarray) else object)
    if array.dtype != object and array.dtype.kind in "US":
        array = array.astype(object)
    elif array.dtype == object and len(array) and not isinstance(array[0], str):
        array = array.astype(np.int64)
    return np.unique(array)
