"""What logs must look like, and what is found in a file: columns by meaning, their Arrow kinds, the first check.

Checked here, from the footer alone and before anything is written: the file opens, the columns are there under
their (mapped) names, their types fit, and the times are not of another unit altogether. What single rows hold is
checked on reading (vista/data/logs/importer.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from vista.data import paths
from vista.data.logs.reading import Reading
from vista.errors import DataError

MIN_TIME_MS = 631_152_000_000
"""1990-01-01; seconds taken for milliseconds fall in 1970."""

CLOCK_SKEW_MS = 86_400_000
"""Events may be this much later than the clock of the run (one day)."""

DIGEST_BYTES = 1 << 24

KEPT = 500
"""Characters of a broken line or value that are kept."""

LINE, BROKEN = "__line", "__broken"
"""Columns of a text log's rows (vista/data/logs/text.py): its line, and what is wrong with it (null where nothing)."""


class UnreadableFile(DataError):
    """A file cannot be opened as Parquet, or some of its pages cannot be read."""


class MissingColumn(DataError):
    """A file lacks a column that is needed, or has it twice."""


class WrongType(DataError):
    """A column has a type that does not fit its meaning, or another one than the other files or the table."""


class WrongTime(DataError):
    """All times of a file lie outside the bounds, or are no times: another unit or format, most likely."""


@dataclass(frozen=True)
class Column:
    """One column by meaning. ``kinds`` are those of :func:`kind_of` that fit; ``likely`` names it often has."""

    name: str
    kinds: tuple[str, ...]
    required: bool
    says: str
    likely: tuple[str, ...] = ()


IDS = ("int", "string", "float", "uint", "decimal", "null")
ACTIONS = (*IDS, "bool", "list of int", "list of string")
TIMES = ("int", "float", "uint", "decimal", "timestamp", "duration", "string", "null")
_USER = Column("user_id", IDS, True, "int64 or string", (
    "uid", "userid", "user", "visitorid", "customer_id", "reviewerid", "member_id", "session", "account_id", "uuid",
    "username", "customer", "profile_id", "pid", "client_id", "visitor", "account", "member",
))  # fmt: skip
_ITEM = Column("item_id", IDS, True, "int64 or string", (
    "itemid", "item", "movieid", "videoid", "parent_asin", "asin", "aid", "productid", "product_id", "track_id",
    "article_id", "business_id", "song_id", "video_id", "sku", "stock_code", "book_id", "isbn", "anime_id", "artist_id",
    "document_id", "adgroup_id", "ad_id", "campaign", "game_id", "app_id", "news_id", "recipe_id", "venue_id",
    "location_id", "poi_id", "track_uri", "product", "track", "movie", "book", "article", "reference",
))  # fmt: skip
_TIME = Column("timestamp_ms", TIMES, True, "a number (--time-unit), a time, or text of times", (
    "timestamp", "time", "ts", "time_ms", "event_time", "datetime", "unixreviewtime", "date", "stime", "created_at",
    "event_timestamp", "time_stamp", "event_date", "date_time", "t_dat", "transaction_dt", "transaction_date",
    "order_date", "purchase_date", "date_added", "start_time", "review_time", "timestamp_s", "utc_time",
    "checkin_time", "played_at", "modified_at",
))  # fmt: skip
_REQUEST = Column(
    "request_id", IDS, False, "int64 or string", ("requestid", "impression_id", "session_id", "sequence_id")
)
_ACTION = ("event", "event_type", "action_type", "behavior", "rating", "type", "event_id", "overall", "stars",
           "event_name", "interaction_type", "interaction", "behavior_type", "activity", "score", "kind",
           "verb")  # fmt: skip
