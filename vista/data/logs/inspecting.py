"""The first look at a file: its columns by meaning, what their values become, and whether its times can be meant.

From the footer, and from the values of times and of columns whose type does not tell what they hold.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vista.data import paths
from vista.data.arrow import decoded
from vista.data.logs import actions, times
from vista.data.logs.reading import TIME_UNITS, ActionColumn, Bounds, Reading, with_year
from vista.data.logs.schema import (
    BROKEN,
    IMPRESSIONS,
    LINE,
    SECOND,
    TOLD,
    Column,
    LogFile,
    MissingColumn,
    WrongTime,
    WrongType,
    column_name,
    identity,
    kind_of,
    needed,
    open_source,
    parts_of,
    shows,
)

SAMPLE = 10_000
TOLD_KINDS = ("int", "uint", "float", "decimal", "bool", "string", "null", "list of int", "list of string")
FLOAT32_WHOLE = 2**24


def inspect(
    path: str,
    columns: tuple[Column, ...],
    reading: Reading | None = None,
    time_bounds: Bounds = None,
    rows_at: str = "",
    found_names: Sequence[str] = (),
) -> LogFile:
    """Read a file's footer and check what it promises.

    Args:
        columns: :data:`~vista.data.logs.schema.EVENTS`, ``IMPRESSIONS`` or ``ITEMS``.
        time_bounds: least and largest time in milliseconds that a file may lie wholly outside of not.
        rows_at: the log ``path`` as Parquet.
        found_names: all columns that the log has, where ``rows_at`` has some.

    Raises:
        UnreadableFile, MissingColumn, WrongType, WrongTime: naming file, column, expected, found, next command.
    """
    reading = reading or Reading()
    shown = shows(columns)
    columns = needed(columns, reading)
    with open_source(rows_at or path) as file:
        schema = file.schema_arrow
        size, digest = identity(path)
        names = {name: name for name in (LINE, BROKEN) if name in schema.names}
        constants: dict[str, str | None] = dict(reading.constants)
        if not (shown or reading.tells_actions or {"action", "actions"} & reading.columns.keys()):
            _refuse_impressions(path, file)
        _find(path, columns, reading, schema.names, names, constants, found_names)
        told = {m: name for m, name in names.items() if m not in (LINE, BROKEN)}
        kinds = {m: _kind(path, file, m, name, columns, reading) for m, name in told.items()}
        for meaning, value in constants.items():
            kinds.setdefault(meaning, "int" if _is_int(value or "") else "string")
        rows = file.metadata.num_rows
        if "timestamp_ms" in names and rows:
            _check_times(path, file, names, kinds, reading, time_bounds)
        groups = tuple(file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups))
        return LogFile(str(path), size, digest, rows, groups, names, kinds, rows_at, constants, shows=shown)


def _is_int(value: str) -> bool:
    return value.lstrip("-").isdecimal() and str(int(value)) == value


def _find(
    path: str,
    columns: Sequence[Column],
    reading: Reading,
    there: Sequence[str],
    names: dict[str, str],
    constants: dict[str, str | None],
    found_names: Sequence[str],
) -> None:
    """Fill in names of columns by meaning, and the constants that stand in the path.

    Raises:
        MissingColumn: tells all that are not there at once, and what may be meant.
    """
    folders = paths.partitions(path)
    missing: list[tuple[Column, str]] = []
    told = [Column(TOLD + a.name, TOLD_KINDS, True, f"of action {a.name}") for a in reading.actions]
    for column in (*columns, *(told if any(c.name == "user_id" for c in columns) else ())):
        if column.name in reading.constants:
            continue
        if column.name.startswith(TOLD):
            name, mapped = next(a.column for a in reading.actions if TOLD + a.name == column.name), True
        else:
            name, mapped = column_name(column, reading.columns, there)
        parts = [name] if name in there else parts_of(name)
        twice = [p for p in parts if list(there).count(p) > 1]
        if twice:
            raise MissingColumn(
                f"{path}: expected one column {twice[0]!r} ({column.says}), found it twice in {_listed(there)}; rename "
                f"one, or name another with vista ingest {option_of(columns)} {column.name}=NAME"
            )
        if all(p in there for p in parts):
            names[column.name] = parts[0]
            if len(parts) > 1:
                names[SECOND] = parts[1]
        elif name in folders and not column.name.startswith(TOLD):
            constants[column.name] = folders[name]
        elif column.required or mapped:
            in_file = found_names or there
            missing.append((column, next((p for p in parts if p not in in_file), parts[0])))
    if missing:
        in_file = found_names or [n for n in there if n not in (LINE, BROKEN)]
        _refuse(path, missing, in_file, option_of(columns), reading)


def are_impressions(there: Collection[str], actions: Sequence[Any]) -> bool:
    """Whether rows are what was shown: all columns of impressions by their own names, and some without an action.

    Args:
        actions: first values of the column ``actions``.
    """
    named = all(c.name in there for c in IMPRESSIONS if c.required) and "action" not in there
    return named and any(isinstance(v, list) and not v for v in actions)


def option_of(columns: Sequence[Column]) -> str:
    """The option that names columns of such files."""
    if shows(columns):
        return "--impression-column"
    return "--column" if any(c.name == "user_id" for c in columns) else "--item-column"


def _refuse(
    path: str, missing: Sequence[tuple[Column, str]], there: Sequence[str], option: str, reading: Reading
) -> None:
    guesses = []
    for column, _ in missing:
        guess = guessed(column, there)
        if column.name.startswith(TOLD):
            guesses.append(f"--action-column {column.name.removeprefix(TOLD)}={guess or there[0]}")
        elif guess:
            guesses.append(f"{option} {column.name}={guess}")
    lacks = ", ".join(f"{name!r} ({column.says})" for column, name in missing)
    example = " ".join(guesses) or f"{option} {missing[0][0].name.removeprefix(TOLD)}=NAME"
    if reading.header and option == "--column":
        example = (
            "--header user_id,item_id,action,timestamp_ms (a name for every column, - for one of no meaning)"
        )
    flags = [c for c in there if re.match(r"(is|has)_|(like|click|share)$", c, re.I)]
    if flags and any(c.name == "action" for c, _ in missing):
        example += f" --action-column {flags[0].lower().removeprefix('is_')}={flags[0]}"
    elif any(c.name == "action" for c, _ in missing) and "action=" not in example:
        example += " --action-is view"
    raise MissingColumn(
        f"{path}: expected {'one column' if len(missing) == 1 else 'columns'} {lacks}, found {_listed(there)}; name "
        f"{'the right one' if len(missing) == 1 else 'the right ones'} with vista ingest {example}, or let vista init "
        f"guess them"
    )


def _refuse_impressions(path: str, file: pq.ParquetFile) -> None:
    """Raises MissingColumn where the rows are impressions; whoever names their actions means events."""
    there = file.schema_arrow.names
    if not are_impressions(there, [[]]):
        return
    batch = next(file.iter_batches(SAMPLE, columns=["actions"]), None)
    if batch is not None and are_impressions(there, batch.column(0).to_pylist()):
        raise MissingColumn(
            f"{path}: expected events, found impressions: rows without an action among {_listed(there)}; take them in "
            f"as such with vista ingest --impressions {path}, or the others as events with --column action=actions"
        )


def guessed(column: Column, there: Collection[str]) -> str:
    """The column that a meaning most likely has, or empty."""
    plain = {_plainly(name): name for name in there}
    for name in there:
        plain.setdefault(_plainly(name.rpartition(".")[2]), name)  # user.id, where no column is called id
    for likely in (column.name, *column.likely):
        if (found := _plainly(likely)) in plain:
            return plain[found]
    near = difflib.get_close_matches(column.name.replace("_", ""), plain, 1, 0.75)
    return plain[near[0]] if near else ""


def _plainly(name: str) -> str:
    return re.sub(r"[_\-. ]", "", name.split(":")[0].lower())


def _listed(names: Sequence[str]) -> str:
    shown = [str(n)[:80] for n in names[:40]]
    return f"{shown}" + (f" and {len(names) - 40} more" if len(names) > 40 else "")


# What values become --------------------------------------------------------------------------------------------


def _kind(
    path: str, file: pq.ParquetFile, meaning: str, name: str, columns: Sequence[Column], reading: Reading
) -> str:
    """What a column's values become.

    Raises:
        WrongType: they do not fit the meaning.
    """
    type_ = file.schema_arrow.field(name).type
    kind, told = kind_of(type_), meaning.startswith(TOLD)
    if pa.types.is_time(type_) and meaning == SECOND:
        return "time"
    column = next((c for c in columns if c.name == meaning), None)
    fits = TOLD_KINDS if told else column.kinds if column else ("int", "string", "null")
    if told and kind == "string":
        _check_told(path, file, name, next(a for a in reading.actions if TOLD + a.name == meaning))
    if kind not in fits:
        says = "a number, a truth value or a list" if column is None else column.says
        listed = str(kind or type_).startswith(("list", "vector", "large_list"))
        raise WrongType(
            f"{path}: column {name!r}: expected {says}, found {type_}"
            f"{' (lists: one row for each element with --explode)' if listed else ''}; cast the column, or name "
            f"another with vista ingest {option_of(columns)} {meaning.removeprefix(TOLD)}=NAME"
        )
    if told or meaning == "timestamp_ms" or kind not in ("float", "uint", "decimal", "bool"):
        return kind
    if kind == "bool":
        return "int"
    if kind == "float":
        ids = meaning in ("user_id", "item_id", "request_id")
        return "int" if ids or all(_whole(values) for values in _values(file, name)) else "string"
    return "int" if all(_fits_int64(values) for values in _values(file, name)) else "string"


def _first_texts(file: pq.ParquetFile, name: str) -> pa.Array:
    """The first values of a column of text that are there; none of bytes that are no text: these cost their rows
    alone."""
    batch = next(file.iter_batches(SAMPLE, columns=[name]), None)
    with suppress(pa.ArrowInvalid):
        if batch is not None:
            return decoded(batch.column(0)).drop_null().cast(pa.string())
    return pa.array([], pa.string())


def _check_told(path: str, file: pq.ParquetFile, name: str, action: ActionColumn) -> None:
    """Raises WrongType for a column of text that tells no action in the first rows."""
    column = _first_texts(file, name)
    _, wrong = actions.told(column, action, pa.nulls(len(column)))
    if 2 * int(wrong.sum()) > len(column):
        value = column[int(np.argmax(wrong))].as_py()[:80]
        raise WrongType(
            f"{path}: column {name!r} (--action-column {action.name}={action}): expected 0/1, true/false or numbers, "
            f"found most values like {value!r}; for example --action-column '{action.name}={action.column}=={value}'"
        )


def _values(file: pq.ParquetFile, name: str) -> Iterator[pa.Array]:
    for batch in file.iter_batches(1 << 20, columns=[name]):
        column = batch.column(0)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary
        yield column.drop_null()


def _whole(values: pa.Array) -> bool:
    found = values.to_numpy(zero_copy_only=False)
    found = found[~np.isnan(found)]
    return bool((np.isfinite(found) & (found == np.rint(found))).all())


def _fits_int64(values: pa.Array) -> bool:
    try:
        values.cast(pa.int64())
    except pa.ArrowInvalid:
        return False
    return True


# Times -----------------------------------------------------------------------------------------------------------


def _check_times(
    path: str,
    file: pq.ParquetFile,
    names: Mapping[str, str],
    kinds: Mapping[str, str],
    reading: Reading,
    bounds: Bounds,
) -> None:
    """Refuse a file whose times cannot be what they are said to be.

    Raises:
        WrongType, WrongTime.
    """
    name, kind = names["timestamp_ms"], kinds["timestamp_ms"]
    type_ = file.schema_arrow.field(name).type
    if kind == "duration" and not reading.time_from:
        raise WrongType(
            f"{path}: column {name!r}: expected times, found {type_}, which counts from a start that the file does not "
            f"tell; say it with vista ingest --time-from 2020-01-01"
        )
    if SECOND in names or kind == "null":
        return
    if kind == "string" or (kind == "int" and reading.time_format):
        _check_text(path, file, name, reading)
        return
    found = column_bounds(file, name)
    if found is not None and pa.types.is_floating(type_) and type_.bit_width < 64:
        most = FLOAT32_WHOLE if type_.bit_width == 32 else 2**11
        if max(map(abs, found)) > most:
            raise WrongTime(
                f"{path}: column {name!r}: expected times of full precision, found {type_}, which holds whole numbers "
                f"to {most} alone: times that differ are one here; write the column as int64 or float64"
            )
    if found is None or bounds is None:
        return
    if pa.types.is_timestamp(type_):
        _check_bounds(path, name, found, bounds, type_.unit, 0)
    elif not pa.types.is_date(type_):
        unit = type_.unit if kind == "duration" else reading.time_unit
        _check_bounds(path, name, found, bounds, unit, reading.start_ms)


def _check_text(path: str, file: pq.ParquetFile, name: str, reading: Reading) -> None:
    column = _first_texts(file, name)
    _, wrong = times.parsed(column, reading.time_format, reading.time_unit)
    if 2 * int(wrong.sum()) > len(column):
        refuse_text(path, name, [v for v, w in zip(column.to_pylist(), wrong, strict=True) if w], reading)


def refuse_text(path: str, name: str, samples: Sequence[str], reading: Reading) -> None:
    """Raises WrongTime for a column of text most of which is no time."""
    form, short = times.suggested(list(samples[:100])), times.yearless(list(samples[:100]))
    if short and not form:
        raise WrongTime(
            f"{path}: column {name!r}: expected times with a year, found values like {samples[0][:80]!r}; write the "
            f"year into the column, and read it with vista ingest --time-format {with_year(short)!r}"
        )
    help_ = f"this would read them: vista ingest --time-format '{form}'" if form else (
        "say their format with vista ingest --time-format '%m/%d/%Y %H:%M:%S'"
    )  # fmt: skip
    wanted = f"times as {reading.time_format!r}" if reading.time_format else "ISO 8601 times or numbers"
    raise WrongTime(
        f"{path}: column {name!r}: expected {wanted}, found most values like {samples[0][:80]!r}; {help_}"
    )


def column_bounds(file: pq.ParquetFile, name: str) -> tuple[int, int] | None:
    """Least and largest value of a column of numbers or times (or of a list's ints), times in their unit; None where
    there is none, or pages cannot be read. By the values: asked for statistics, a footer can end the process."""
    low, high = math.inf, -math.inf
    try:
        for values in _values(file, name):
            if pa.types.is_nested(values.type):
                values = values.flatten().drop_null()
            if pa.types.is_temporal(values.type):
                values = values.view(f"int{values.type.bit_width}")
            if not pa.types.is_integer(values.type) and not pa.types.is_floating(values.type):
                return None
            found = values.to_numpy(zero_copy_only=False)
            found = found[np.isfinite(found)]
            if len(found):
                low, high = min(low, found.min().item()), max(high, found.max().item())
    except (OSError, ValueError, pa.ArrowException):
        return None
    return (int(low), int(high)) if low <= high else None


def _check_bounds(
    path: str, name: str, found: tuple[int, int], bounds: tuple[int, int], unit: str, start: int
) -> None:
    """Refuse a file none of whose times is within the bounds."""

    def within(unit: str, start: int = start) -> bool:
        factor = TIME_UNITS[unit]
        return found[1] * factor + start >= bounds[0] and found[0] * factor + start <= bounds[1]

    if within(unit):
        return
    fitting = [unit for unit in TIME_UNITS if within(unit)]
    guess = f"These would fit vista ingest --time-unit {fitting[0]}; else convert" if fitting else "Convert"
    if not fitting and found[0] >= 0 and within(unit, bounds[0]):
        guess = (
            "Numbers that count from a start of their own fit vista ingest --time-from 2020-01-01 (the date that they "
            "count from; any will do where it is not known); else convert"
        )
    raise WrongTime(
        f"{path}: column {name!r}: expected times in {unit} between {date(bounds[0])} and {date(bounds[1])}, "
        f"found {found[0]} to {found[1]}. {guess} the column, or set vista ingest --min-time and --max-time"
    )


def date(ms: int) -> str:
    """A bound for people."""
    try:
        return f"{ms / 1000:.0f} s ({datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d})"
    except (ValueError, OverflowError, OSError):
        return f"{ms / 1000:.0f} s (beyond the year 9999)"
