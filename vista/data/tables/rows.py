"""``Rows``: consecutive users with their columns, the form in which sorted table files are read, merged and written.

A sorted file holds, per bucket, rows that ascend by user key and then by time; ties in time may be in any order on
reading (another engine's file) and are in contract order on writing. Users are carried as runs (user, length), so
string users cost one Python object per user and file, never one per row.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vista.data import paths
from vista.data.events import COLUMNS, ORDER
from vista.data.tables.sorting import IMPRESSION_ORDER
from vista.errors import DataError
from vista.jagged import lengths_between, offsets_of, owners_of, starts_of

DTYPES: dict[str, np.dtype] = {**COLUMNS, "position": np.dtype(np.int32)}
ROW_GROUP = 131_072
"""Rows per row group: small enough that a reader skips users it does not want, large enough to compress."""

ZSTD_LEVEL = 3


@dataclass(frozen=True)
class Kind:
    """What a table's rows hold beside the user; ``order`` is the sort key, time first."""

    name: str
    columns: tuple[str, ...]
    order: tuple[str, ...]


HISTORY = Kind("history", ORDER, ORDER)
IMPRESSIONS = Kind("impressions", ("time", "request", "item", "position", "action"), IMPRESSION_ORDER)


@dataclass(frozen=True)
class Rows:
    """Users in key order with their rows, one user's rows together.

    Attributes:
        users: int64 [U] or object [U] of str, strictly ascending.
        lengths: int64 [U], rows per user.
        columns: name to array [N].
    """

    users: np.ndarray
    lengths: np.ndarray
    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.columns["time"])

    @property
    def offsets(self) -> np.ndarray:
        return offsets_of(self.lengths)

    @staticmethod
    def empty(kind: Kind, users: np.ndarray | None = None) -> Rows:
        none = np.zeros(0, np.int64) if users is None else users[:0]
        return Rows(none, np.zeros(0, np.int64), {n: np.zeros(0, DTYPES[n]) for n in kind.order})

    def slice(self, start: int, stop: int) -> Rows:
        """Rows ``start:stop`` (views), with the users that have rows there."""
        offsets = self.offsets
        first = int(np.searchsorted(offsets, start, side="right")) - 1
        last = int(np.searchsorted(offsets, stop, side="left"))
        cut = np.clip(offsets[first : last + 1], start, stop)
        return Rows(self.users[first:last], np.diff(cut), {n: c[start:stop] for n, c in self.columns.items()})

    def take(self, keep: np.ndarray) -> Rows:
        """Rows where ``keep`` (bool [N]) is true, without the users left empty."""
        counts = self.lengths
        if len(counts):
            counts = np.add.reduceat(keep.astype(np.int64), self.offsets[:-1])
        left = counts > 0
        return Rows(self.users[left], counts[left], {n: c[keep] for n, c in self.columns.items()})


def ranks(parts: Sequence[Rows]) -> tuple[np.ndarray, np.ndarray]:
    """(users [U] of all parts in key order, rank int64 [N] of each row of the parts one after the other)."""
    users, inverse = np.unique(np.concatenate([p.users for p in parts]), return_inverse=True)
    lengths = np.concatenate([p.lengths for p in parts])
    return users, np.repeat(inverse.astype(np.int64), lengths)