EVENTS: tuple[Column, ...] = (
    _USER,
    _ITEM,
    Column("action", ACTIONS, True, "an int below 31, a string, or a list", _ACTION),
    Column(
        "surface", (*IDS, "bool"), False, "int or string", ("tab", "channel", "page", "subdomain", "platform")
    ),
    _TIME,
    _REQUEST,
    Column("position", ("int", "uint", "null"), False, "int, 0 at the top"),
)
IMPRESSIONS: tuple[Column, ...] = (
    Column("request_id", IDS, True, "int64 or string", _REQUEST.likely),
    _USER,
    _ITEM,
    Column("position", ("int", "uint", "null"), True, "int, 0 at the top", ("rank", "place", "pos")),
    Column("actions", ACTIONS, True, "a list, empty where not engaged", ("clicked", "label", "is_click")),
    Column("timestamp_ms", TIMES, False, _TIME.says, _TIME.likely),
)
WORDS = ("string", "int", "bool", "list of string", "list of int", "null")
TEXTS = ("string", "list of string", "null")
VECTORS = ("vector", "list of int", "null")
ITEMS: tuple[Column, ...] = (
    Column("item_id", IDS, True, "int64 or string", _ITEM.likely),
    Column("name", ("string", "null"), False, "string", ("title",)),
    Column(
        "category", WORDS, False, "a string, or a list of them", ("categories", "genres", "genre", "tags")
    ),
    Column("text", TEXTS, False, "a string", ("description", "abstract", "features")),
    Column("vector", VECTORS, False, "a list of numbers", ("embed", "embedding", "vec")),
)
ALIASES = {"action": "actions", "actions": "action", "timestamp_ms": "timestamp"}
"""A column that is not mapped and not there under its name may be there under this one."""

SECOND = "time_of_day"
"""Meaning of the second column of a time in two columns."""

TOLD = "action:"
"""Begins the meaning of a column that tells one action."""


_LISTS = {
    "list of int": ("int", "uint", "null"),
    "list of string": ("string",),
    "vector": ("float", "decimal"),
}


def kind_of(type_: pa.DataType) -> str | None:
    """``int``, ``uint`` (64 bits), ``float``, ``decimal``, ``string`` (binary too), ``bool``, ``timestamp`` (dates
    too), ``duration``, ``null``, ``list of int``, ``list of string``, ``vector`` (list of floats), or None.

    Dictionaries count as their values.
    """
    t = pa.types
    if t.is_dictionary(type_) or t.is_run_end_encoded(type_):
        return kind_of(type_.value_type)
    if t.is_list(type_) or t.is_large_list(type_) or t.is_fixed_size_list(type_):
        inner = kind_of(type_.value_type)
        return next((kind for kind, of in _LISTS.items() if inner in of), None)
    for kind, tests in (
        ("uint", (t.is_uint64,)),
        ("int", (t.is_integer,)),
        ("string", (t.is_string, t.is_large_string, t.is_string_view)),
        ("string", (t.is_binary, t.is_large_binary, t.is_binary_view)),
        ("float", (t.is_floating,)),
        ("decimal", (t.is_decimal,)),
        ("timestamp", (t.is_timestamp, t.is_date)),
        ("duration", (t.is_duration,)),
        ("bool", (t.is_boolean,)),
        ("null", (t.is_null,)),
    ):  # fmt: skip
        if any(test(type_) for test in tests):
            return kind
    return None


@dataclass(frozen=True)
class LogFile:
    """One input file as its footer describes it; plain values, JSON-able, so it can be sent to a worker.

    Attributes:
        path: URI.
        bytes, digest: its identity (digest: XXH3-128 of size and footer).
        rows: in all.
        groups: rows of each row group.
        names: meaning to column name in the file, for the columns that are there.
        kinds: meaning to what the values become: ``int``, ``string``, lists of them, a kind of times, ``null``.
        rows_at: where the rows are as Parquet, if ``path`` is something else.
        constants: meaning to the value of all rows (None: null), from the folders of the path.
        number: of the file in its run.
        first: number of its first row in its run.
        shows: its rows are impressions.
        decides: it has rows that will be taken, so its kinds count.
    """

    path: str
    bytes: int
    digest: str
    rows: int
    groups: tuple[int, ...]
    names: dict[str, str]
    kinds: dict[str, str]
    rows_at: str = ""
    constants: dict[str, str | None] = field(default_factory=dict)
    number: int = 0
    first: int = 0
    shows: bool = False
    decides: bool = True

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
    if other is not None and column.name not in available and other in available:
        return other, False
    return column.name, False


