"""Logs that are text (CSV, TSV, JSON lines; also compressed) to Parquet, before anything looks at them.

    log.csv.gz ──draft──▶ every column as text, and what its values are ──typed──▶ columns of a kind each

Two passes, since nobody knows before the last line whether a column is numbers all through. A broken line (too many or
too few fields, no JSON object, a value that does not fit its column's kind) stays a row: the columns ``LINE`` and
``BROKEN`` say which line and why, and the importer sets it aside like any other bad row.
"""

from __future__ import annotations

import io
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from vista.data import paths
from vista.data.logs.schema import BROKEN, LINE, UnreadableFile

SEPARATORS = {".csv": ",;\t|", ".tsv": "\t"}
"""What may stand between the fields of a file by its name's ending; the one that its header has most of does."""

BATCH_ROWS = 65_536
KEPT = 1_000
"""Characters of a broken line or value that are kept."""

INTEGER = r"^(0|-?[1-9][0-9]{0,18})(\.0)?$"
"""As a program writes an integer: ``007`` and ``+7`` are names. ``7.0`` is how pandas writes one in a column where
some are missing."""
NUMBER = r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$"


@dataclass
class Facts:
    """What the values of a text log's columns are: by column, how many there are, and how many of them are integers,
    numbers (integers too), and lists of integers or of strings."""

    values: dict[str, int] = field(default_factory=dict)
    integers: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    lists: dict[str, list[str]] = field(default_factory=dict)

    def count(self, name: str, values: int, integers: int, numbers: int) -> None:
        """Add to a column."""
        for counts, n in ((self.values, values), (self.integers, integers), (self.numbers, numbers)):
            counts[name] = counts.get(name, 0) + n


def draft(path: str, target: str, wanted: Collection[str]) -> Facts:
    """Write a text log as Parquet with every column as text (which need not be UTF-8), ``LINE`` and ``BROKEN``.

    Args:
        wanted: columns to keep of JSON objects, which may hold anything; a CSV keeps all.

    Raises:
        UnreadableFile: it cannot be opened or decompressed, or has no header.
    """
    facts = Facts()
    separators = SEPARATORS.get(paths.text_ending(path))
    compression = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}.get(os.path.splitext(path.lower())[1])
    try:
        with pa.input_stream(paths.open_input(path), compression=compression) as stream:
            rows = (
                _json_rows(stream, sorted(wanted), facts)
                if separators is None
                else _csv_rows(stream, separators, wanted, facts)
            )
            _write(target, rows)
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        if paths.is_full(error):
            raise
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnreadableFile(
            f"{path}: expected a readable text log, as its name ends, found: {why}; replace or leave out the file, or "
            f"run vista ingest --skip-bad-files"
        ) from error
    return facts


def typed(source: str, target: str, facts: Facts, kinds: Mapping[str, str]) -> None:
    """Write a draft with its columns in their kinds; a value that does not fit breaks its line.

    Args:
        facts: of the draft; a column without values that no header names is left out.
        kinds: by column ``int``, ``float``, ``time`` (ISO 8601), ``list of int`` or ``list of string``; all others
            stay text.
    """
    with pq.ParquetFile(source) as file:
        names = [*facts.values, LINE, BROKEN]
        empty = pa.RecordBatch.from_pylist([], file.schema_arrow).select(names)
        batches = (_cast(batch, kinds) for batch in file.iter_batches(BATCH_ROWS, columns=names))
        _write(target, itertools.chain([_cast(empty, kinds)], batches))


def _write(path: str, batches: Iterator[pa.RecordBatch]) -> None:
    """The batches as one Parquet file, whole or not at all; the first batch may be empty."""
    temporary = f"{path}.tmp"
    first = next(batches)
    with pq.ParquetWriter(temporary, first.schema, compression="lz4") as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)
    os.replace(temporary, path)


# Drafts ------------------------------------------------------------------------------------------------------