def read_users(column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Runs of equal neighbours of a user column: (users, lengths)."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    n = len(column)
    if not n:
        kind = np.int64 if pa.types.is_integer(column.type) else object
        return np.zeros(0, kind), np.zeros(0, np.int64)
    if column.null_count:
        raise DataError(
            "user_id: expected no nulls in a table, found some; ingest the logs again with vista ingest"
        )
    if pa.types.is_integer(column.type):
        values = column.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
        starts = starts_of(values)
        users = values[starts]
    else:
        if pa.types.is_dictionary(column.type):
            codes = column.indices.to_numpy(zero_copy_only=False)
            change = codes[1:] != codes[:-1]
        else:
            change = pc.not_equal(column.slice(1), column.slice(0, n - 1)).to_numpy(zero_copy_only=False)
        starts = np.concatenate([[0], np.flatnonzero(change) + 1])
        users = np.array(column.take(pa.array(starts)).to_pylist(), dtype=object)
    return users, lengths_between(starts, n)


def to_arrow(rows: Rows, kind: Kind, bucket: int, schema: pa.Schema) -> pa.Table:
    """Rows as a table of the file schema (:func:`file_schema`)."""
    n = len(rows)
    if rows.users.dtype == object:
        codes = owners_of(rows.lengths).astype(np.int32)
        values = pa.array(rows.users.tolist(), pa.string())
        user = pa.DictionaryArray.from_arrays(pa.array(codes), values).cast(pa.string())
    else:
        user = pa.array(np.repeat(rows.users, rows.lengths))
    columns = {"bucket": pa.array(np.full(n, bucket, np.int32)), "user_id": user}
    columns |= {name: pa.array(np.ascontiguousarray(rows.columns[name])) for name in kind.order}
    return pa.table([columns[field.name] for field in schema], schema=schema)


def file_schema(kind: Kind, user_kind: str) -> pa.Schema:
    """Arrow schema of the table's files; columns in the table's order, none nullable."""
    types = {"bucket": pa.int32(), "user_id": pa.int64() if user_kind == "int64" else pa.string()}
    types |= {name: pa.from_numpy_dtype(DTYPES[name]) for name in kind.columns}
    return pa.schema([pa.field(name, type_, nullable=False) for name, type_ in types.items()])


class SortedWriter:
    """Writes one sorted file of one bucket, row group by row group; memory is one row group.

    The file appears under ``uri`` only on :meth:`close`, whole. Use as a context manager; an error leaves nothing.
    """

    def __init__(self, uri: str, kind: Kind, user_kind: str, bucket: int):
        self.uri, self.kind, self.bucket = uri, kind, bucket
        self._schema = file_schema(kind, user_kind)
        self._temporary = f"{uri}.{uuid.uuid4().hex}.tmp" if paths.is_local(uri) else uri
        self._sink = paths.open_output(self._temporary)
        # Within a user times and requests rise by little, so deltas are small; items come from few niches, which
        # zstd finds faster in plain values than by way of a dictionary. What has few values gets a dictionary.
        deltas = ("time", "request")
        self._writer = pq.ParquetWriter(
            self._sink,
            self._schema,
            compression="zstd",
            compression_level=ZSTD_LEVEL,
            use_dictionary=[n for n in self._schema.names if n not in (*deltas, "item")],
            column_encoding={**dict.fromkeys(deltas, "DELTA_BINARY_PACKED"), "item": "PLAIN"},
            store_schema=False,
        )
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self.rows = 0

    def write(self, rows: Rows) -> None:
        """Append rows that sort after all before them."""
        self._pending.append(to_arrow(rows, self.kind, self.bucket, self._schema))
        self._pending_rows += len(rows)
        self.rows += len(rows)
        if self._pending_rows >= ROW_GROUP:
            table = pa.concat_tables(self._pending)
            whole = self._pending_rows - self._pending_rows % ROW_GROUP
            self._writer.write_table(table.slice(0, whole), row_group_size=ROW_GROUP)
            self._pending = [table.slice(whole)]
            self._pending_rows -= whole

    def close(self) -> None:
        if self._pending_rows or not self.rows:
            table = pa.concat_tables(self._pending) if self._pending else self._schema.empty_table()
            self._writer.write_table(table, row_group_size=ROW_GROUP)
        self._writer.close()
        self._sink.close()
        if self._temporary != self.uri:
            paths.move(self._temporary, self.uri)

    def __enter__(self) -> SortedWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
            return
        self._writer.close()
        self._sink.close()
        paths.remove([self._temporary])


def open_sorted(uri: str) -> pq.ParquetFile:
    """Open a table file.

    Raises:
        DataError: it is missing or is not Parquet.
    """
    try:
        return pq.ParquetFile(paths.open_input(uri))
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{uri}: expected a Parquet file of the table, found {error}; restore it, or rebuild with vista ingest"
        ) from error