def needed(columns: Sequence[Column], reading: Reading) -> tuple[Column, ...]:
    """The columns of files that are read so: those that a constant, an action for all rows or the order stand for need
    not be there."""
    without = set(reading.constants)
    if reading.tells_actions:
        without |= {"action", "actions"}
    if reading.by_order:
        without |= {"timestamp_ms"}
    if reading.unengaged != "impressions" and not shows(columns):
        columns = [c for c in columns if c.name != "position"]
    return tuple(replace(c, required=c.required and c.name not in without) for c in columns)


def shows(columns: Sequence[Column]) -> bool:
    """Whether files of these columns hold impressions."""
    return any(c.name == "actions" for c in columns)


def wanted_names(columns: Sequence[Column], reading: Reading) -> set[str]:
    """Every name that a column of a file may have."""
    names = {part for c in columns for part in parts_of(column_name(c, reading.columns, ())[0])}
    names |= {ALIASES[c.name] for c in columns if c.name in ALIASES}
    names |= set(reading.constants) | ({reading.sections} - {""})
    return names | {a.column for a in reading.actions}


def parts_of(name: str) -> list[str]:
    return name.split("+") if "+" in name else [name]


def said(error: Exception) -> str:
    """The first line of an error's text, or its name."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


OTHERS = {
    r"\.(zip|tar|tgz|7z|rar)$|\.tar\.\w+$": "an archive; unpack it",
    r"\.(xlsx?|ods)$": "a spreadsheet; save it as CSV",
}
"""Names of files that people have logs in and that are none."""


def open_source(path: str, dictionary: Sequence[str] = ()) -> pq.ParquetFile:
    """Raises UnreadableFile."""
    try:
        return pq.ParquetFile(paths.open_input(path), read_dictionary=list(dictionary) or None)
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = said(error)
        for ending, hint in OTHERS.items():
            if re.search(ending, path.lower()):
                reason = hint
        raise UnreadableFile(
            f"{path}: expected a readable Parquet file, or a log by its name "
            f"({', '.join((*paths.TEXT_ENDINGS, *paths.TABLE_ENDINGS[3:]))}, text also "
            f"{', '.join(paths.COMPRESSED)}), found: {reason}; rename, "
            f"replace or leave out the file, or run vista ingest --skip-bad-files"
        ) from error


def batches(
    file: pq.ParquetFile, most: int, columns: list[str], groups: Sequence[int] | None = None
) -> Iterator[pa.RecordBatch]:
    """Rows of row groups (all by default), at most ``most`` at a time.

    Raises:
        pa.ArrowInvalid: there are fewer than the footer states, where a column has fewer values; or pages are broken.
    """
    groups = list(range(file.metadata.num_row_groups) if groups is None else groups)
    left = sum(file.metadata.row_group(g).num_rows for g in groups)
    for batch in file.iter_batches(most, groups, columns, use_threads=False):
        left -= batch.num_rows
        yield batch
    if left:
        raise pa.ArrowInvalid(f"{left} rows fewer than its footer states: a column has no values for them")


def write_rows(path: str, batches: Iterator[pa.RecordBatch]) -> None:
    """The batches as one Parquet file, whole or not at all; the first batch may be empty."""
    temporary = f"{path}.tmp"
    first = next(batches)
    with pq.ParquetWriter(temporary, first.schema, compression="lz4") as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)
    os.replace(temporary, path)


def identity(path: str) -> tuple[int, str]:
    """(bytes, XXH3-128 hex of size and content), all of it: what a footer tells may be the same for other rows."""
    size = paths.size(path)
    digest = xxhash.xxh3_128(size.to_bytes(8, "big"))
    with paths.open_input(path) as file:
        while block := file.read(DIGEST_BYTES):
            digest.update(block)
    return size, digest.hexdigest()
