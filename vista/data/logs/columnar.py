"""Feather, Arrow IPC and ORC files, and Parquet whose lists are to be taken apart, as Parquet with a row per event."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc
import pyarrow.orc as orc

from vista.data import paths
from vista.data.arrow import decoded
from vista.data.logs import arrays
from vista.data.logs.exploding import explode_parts
from vista.data.logs.reading import Reading, exploded
from vista.data.logs.schema import (
    BROKEN,
    LINE,
    Column,
    UnreadableFile,
    kind_of,
    open_source,
    said,
    wanted_names,
    write_rows,
)

ROWS = 65_536


def is_columnar(path: str, reading: Reading) -> bool:
    """Whether a file is no text and cannot be read as it is."""
    if paths.text_ending(path):
        return False
    if paths.array_ending(path):
        return True
    if any("." in name for name in (*reading.columns.values(), *(a.column for a in reading.actions))):
        return True
    return bool(reading.explode) or paths.table_ending(path) in (".feather", ".arrow", ".ipc", ".orc")


def as_rows(path: str, target: str, columns: Sequence[Column], reading: Reading, every: bool = False) -> None:
    """Write the columns that may be needed (or ``every``) as Parquet, with ``LINE`` (the file's row) and ``BROKEN``.

    Raises:
        UnreadableFile: it cannot be opened, or some of it cannot be read.
    """
    if paths.array_ending(path):
        if not any(c.name == "vector" for c in columns):
            raise UnreadableFile(
                f"{path}: expected a log of events or impressions, found a file of arrays; vectors of items are given "
                f"by vista ingest --items {path}"
            )
        return arrays.as_rows(path, target, reading)
    lists = {exploded(spec)[0] for spec in reading.explode}
    wanted = wanted_names(columns, reading) | lists
    try:
        with paths.open_input(path) as file:
            schema, batches = _open(file, path)
            if absent := sorted(lists - set(schema.names)):
                raise ValueError(
                    f"--explode {absent[0]}: expected a column of that name, found {schema.names[:40]}; for example "
                    f"--explode {schema.names[-1]}"
                )
            nested = {n: n.split(".") for n in wanted if n not in schema.names}
            inner = {n: parts for n, parts in nested.items() if parts[0] in schema.names}
            wanted |= {parts[0] for parts in inner.values()}
            there = [n for n in dict.fromkeys(schema.names) if every or n in wanted] or schema.names[:1]
            rows = _numbered(batches, schema, there)
            parts = (p for b in rows for p in (explode_parts(b, reading) if reading.explode else (b,)))
            write_rows(target, (_writable(_with_fields(part, inner)) for part in parts))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        if paths.is_full(error):
            raise
        raise UnreadableFile(
            f"{path}: expected a readable {paths.table_ending(path) or '.parquet'} file, found: {said(error)}; replace "
            f"or leave out the file, or run vista ingest --skip-bad-files"
        ) from error


def _open(file: Any, path: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    ending = paths.table_ending(path)
    if ending == ".orc":
        found = orc.ORCFile(file)
        return found.schema, (found.read_stripe(i) for i in range(found.nstripes))
    if ending in (".feather", ".arrow", ".ipc"):
        start = file.read(6)
        file.seek(0)
        if start == b"ARROW1":
            reader = ipc.open_file(file)
            return reader.schema, (reader.get_batch(i) for i in range(reader.num_record_batches))
        stream = ipc.open_stream(file)
        return stream.schema, iter(stream)
    parquet = open_source(path)
    return parquet.schema_arrow, parquet.iter_batches(1_024)


def _numbered(
    batches: Iterator[pa.RecordBatch], schema: pa.Schema, there: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """The chosen columns of all batches, ``ROWS`` at most at a time, with the number of each row."""
    twice = sorted({n for n in there if schema.names.count(n) > 1})
    if twice:
        raise ValueError(f"column {twice[0]!r} twice")
    row = 0
    for whole in batches:
        for start in range(0, whole.num_rows, ROWS):
            batch = whole.slice(start, ROWS).select(list(there))
            yield _with_lines(batch, row)
            row += batch.num_rows
    if not row:
        nothing = {n: pa.array([], schema.field(n).type) for n in there}
        yield _with_lines(pa.record_batch(nothing), 0)


def _with_lines(batch: pa.RecordBatch, row: int) -> pa.RecordBatch:
    n = batch.num_rows
    numbered = batch.append_column(LINE, pa.array(np.arange(row, row + n)))
    return numbered.append_column(BROKEN, pa.nulls(n, pa.string()))


def _with_fields(batch: pa.RecordBatch, inner: Mapping[str, Sequence[str]]) -> pa.RecordBatch:
    """The batch with fields of its structs as columns (``user.id``), those that are there."""
    for name, path in inner.items():
        column = batch.column(path[0])
        for field in path[1:]:
            known = pa.types.is_struct(column.type) and column.type.get_field_index(field) >= 0
            if not known:
                break
            column = pc.struct_field(column, [field])
        else:
            batch = batch.append_column(name, column)
    return batch


def _writable(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Dictionaries decoded, and what no meaning can have left out."""
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    told = {n: c for n, c in columns.items() if kind_of(c.type) is not None or pa.types.is_time(c.type)}
    return pa.record_batch({n: decoded(c) for n, c in told.items()})
