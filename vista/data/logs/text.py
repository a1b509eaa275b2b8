"""Logs that are text (CSV, TSV, JSON lines; also compressed) to Parquet, before anything looks at them.

    log.csv.gz ──draft──▶ every column as text, and what its values are ──typed──▶ columns of a kind each

Two passes, since nobody knows before the last line whether a column is numbers all through. A broken line (too many or
too few fields, no JSON object, a value that does not fit its column's kind) stays a row: the columns ``LINE`` and
``BROKEN`` say which line and why, and the importer sets it aside like any other bad row. What a column is, only rows
say that will be taken: those with a user, an item and a time within the bounds.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vista.data import paths
from vista.data.arrow import valid
from vista.data.logs import times
from vista.data.logs.csv_rows import QuotesAreText, csv_rows
from vista.data.logs.exploding import explode_all
from vista.data.logs.facts import Facts
from vista.data.logs.json_rows import json_rows
from vista.data.logs.reading import TIME_UNITS, Bounds, Reading
from vista.data.logs.schema import (
    BROKEN,
    KEPT,
    LINE,
    Column,
    UnreadableFile,
    column_name,
    needed,
    parts_of,
    said,
    wanted_names,
    write_rows,
)

BATCH_ROWS = 65_536
SAMPLES = 100

INTEGER = r"^(0|-?[1-9][0-9]{0,18})(\.0)?$"
"""As a program writes an integer: ``007`` and ``+7`` are names. ``7.0`` is how pandas writes one in a column where
some are missing."""
NUMBER = times.NUMBER


def draft(
    path: str, target: str, columns: Sequence[Column], reading: Reading, bounds: Bounds = None
) -> Facts:
    """Write a text log as Parquet with every column that may be needed as text (which need not be UTF-8), ``LINE`` and
    ``BROKEN``.

    Args:
        columns: what the rows hold.
        bounds: least and largest time of rows that will be taken, in milliseconds.

    Raises:
        UnreadableFile: it cannot be opened or decompressed, or has no header.
    """
    facts = Facts()
    ending = paths.text_ending(path)
    wanted = wanted_names(columns, reading)
    count = partial(_count, facts, needed(columns, reading), reading, bounds)
    try:
        if not paths.size(path):
            raise ValueError("nothing, not even a header")
        if ending in paths.JSON_ENDINGS:
            with paths.open_text(path, reading.encoding) as stream:
                named = {c.name: column_name(c, reading.columns, ())[0] for c in columns}
                ids = [named[name] for name in ("user_id", "item_id") if name in named]
                rows = json_rows(stream, sorted(wanted), facts, reading, ids, ending == ".json")
                write_rows(target, map(count, rows))
            facts.values = {n: v for n, v in facts.values.items() if n in facts.names}
        else:
            for quotes in (reading.quotes, False):
                facts.__init__()  # type: ignore[misc]
                with paths.open_text(path, reading.encoding) as stream, suppress(QuotesAreText):
                    rows = csv_rows(stream, ending, wanted, facts.names, reading, quotes)
                    write_rows(target, map(count, explode_all(rows, reading)))
                    break
    except (*paths.UNREADABLE, pa.ArrowException) as error:
        if paths.is_full(error):
            raise
        raise UnreadableFile(
            f"{path}: expected a readable text log, as its name ends, found: {said(error)}; replace or leave out "
            f"the file, or run vista ingest --skip-bad-files"
        ) from error
    return facts


def typed(source: str, target: str, kinds: Mapping[str, str], reading: Reading) -> None:
    """Write a draft with its columns in their kinds; a value that does not fit breaks its line.

    Args:
        kinds: by column of the draft that is to stay: ``int``, ``float``, ``time``, ``list of int``, ``list of
            string``, ``vector`` or ``string``.
    """
    with pq.ParquetFile(source) as file:
        names = [*kinds, LINE, BROKEN]
        empty = pa.RecordBatch.from_pylist([], file.schema_arrow).select(names)
        batches = (_cast(batch, kinds, reading) for batch in file.iter_batches(BATCH_ROWS, columns=names))
        write_rows(target, itertools.chain([_cast(empty, kinds, reading)], batches))


# What values are -------------------------------------------------------------------------------------------------


def _count(
    facts: Facts, columns: Sequence[Column], reading: Reading, bounds: Bounds, batch: pa.RecordBatch
) -> pa.RecordBatch:
    """Add a batch of text to the facts."""
    present = [n for n in batch.schema.names if n not in (LINE, BROKEN)]
    there = facts.names or present
    names = {c.name: column_name(c, reading.columns, there)[0] for c in columns}
    before = list(facts.times)
    taken = _taken(facts, batch, names, reading, bounds)
    time = names.get("timestamp_ms", "")
    counted = [now - then for now, then in zip(facts.times, before, strict=True)]
    whole = bool(taken.all())
    facts.taken += int(taken.sum())
    for name in present:
        column = batch.column(name)
        if not whole:
            column = column.filter(pa.array(taken))
        values = len(column) - column.null_count
        if whole and name == time and counted[1] == values:  # looked at already
            integers = values
        else:
            integers = matching(column, INTEGER) if values else 0
        numbers = integers if integers == values else matching(column, NUMBER)
        if integers == values and values and pc.max(pc.binary_length(column)).as_py() >= 19:
            integers = _within_int64(column)
        for counts, n in ((facts.values, values), (facts.integers, integers), (facts.numbers, numbers)):
            counts[name] = counts.get(name, 0) + n
    return batch


def _within_int64(column: pa.Array) -> int:
    values = column.drop_null()
    try:
        pc.replace_substring_regex(values, r"\.0$", "").cast(pa.int64())
        return len(values)
    except pa.ArrowInvalid:
        return sum(-(2**63) <= int(v.removesuffix(".0")) < 2**63 for v in values.to_pylist())


def _taken(
    facts: Facts, batch: pa.RecordBatch, names: Mapping[str, str], reading: Reading, bounds: Bounds
) -> np.ndarray:
    """bool [N]: rows with a user, an item and a time that can be meant."""
    taken, present = ~valid(batch.column(BROKEN)), batch.schema.names
    for meaning in ("user_id", "item_id"):
        if (name := names.get(meaning)) in present and batch.column(name).null_count:
            taken = taken & valid(batch.column(name))
    parts = [] if reading.by_order else parts_of(names.get("timestamp_ms", ""))
    if not parts or any(p not in present for p in parts):
        return taken
    column = batch.column(parts[0])
    if column.null_count == len(column) and parts[0] not in facts.names:
        return taken  # a column of JSON that may be there, and is not
    values = len(column) - column.null_count
    integers = matching(column, INTEGER) if values and not reading.time_format else 0
    numbers = matching(column, NUMBER) if integers < values and not reading.time_format else integers
    read = numbers
    there = valid(column)
    if numbers == values and len(parts) == 1 and values:
        try:
            exact = integers == values and not pc.any(pc.ends_with(column, ".0")).as_py()
            raw = pc.fill_null(column.cast(pa.int64() if exact else pa.float64()), 0).to_numpy()
        except pa.ArrowInvalid:
            raw = np.array([float(v or 0) for v in column.to_pylist()])
        with np.errstate(over="ignore"):  # what is infinite is out of bounds
            ms = raw.astype(np.float64) * TIME_UNITS[reading.time_unit] + reading.start_ms
    else:
        second = _text(batch.column(parts[1])) if len(parts) > 1 else None
        ms, _, unread = times.milliseconds(_text(column), reading, second)
        there &= ~unread
        read = int(there.sum())
        if unread.any() and len(facts.samples) < SAMPLES:
            some = batch.column(parts[0]).filter(pa.array(unread)).slice(0, SAMPLES)
            facts.samples += [v[:KEPT] for v in _text(some).to_pylist() if v]
    for i, n in enumerate((values, integers, numbers, read)):
        facts.times[i] += n
    if bounds is not None:
        there = there & (ms >= bounds[0]) & (ms <= bounds[1])
    return taken & there


def _text(column: pa.Array) -> pa.Array:
    """The column as valid text: bytes that are none are replaced."""
    try:
        column.validate(full=True)
        return column
    except pa.ArrowInvalid:
        raw = column.view(pa.binary()).to_pylist()
        return pa.array([None if v is None else v.decode(errors="replace") for v in raw], pa.string())


def matching(column: pa.Array, pattern: str) -> int:
    """How many values of a column of text match."""
    return pc.sum(pc.match_substring_regex(column, pattern)).as_py() or 0


# Kinds -------------------------------------------------------------------------------------------------------


def _cast(batch: pa.RecordBatch, kinds: Mapping[str, str], reading: Reading) -> pa.RecordBatch:
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    broken: list[str | None] | None = None
    for name, kind in kinds.items():
        if kind == "string":
            continue
        column = columns[name]
        if kind == "time":
            text = _text(column)
            columns[name], wrong = times.parsed(text, reading.time_format, reading.time_unit)
            says = f"a time as {reading.time_format!r}" if reading.time_format else "an ISO 8601 time"
        else:
            convert, says = CASTS[kind]
            columns[name], wrong = convert(column)
        if not wrong.any():
            continue
        broken = columns[BROKEN].to_pylist() if broken is None else broken
        for i in np.flatnonzero(wrong).tolist():
            value = column.view(pa.binary())[i].as_py()[: 4 * KEPT].decode(errors="replace")[:KEPT]
            broken[i] = broken[i] or f"{name}: expected {says}, found {value!r}"
    if broken is not None:
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


def _cast_by(pattern: str, type_: pa.DataType, slow: Callable[[bytes], Any]) -> Any:
    """A cast of whole columns, and value by value where one does not fit."""

    def convert(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
        values = column.drop_null().view(pa.binary())
        cut = pattern == NUMBER and matching(values, times.CUT)
        if not cut and matching(values, pattern) == len(values):
            if pattern == INTEGER and pc.any(pc.ends_with(column, ".0")).as_py():
                column = pc.replace_substring_regex(column, r"\.0$", "")
            with suppress(pa.ArrowInvalid):
                return column.cast(type_), np.zeros(len(column), bool)
        return _by_value(slow, type_)(column)

    return convert


def _integer(value: bytes) -> int:
    text = value.decode().removesuffix(".0")
    if str(int(text)) != text:
        raise ValueError(text)
    return int(text)


def _float(value: bytes) -> float:
    if re.match(times.CUT, value.decode()):
        raise ValueError("a number cut to its first digits")
    return float(value)


def _list(value: bytes) -> list[Any]:
    """Of one value that is no list, the list of it."""
    found = json.loads(value)
    return found if isinstance(found, list) else [found]


def _vectors(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Lists of numbers, as JSON or with spaces, commas, semicolons or bars between."""
    found: list[np.ndarray | None] = []
    wrong = np.zeros(len(column), bool)
    for i, value in enumerate(column.view(pa.binary()).to_pylist()):
        try:
            words = [] if value is None else re.split(rb"[\s,;|]+", value.strip(b"[](){} \t\r"))
            found.append(None if value is None else np.array([w for w in words if w]).astype(np.float64))
        except ValueError:
            found.append(None)
            wrong[i] = True
    return pa.array(found, pa.list_(pa.float64())), wrong


def _list_of_text(value: bytes) -> list[str | None]:
    if not value.startswith(b"["):
        return [value.decode()]
    return [v if v is None or isinstance(v, str) else json.dumps(v) for v in _list(value)]


CASTS: dict[str, tuple[Callable[[pa.Array], tuple[pa.Array, np.ndarray]], str]] = {
    "int": (_cast_by(INTEGER, pa.int64(), _integer), "an integer"),
    "float": (_cast_by(NUMBER, pa.float64(), _float), "a number"),
    "list of int": (_by_value(_list, pa.list_(pa.int64())), "a list of integers"),
    "list of string": (_by_value(_list_of_text, pa.list_(pa.string())), "a list"),
    "vector": (_vectors, "a list of numbers"),
}
"""Kind to its cast (text to the values and bool [N]: which did not fit) and what it expects."""
