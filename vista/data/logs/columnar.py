"""Feather, Arrow IPC and ORC files, and Parquet whose lists are to be taken apart, as Parquet with a row per event."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc
import pyarrow.orc as orc
import pyarrow.parquet as pq

from vista.data import paths
from vista.data.logs import arrays
from vista.data.logs.exploding import explode_parts
from vista.data.logs.reading import Reading, exploded
from vista.data.logs.schema import BROKEN, LINE, Column, UnreadableFile, kind_of, open_source, wanted_names

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
    wanted = wanted_names(columns, reading) | {exploded(spec)[0] for spec in reading.explode}
    temporary = f"{target}.tmp"
    try:
        with paths.open_input(path) as file:
            schema, batches = _open(file, path)
            lists = {exploded(spec)[0] for spec in reading.explode}
            if absent := sorted(lists - set(schema.names)):
                raise ValueError(
                    f"--explode {absent[0]}: expected a column of that name, found {schema.names[:40]}; for example "
                    f"--explode {schema.names[-1]}"
                )
            inner = {
                n: n.split(".") for n in wanted if n not in schema.names and n.split(".")[0] in schema.names
            }
            wanted |= {parts[0] for parts in inner.values()}
            there = [n for n in dict.fromkeys(schema.names) if every or n in wanted] or schema.names[:1]
            writer = None
            for batch in _numbered(batches, schema, there):
                for part in explode_parts(batch, reading) if reading.explode else (batch,):
                    part = _writable(_with_fields(part, inner))
                    if writer is None:
                        writer = pq.ParquetWriter(temporary, part.schema, compression="lz4")
                    writer.write_batch(part)
            if writer is not None:
                writer.close()
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        if paths.is_full(error) or isinstance(error, UnreadableFile):
            raise
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnreadableFile(
            f"{path}: expected a readable {paths.table_ending(path) or '.parquet'} file, found: {why}; replace or "
            f"leave out the file, or run vista ingest --skip-bad-files"
        ) from error
    os.replace(temporary, target)


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
    empty = True
    for whole in batches:
        for start in range(0, whole.num_rows, ROWS):
            batch = whole.slice(start, ROWS).select(list(there))
            yield _with_lines(batch, row)
            row += batch.num_rows
            empty = False
    if empty:
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
            column = pc.struct_field(column, [field]) if known else None
            if column is None:
                break
        if column is not None:
            batch = batch.append_column(name, column)
    return batch


def _writable(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Dictionaries decoded, and what no meaning can have left out."""
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if kind_of(column.type) is None and not pa.types.is_time(column.type):
            continue
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        columns[name] = column
    return pa.record_batch(columns)
