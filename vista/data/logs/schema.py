"""What logs must look like, and what is found in a file: columns by meaning, their Arrow kinds, the first check.

Checked here, from the footer alone and before anything is written: the file opens, the columns are there under
their (mapped) names, their types fit, and the times are not of another unit altogether. What single rows hold is
checked on reading (vista/data/logs/importer.py).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from vista.data import paths
from vista.errors import DataError

MIN_TIME_MS = 631_152_000_000
"""1990-01-01; seconds taken for milliseconds fall in 1970."""

CLOCK_SKEW_MS = 86_400_000
"""Events may be this much later than the clock of the run (one day)."""

DIGEST_BYTES = 1 << 24

LINE, BROKEN = "__line", "__broken"
"""Columns of a text log's rows (vista/data/logs/text.py): its line, and what is wrong with it (null where nothing)."""

TIME_UNITS: dict[str, float] = {"s": 1e3, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
"""Milliseconds in a unit of time."""


class UnreadableFile(DataError):
    """A file cannot be opened as Parquet, or some of its pages cannot be read."""


class MissingColumn(DataError):
    """A file lacks a column that is needed."""


class WrongType(DataError):
    """A column has a type that does not fit its meaning, or another one than the other files or the table."""


class WrongTime(DataError):
    """All times of a file lie outside the bounds: another unit, most likely."""


@dataclass(frozen=True)
class Column:
    """One column by meaning. ``kinds`` are those of :func:`kind_of` that fit."""

    name: str
    kinds: tuple[str, ...]
    required: bool
    says: str


EVENTS: tuple[Column, ...] = (
    Column("user_id", ("int", "string"), True, "int64 or string"),
    Column("item_id", ("int", "string"), True, "int64 or string"),
    Column(
        "action",
        ("int", "string", "list of int", "list of string"),
        True,
        "an int below 31, a string, or a list",
    ),
    Column("surface", ("int", "string"), False, "int or string"),
    Column(
        "timestamp_ms", ("int", "float", "timestamp"), True, "a number (--time-unit), or an Arrow timestamp"
    ),
    Column("request_id", ("int", "string"), False, "int64 or string"),
)
IMPRESSIONS: tuple[Column, ...] = (
    Column("request_id", ("int", "string"), True, "int64 or string"),
    Column("user_id", ("int", "string"), True, "int64 or string"),
    Column("item_id", ("int", "string"), True, "int64 or string"),
    Column("position", ("int",), True, "int, 0 at the top"),
    Column(
        "actions", ("int", "string", "list of int", "list of string"), True, "a list, empty where not engaged"
    ),
    Column(
        "timestamp_ms", ("int", "float", "timestamp"), False, "a number (--time-unit), or an Arrow timestamp"
    ),
)
ITEMS: tuple[Column, ...] = (
    Column("item_id", ("int", "string"), True, "int64 or string"),
    Column("name", ("string",), False, "string"),
)
ALIASES = {"action": "actions", "actions": "action", "timestamp_ms": "timestamp"}
"""A column that is not mapped and not there under its name may be there under this one."""


def kind_of(type_: pa.DataType) -> str | None:
    """``int``, ``float``, ``string``, ``timestamp``, ``list of int``, ``list of string``, or None for what never fits.

    Dictionaries count as their values; uint64 does not fit, as half of it is outside int64.
    """
    if pa.types.is_dictionary(type_):
        return kind_of(type_.value_type)
    if pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
        inner = kind_of(type_.value_type)
        return f"list of {inner}" if inner in ("int", "string") else None
    if pa.types.is_integer(type_) and not pa.types.is_uint64(type_):
        return "int"
    if pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return "string"
    if pa.types.is_floating(type_):
        return "float"
    return "timestamp" if pa.types.is_timestamp(type_) else None


@dataclass(frozen=True)
class Source:
    """One input file as its footer describes it; plain values, JSON-able, so it can be sent to a worker.

    Attributes:
        path: URI.
        bytes, digest: its identity (digest: XXH3-128 of size and footer).
        rows: in all.
        groups: rows of each row group.
        names: meaning to column name in the file, for the columns that are there.
        kinds: meaning to kind.
        rows_at: where the rows are as Parquet, if ``path`` is a text log.
    """

    path: str
    bytes: int
    digest: str
    rows: int
    groups: tuple[int, ...]
    names: dict[str, str]
    kinds: dict[str, str]
    rows_at: str = ""

    @property
    def data(self) -> str:
        """The Parquet file to read."""
        return self.rows_at or self.path


def column_name(column: Column, mapping: Mapping[str, str], available: Collection[str]) -> tuple[str, bool]:
    """(what a column is called in a file, whether the mapping says so)."""
    name = mapping.get(column.name) or mapping.get(ALIASES.get(column.name, ""))
    if name is not None:
        return name, True
    other = ALIASES.get(column.name)
    return (other if column.name not in available and other in available else column.name), False


def check_mapping(mapping: Mapping[str, str], columns: tuple[Column, ...]) -> None:
    """Raises DataError where a mapping names a meaning that there is not."""
    known = [c.name for c in columns]
    unknown = sorted(set(mapping) - set(known) - {ALIASES[k] for k in known if k in ALIASES})
    if unknown:
        raise DataError(
            f"column mapping: expected names among {', '.join(known)}, found {', '.join(unknown)}; "
            f"see vista ingest --help"
        )


def open_source(path: str) -> pq.ParquetFile:
    """Raises UnreadableFile."""
    try:
        return pq.ParquetFile(paths.open_input(path))
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnreadableFile(
            f"{path}: expected a readable Parquet file, or a text log by its name ({', '.join(paths.TEXT_ENDINGS)}, "
            f"also .gz), found: {reason}; rename, replace or leave out the file, or run vista ingest --skip-bad-files"
        ) from error


def identity(path: str) -> tuple[int, str]:
    """(bytes, XXH3-128 hex of size and content), all of it: what a footer tells may be the same for other rows."""
    size = paths.size(path)
    digest = xxhash.xxh3_128(size.to_bytes(8, "big"))
    with paths.open_input(path) as file:
        while block := file.read(DIGEST_BYTES):
            digest.update(block)
    return size, digest.hexdigest()


def inspect(
    path: str,
    columns: tuple[Column, ...],
    mapping: Mapping[str, str],
    time_bounds: tuple[int, int] | None = None,
    time_unit: str = "ms",
    rows_at: str = "",
) -> Source:
    """Read a file's footer and check what it promises.

    Args:
        columns: :data:`EVENTS` or :data:`IMPRESSIONS`.
        mapping: meaning to column name, where they differ.
        time_bounds: least and largest time in milliseconds that a file may lie wholly outside of not.
        time_unit: of times that are numbers, one of :data:`TIME_UNITS`.
        rows_at: the text log ``path`` as Parquet.

    Raises:
        UnreadableFile, MissingColumn, WrongType, WrongTime: naming file, column, expected, found, next command.
    """
    with open_source(rows_at or path) as file:
        metadata, schema = file.metadata, file.schema_arrow
        size, digest = identity(path)
        there = [name for name in schema.names if name not in (LINE, BROKEN)]
        names = {name: name for name in (LINE, BROKEN) if name in schema.names}
        kinds: dict[str, str] = {}
        for column in columns:
            name, mapped = column_name(column, mapping, schema.names)
            if schema.names.count(name) != 1:
                if column.required or mapped:
                    raise MissingColumn(
                        f"{path}: expected one column {name!r} ({column.says}), found {there}; "
                        f"name the right one with vista ingest --column {column.name}=NAME"
                    )
                continue
            kind = kind_of(schema.field(name).type)
            if kind not in column.kinds:
                raise WrongType(
                    f"{path}: column {name!r}: expected {column.says}, found {schema.field(name).type}; cast the "
                    f"column, or name another with vista ingest --column {column.name}=NAME"
                )
            names[column.name], kinds[column.name] = name, kind
        groups = tuple(metadata.row_group(g).num_rows for g in range(metadata.num_row_groups))
        if time_bounds is not None and "timestamp_ms" in names and kinds["timestamp_ms"] in ("int", "float"):
            _check_times(path, names["timestamp_ms"], metadata, time_bounds, time_unit)
    return Source(str(path), size, digest, metadata.num_rows, groups, names, kinds, rows_at)


def column_bounds(metadata: pq.FileMetaData, name: str) -> tuple[int, int] | None:
    """Least and largest value of an int column (or of a list's ints) by the footer; None where it does not tell."""
    low = high = None
    for g in range(metadata.num_row_groups):
        group = metadata.row_group(g)
        for c in range(group.num_columns):
            chunk = group.column(c)
            if chunk.path_in_schema.split(".", 1)[0] != name or not group.num_rows:
                continue
            stats = chunk.statistics
            if stats is None or not stats.has_min_max:
                if stats is not None and stats.has_null_count and stats.null_count == chunk.num_values:
                    continue
                return None
            low = stats.min if low is None else min(low, stats.min)
            high = stats.max if high is None else max(high, stats.max)
    if low is None or high is None or not math.isfinite(low) or not math.isfinite(high):
        return None
    return int(low), int(high)


def _check_times(
    path: str, name: str, metadata: pq.FileMetaData, bounds: tuple[int, int], time_unit: str
) -> None:
    """Refuse a file none of whose times is within the bounds."""
    found = column_bounds(metadata, name)

    def within(unit: str) -> bool:
        factor = TIME_UNITS[unit]
        return found[1] * factor >= bounds[0] and found[0] * factor <= bounds[1]

    if found is None or within(time_unit):
        return
    fitting = [unit for unit in TIME_UNITS if within(unit)]
    guess = f"These would fit vista ingest --time-unit {fitting[0]}; else convert" if fitting else "Convert"
    raise WrongTime(
        f"{path}: column {name!r}: expected times in {time_unit} between {_date(bounds[0])} and {_date(bounds[1])}, "
        f"found {found[0]} to {found[1]}. {guess} the column, or set vista ingest --min-time and --max-time"
    )


def _date(ms: int) -> str:
    return f"{ms / 1000:.0f} s ({datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d})"