def _csv_rows(
    stream: Any, separators: str, wanted: Collection[str], facts: Facts
) -> Iterator[pa.RecordBatch]:
    broken: dict[int, str] = {}
    open_quotes: list[str] = []

    def keep(row: csv.InvalidRow) -> str:
        if "\n" in row.text and row.text.count('"') % 2:
            open_quotes.append(f"a quote without its end in record {row.number - 1}: {row.text[:80]!r}")
        why = f"expected {row.expected_columns} fields, found {row.actual_columns}: {row.text[:KEPT]}"
        broken[row.number - 1] = why  # to Arrow the header is number 1
        return "skip"

    names, separator, stream = _header(stream, separators)
    twice = sorted({name for name in names if names.count(name) > 1 and name in wanted})
    if twice:
        raise ValueError(f"column {twice[0]!r} twice in the header {names}")
    # others of one name (spreadsheets write columns without any) are told apart by their place
    called = [name if names.count(name) == 1 else f"{name}#{i}" for i, name in enumerate(names)]
    reader = csv.open_csv(
        stream,
        read_options=csv.ReadOptions(use_threads=False),
        parse_options=csv.ParseOptions(
            delimiter=separator, newlines_in_values=True, invalid_row_handler=keep
        ),
        convert_options=csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.binary()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
        ),
    )
    schema = _draft_schema(called)
    for name in called:
        facts.count(name, 0, 0, 0)
    done = 0
    for batch in _whole_records(reader):
        if open_quotes:  # the lines behind it are no record's: which they were, nobody can tell
            raise ValueError(open_quotes[0])
        n = batch.num_rows
        lines = np.arange(done + 1, done + 1 + n + len(broken))
        lines = lines[~np.isin(lines, list(broken))][:n]
        done = int(lines[-1]) if n else done
        for name, column in zip(called, batch.columns, strict=True):
            facts.count(name, n - column.null_count, _matching(column, INTEGER), _matching(column, NUMBER))
        text = [column.view(pa.string()) for column in batch.columns]
        yield pa.record_batch([*text, pa.array(lines), pa.nulls(n, pa.string())], schema=schema)
    if open_quotes:
        raise ValueError(open_quotes[0])
    nothing = [pa.nulls(len(broken), pa.string()) for _ in names]
    yield pa.record_batch([*nothing, pa.array(list(broken), pa.int64()), pa.array(list(broken.values()), pa.string())],
                          schema=schema)  # fmt: skip


def _header(stream: Any, separators: str) -> tuple[list[str], str, Any]:
    """The names of the columns, what separates them, and a stream that begins with them again."""
    head = stream.read(1 << 20)
    if not head.strip():
        raise ValueError("nothing, not even a header")
    first = head.splitlines()[0] + b"\n"
    separator = max(separators, key=lambda s: first.count(s.encode()))  # the first of those that are as many
    block = csv.ReadOptions(block_size=len(first))
    names = csv.read_csv(pa.BufferReader(first), block, csv.ParseOptions(delimiter=separator)).column_names
    return names, separator, pa.PythonFile(_Rejoined(head, stream), mode="r")


def _whole_records(reader: Any) -> Iterator[pa.RecordBatch]:
    rows = 0
    while True:
        try:
            batch = reader.read_next_batch()
        except StopIteration:
            return
        except pa.ArrowInvalid as error:
            if "straddling" not in str(error):
                raise
            raise ValueError(
                f"a record of more than 1 MB behind {rows} others; a quote without its end?"
            ) from error
        rows += batch.num_rows
        yield batch


class _Rejoined:
    """A stream of which the first bytes were read already."""

    closed = False

    def __init__(self, head: bytes, rest: Any):
        self._head, self._rest = head, rest

    def read(self, size: int = -1) -> bytes:
        if not self._head:
            return self._rest.read() if size < 0 else self._rest.read(size)
        part, self._head = (self._head, b"") if size < 0 else (self._head[:size], self._head[size:])
        return part

    def close(self) -> None:
        self.closed = True


def _draft_schema(names: Collection[str]) -> pa.Schema:
    return pa.schema([*((name, pa.string()) for name in names), (LINE, pa.int64()), (BROKEN, pa.string())])


def _matching(column: pa.Array, pattern: str) -> int:
    return pc.sum(pc.match_substring_regex(column, pattern)).as_py() or 0


def _json_rows(stream: Any, names: list[str], facts: Facts) -> Iterator[pa.RecordBatch]:
    schema = _draft_schema(names)
    rows: list[tuple[Any, ...]] = []

    def batch() -> pa.RecordBatch:
        columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in schema]
        rows.clear()
        columns[:-2] = [_json_texts(name, c, facts) for name, c in zip(names, columns[:-2], strict=True)]
        return pa.record_batch(
            [pa.array(c, t) for c, t in zip(columns, schema.types, strict=True)], schema=schema
        )

    for number, line in enumerate(io.BufferedReader(stream, 1 << 20), start=1):
        if not line.strip():
            continue
        try:
            found, why = json.loads(line), None
            if not isinstance(found, dict):
                raise ValueError(type(found).__name__)
        except ValueError as error:
            found, why = (
                {},
                f"expected a JSON object, found {line[:KEPT].decode(errors='replace').strip()!r} ({error})",
            )
        rows.append((*map(found.get, names), number, why))
        if len(rows) == BATCH_ROWS:
            yield batch()
    yield batch()


