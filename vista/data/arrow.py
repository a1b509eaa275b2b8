"""Columns of Arrow where NumPy is wanted, and back; small tables as files."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vista.data.paths import open_input, open_output
from vista.jagged import offsets_of


def valid(column: pa.Array) -> np.ndarray:
    """bool [N]: not null."""
    return column.is_valid().to_numpy(zero_copy_only=False)


def true(column: pa.Array) -> np.ndarray:
    """bool [N] of a column of truth values: null is false."""
    return pc.fill_null(column, False).to_numpy(zero_copy_only=False)


def list_lengths(column: pa.Array) -> np.ndarray:
    """int64 [N] of a column of lists: a null has none."""
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def decoded(column: pa.Array) -> pa.Array:
    """The values that a dictionary or runs stand for; other columns as they are."""
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def lists(lengths: np.ndarray, values: np.ndarray | pa.Array, null: np.ndarray | None = None) -> pa.ListArray:
    """N lists of ``lengths`` [N] values, end to end; null where ``null`` (bool [N]) says so."""
    values = pa.array(values) if isinstance(values, np.ndarray) else values
    offsets = pa.array(offsets_of(lengths).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, values, mask=None if null is None else pa.array(null))


def write_table(table: pa.Table, uri: str) -> str:
    """Write a small table of a warehouse as one file; returns ``uri``."""
    with open_output(uri) as file:
        pq.write_table(table, file, compression="zstd", store_schema=False)
    return uri


def read_tables(uris: Iterable[str], schema: pa.Schema) -> pa.Table:
    """Rows of files one after the other, as columns of ``schema``; none of no file."""
    tables = [schema.empty_table()]
    for uri in uris:
        with open_input(uri) as file:
            tables.append(pq.read_table(file).select(schema.names).cast(schema))
    return pa.concat_tables(tables)
