"""What was looked up as columns: of Arrow, as docs/serve-protocol.md says them, and of pandas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cache_store.errors import needs
from cache_store.format.record import RecordSchema

if TYPE_CHECKING:
    import pandas
    import pyarrow

    from cache_store.read.found import Heaviest, Lookup, RawLookup


def of_groups(found: Lookup, published_ms: int | None = None) -> pyarrow.RecordBatch:
    """User, status, clocks, and a column for each group.

    Raises:
        MissingExtra
    """
    needs("flight", "pyarrow")
    columns = _facts(found, found.users, published_ms)
    tables = {t.masses: t for t in found.schema.tables}
    for name, values in found.groups.items():
        if values.dtype == np.int64:
            columns[name] = _list(values)
        else:
            columns[name] = tensor(found.masses(tables[name]) if name in tables else values)
    return batch(columns)


def of_sequence(
    found: RawLookup,
    users: np.ndarray,
    seen: Heaviest,
    tokens: np.ndarray | None,
    published_ms: int | None = None,
) -> pyarrow.RecordBatch:
    """User, status, clocks, and the heaviest items with their bias; ``tokens``: float32 [B, n, D], their vectors."""
    columns = _facts(found, users, published_ms) | {"items": _list(seen.items), "bias": _list(seen.log_mass)}
    return batch(columns if tokens is None else columns | {"tokens": tensor(tokens)})


def of_rows(found: RawLookup, users: np.ndarray, published_ms: int | None = None) -> pyarrow.RecordBatch:
    """User, status, clocks, and the records as stored, not copied; the record begins at byte 16 of a row."""
    import pyarrow as pa

    n, size = found.rows.shape
    rows = pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), n, [None, pa.py_buffer(found.rows)])
    return batch(_facts(found, users, published_ms) | {"row": rows})


def batch(columns: dict[str, Any]) -> pyarrow.RecordBatch:
    """One record batch of these columns."""
    import pyarrow as pa

    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def tensor(values: np.ndarray) -> Any:
    """Arrow's column of tensors (``arrow.fixed_shape_tensor``) of an array [B, ...]."""
    import pyarrow as pa

    if not len(values):
        kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(values.dtype), values.shape[1:])
        return pa.ExtensionArray.from_storage(kind, pa.array([], kind.storage_type))
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))


def _list(values: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _facts(found: Lookup | RawLookup, users: np.ndarray, published_ms: int | None) -> dict[str, Any]:
    import pyarrow as pa

    columns: dict[str, Any] = {
        "user": pa.array(users, pa.string()) if users.dtype == object else pa.array(users),
        "status": pa.array(found.status),
        "event_count": pa.array(found.event_count),
        "last_event_ms": pa.array(found.last_event_ms),
        "summarized_ms": pa.array(found.summarized_ms),
    }
    n = len(found.status)
    if published_ms is not None:
        columns["published_ms"] = pa.array(np.full(n, published_ms, np.int64))
    names = found.generation
    columns["generation"] = pa.array([names] * n if isinstance(names, str) else names, pa.string())
    return columns


def frame(found: Lookup, names: Sequence[str]) -> pandas.DataFrame:
    """See :meth:`cache_store.read.found.Lookup.to_pandas`."""
    needs("pandas", "pandas")
    import pandas as pd

    def times(ms: np.ndarray) -> Any:
        return pd.to_datetime(np.where(ms != 0, ms, np.iinfo(np.int64).min).view("M8[ms]"), utc=True)

    columns: dict[str, Any] = {
        "status": pd.Categorical.from_codes(found.status.astype(np.int8), list(names)),
        "event_count": found.event_count,
        "last_event": times(found.last_event_ms),
        "summarized": times(found.summarized_ms),
    }
    tables = {t.masses: t for t in found.schema.tables}
    for name, values in found.groups.items():
        columns[name] = list(found.masses(tables[name]) if name in tables else values)
    return pd.DataFrame(columns, index=pd.Index(found.users, name="user"))


def tokens_of(vectors: tuple[np.ndarray, np.ndarray], items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of items: float32 [..., D], zeros for those that have none; and which have, bool [...].

    Args:
        vectors: int64 [M] ids, ascending, and float32 [M, D].
    """
    ids, table = vectors
    if not len(ids):
        return np.zeros((*items.shape, table.shape[1]), np.float32), np.zeros(items.shape, bool)
    row = np.minimum(np.searchsorted(ids, items), len(ids) - 1)
    known = ids[row] == items
    return table[row] * known[..., None], known


def forms_of(schema: RecordSchema) -> Sequence[str]:
    """Forms that records of this schema can be answered in, the default first."""
    sequence = ("sequence",) if any(t.keys for t in schema.tables) else ()
    return (*sequence, "groups", "rows")