def wanted_groups(file: pq.ParquetFile, users: np.ndarray | None) -> list[int]:
    """Row groups that may hold any of ``users`` (sorted), by their statistics; all without statistics, and those that
    cannot be read: PyArrow ends the process where statistics of such a one are asked for."""
    groups = range(file.metadata.num_row_groups)
    if users is None:
        return list(groups)
    names = [file.metadata.schema.column(i).name for i in range(len(file.metadata.schema))]
    column = names.index("user_id")
    wanted = []
    for g in groups:
        try:
            next(file.iter_batches(1, [g], ["user_id"], use_threads=False), None)
        except (OSError, pa.ArrowException):
            wanted.append(g)
            continue
        stats = file.metadata.row_group(g).column(column).statistics
        if stats is not None and stats.has_min_max:
            low, high = np.searchsorted(users, np.array([stats.min, stats.max], users.dtype))
            if low == high and not (low < len(users) and users[low] == stats.max):
                continue
        wanted.append(g)
    return wanted


def read_whole(uri: str, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches of a file.

    Raises:
        DataError: pages that cannot be read.
    """
    try:
        yield from batches
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{uri}: expected Parquet pages as they were written, found {error}; restore the file, or rebuild the "
            f"table with vista ingest"
        ) from error


def batches_of(
    uri: str, kind: Kind, most: int, users: np.ndarray | None = None, columns: Iterable[str] | None = None
) -> Iterator[Rows]:
    """The rows of one sorted file in order, in batches of at most ``most``.

    Args:
        users: sorted; only their rows are yielded and row groups without them are not read.
        columns: columns to read beside the user; ``kind.order`` by default.

    Raises:
        DataError: missing file or column, a wrong type, or users out of order.
    """
    names = list(kind.order if columns is None else columns)
    file = open_sorted(uri)
    missing = [n for n in ["user_id", *names] if n not in file.schema_arrow.names]
    if missing:
        raise DataError(
            f"{uri}: expected columns user_id, {', '.join(names)}; found no {', '.join(missing)}; "
            f"use a table made by vista ingest, or one with the columns of docs/architecture.md"
        )
    last_user: Any = None
    last_time = 0
    with file:
        groups = wanted_groups(file, users)
        batches = file.iter_batches(most, groups, ["user_id", *names], use_threads=False) if groups else ()
        for batch in read_whole(uri, batches):
            found, lengths = read_users(batch.column("user_id"))
            if not len(found):
                continue
            if (found[1:] < found[:-1]).any() or (last_user is not None and found[0] < last_user):
                raise DataError(
                    f"{uri}: expected rows in order of user_id, found them out of order; sort the table by "
                    f"(user_id, time), or bring its rows in with vista ingest"
                )
            data = {n: batch.column(n).to_numpy(zero_copy_only=False) for n in names}
            data = {n: column.astype(DTYPES[n], copy=False) for n, column in data.items()}
            rows = Rows(found, lengths, data)
            if "time" in data:
                before = last_time if found[0] == last_user else None
                _check_times(uri, rows, before)
                last_time = int(data["time"][-1])
            last_user = found[-1]
            if users is not None:
                wanted = member(found, users)
                if not wanted.any():
                    continue
                if not wanted.all():
                    rows = rows.take(np.repeat(wanted, lengths))
            yield rows


def _check_times(uri: str, rows: Rows, before: int | None) -> None:
    """Times ascend within a user; ``before`` is the last time of the first user in the batch before."""
    time = rows.columns["time"]
    falls = time[1:] < time[:-1]
    falls[rows.offsets[1:-1] - 1] = False
    if falls.any() or (before is not None and time[0] < before):
        raise DataError(
            f"{uri}: expected each user's rows in order of time, found them out of order; sort the table by "
            f"(user_id, time), or bring its rows in with vista ingest"
        )


def member(found: np.ndarray, users: np.ndarray) -> np.ndarray:
    """bool: which of ``found`` are among ``users`` (sorted)."""
    at = np.searchsorted(users, found)
    inside = at < len(users)
    result = np.zeros(len(found), bool)
    result[inside] = users[at[inside]] == found[inside]
    return result