def _json_texts(name: str, values: list[Any], facts: Facts) -> list[str | None]:
    """The values of a column as text; counts their kinds. JSON tells text from numbers: "7" is a name."""
    kinds = Counter(map(type, values))
    if kinds[float]:  # pandas writes integers as floats where some are missing
        values = [int(v) if type(v) is float and v.is_integer() and abs(v) < 2**53 else v for v in values]
        kinds = Counter(map(type, values))
    present = len(values) - kinds[type(None)]
    if not present:
        return values
    if kinds[list]:
        inner = {type(v) for row in values if type(row) is list for v in row} - {type(None)}
        listed = {"int" if kind is int else "string" for kind in inner}
        facts.lists[name] = sorted(listed.union(facts.lists.get(name, ())))
    facts.count(name, present, kinds[int], kinds[int] + kinds[float])
    return [v if type(v) is str or v is None else json.dumps(v, ensure_ascii=False) for v in values]


# Kinds -------------------------------------------------------------------------------------------------------


def _cast(batch: pa.RecordBatch, kinds: Mapping[str, str]) -> pa.RecordBatch:
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    broken = columns[BROKEN].to_pylist()
    for name, kind in kinds.items():
        convert, says = CASTS[kind]
        column = columns[name]
        columns[name], wrong = convert(column)
        for i in np.flatnonzero(wrong).tolist():
            value = column.view(pa.binary())[i].as_py()[:KEPT].decode(errors="replace")
            broken[i] = broken[i] or f"{name}: expected {says}, found {value!r}"
    columns[BROKEN] = pa.array(broken, pa.string())
    return pa.record_batch(columns)


def _by_value(
    parse: Callable[[bytes], Any], type_: pa.DataType
) -> Callable[[pa.Array], tuple[pa.Array, np.ndarray]]:
    """A cast value by value; ``parse`` raises ValueError (or overflows the type) where one does not fit."""

    def convert(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
        found: list[Any] = []
        wrong = np.zeros(len(column), bool)
        for i, value in enumerate(column.view(pa.binary()).to_pylist()):
            try:
                found.append(None if value is None else pa.scalar(parse(value), type_).as_py())
            except (ValueError, OverflowError, pa.ArrowException):
                found.append(None)
                wrong[i] = True
        return pa.array(found, type_), wrong

    return convert


def _cast_by(pattern: str | None, types: tuple[pa.DataType, ...], slow: Callable[[bytes], Any]) -> Any:
    """A cast of whole columns, and value by value where one does not fit."""

    def convert(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
        values = column.drop_null().view(pa.binary())
        if pattern is None or _matching(values, pattern) == len(values):
            if pattern == INTEGER and pc.any(pc.ends_with(column, ".0")).as_py():
                column = pc.replace_substring_regex(column, r"\.0$", "")
            for type_ in types:
                try:
                    return column.cast(type_).cast(types[-1]), np.zeros(len(column), bool)
                except pa.ArrowInvalid:
                    continue
        return _by_value(slow, types[-1])(column)

    return convert


def _integer(value: bytes) -> int:
    text = value.decode().removesuffix(".0")
    if str(int(text)) != text:
        raise ValueError(text)
    return int(text)


def _time(value: bytes) -> datetime:
    text = value.decode()
    # "2024-01-31 12:00:00 UTC" is how BigQuery writes it
    found = datetime.fromisoformat(text[:-4] + "Z" if text.endswith((" UTC", " GMT")) else text)
    return found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found


def _list(value: bytes) -> list[Any]:
    found = json.loads(value)
    if not isinstance(found, list):
        raise ValueError(found)
    return found


def _list_of_text(value: bytes) -> list[str | None]:
    return [v if v is None or isinstance(v, str) else json.dumps(v) for v in _list(value)]


CASTS: dict[str, tuple[Callable[[pa.Array], tuple[pa.Array, np.ndarray]], str]] = {
    "int": (_cast_by(INTEGER, (pa.int64(),), _integer), "an integer"),
    "float": (_cast_by(NUMBER, (pa.float64(),), float), "a number"),
    "time": (_cast_by(None, (pa.timestamp("ms", "UTC"), pa.timestamp("ms")), _time), "an ISO 8601 time"),
    "list of int": (_by_value(_list, pa.list_(pa.int64())), "a list of integers"),
    "list of string": (_by_value(_list_of_text, pa.list_(pa.string())), "a list"),
}
"""Kind to its cast (text to the values and bool [N]: which did not fit) and what it expects."""
