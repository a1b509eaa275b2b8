"""Rows of CSV and TSV as batches of text: with or without a header or quotes, with lines that are none."""

from __future__ import annotations

import codecs
import csv as csv_text
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from vista.data import paths
from vista.data.logs.reading import Reading
from vista.data.logs.schema import BROKEN, KEPT, LINE

SEPARATORS = {".tsv": "\t", ".inter": "\t"}
ANY_SEPARATOR = ",;\t|"
"""What may stand between the fields of a file by its name's ending; the one that its first line has most of does.
``::`` is one too, and where there is none of them blanks are."""
WIDE, NARROW = b"::", b"\x1f"
"""Two characters between fields, and what the parser, which takes one, is given for them."""

NULLS = (
    "", "\\N", "NULL", "Null", "null", "(null)", "<null>", "NA", "N/A", "n/a", "#N/A", "<NA>", "nan", "NaN", "NAN",
    "None", "nil", "undefined", "-",
)  # fmt: skip
"""How programs write that there is no value."""

HEAD = 1 << 20
MAX_COLUMNS = 10_000


class QuotesAreText(Exception):
    """A quote in a field that no quotes enclose: the file is to be read again without quotes."""


def csv_rows(
    stream: Any, ending: str, wanted: Container[str], found: list[str], reading: Reading, quotes: bool | None
) -> Iterator[pa.RecordBatch]:
    """Batches of the wanted columns as text, with ``LINE`` and ``BROKEN``.

    Args:
        found: takes the names of all columns.
        quotes: whether quotes enclose fields; None looks.

    Raises:
        ValueError: no header, a column twice in it, a record without its end.
        QuotesAreText: found on the way (``quotes`` None).
    """
    stream = _Utf8(stream)
    head = stream.read(HEAD)
    while len(head) < HEAD and (more := stream.read(HEAD - len(head))):
        head += more
    names, separator, head = _header(head, ending, reading)
    found[:] = names
    tabs = separator == "\t"
    guessed = quotes is None and tabs
    if quotes is None:
        quotes = ending != ".inter" and not (tabs and _quotes_are_text(head))
    guessed = guessed and quotes
    one_line = guessed and not re.search(rb'(^|[\t\n])"([^"\t\n]|"")*\n', head)  # no quotes enclose line ends
    called, chosen = _called(names, wanted, reading)
    schema = pa.schema(
        [*((n, pa.string()) for n in chosen.values()), (LINE, pa.int64()), (BROKEN, pa.string())]
    )
    lines = _Lines(reading.sections)
    whole: Any = paths.Rejoined(head, stream)
    if len(separator) > 1:
        whole, separator, quotes = _Narrowed(whole, separator.encode()), NARROW.decode(), False
    opened = partial(_reader, whole, separator, quotes, called, list(chosen), lines) if head else tuple
    done = 0
    for batch in _whole_records(opened, guessed):
        lines.expect_closed_quotes(guessed)
        if one_line and any(pc.any(pc.match_substring(c, b"\n")).as_py() for c in batch.columns):
            raise QuotesAreText
        n, others = batch.num_rows, [*lines.broken, *lines.starts]
        number = np.arange(done + 1, done + 1 + n + len(others))
        number = number[~np.isin(number, np.array(others, np.int64))][:n]
        done = int(number[-1]) if n else done
        columns = [stream.restored(column) for column in batch.columns]
        if reading.sections:
            columns.append(lines.values_at(number))
        yield pa.record_batch(
            [*columns, pa.array(number), _again(columns, list(chosen), names)], schema=schema
        )
    lines.expect_closed_quotes(guessed)
    broken = {number: stream.shown(why) for number, why in lines.broken.items()}
    nothing = [pa.nulls(len(broken), pa.string()) for _ in chosen]
    yield pa.record_batch([*nothing, pa.array(list(broken), pa.int64()), pa.array(list(broken.values()), pa.string())],
                          schema=schema)  # fmt: skip


class _Lines:
    """Records that are no rows: broken ones (number to why), and ``VALUE:`` lines that begin a section."""

    def __init__(self, sections: str):
        self.sections = sections
        self.broken: dict[int, str] = {}
        self.starts: list[int] = []
        self.values: list[str] = []
        self._open_quotes = ""

    def expect_closed_quotes(self, guessed: bool) -> None:
        """The lines behind an open quote are no record's: which they were, nobody can tell."""
        if self._open_quotes:
            raise QuotesAreText if guessed else ValueError(self._open_quotes)

    def take(self, row: csv.InvalidRow) -> str:
        if self.sections and row.actual_columns == 1 and row.text.rstrip().endswith(":"):
            self.starts.append(row.number)
            self.values.append(row.text.rstrip()[:-1])
            return "skip"
        if "\n" in row.text and row.text.count('"') % 2:
            self._open_quotes = self._open_quotes or (
                f"a quote without its end in record {row.number}: {row.text[:80]!r} (where quotes enclose nothing, say "
                f"--no-quotes)"
            )
        why = f"expected {row.expected_columns} fields, found {row.actual_columns}: {row.text[:KEPT]}"
        self.broken[row.number] = why
        return "skip"

    def values_at(self, number: np.ndarray) -> pa.Array:
        at = np.searchsorted(np.array(self.starts, np.int64), number) - 1
        index = pa.array(np.where(at < 0, len(self.values), at))
        return pa.array([*self.values, None], pa.string()).take(index)


def _called(
    names: Sequence[str], wanted: Container[str], reading: Reading
) -> tuple[list[str], dict[str, str]]:
    """(a name of its own for each column, those that are wanted: to the name they have)."""
    if twice := sorted(name for name, times in Counter(names).items() if times > 1 and name in wanted):
        raise ValueError(f"column {twice[0]!r} twice in the header {names[:40]}")
    # others of one name (spreadsheets write columns without any) are told apart by their place
    seen = set()
    called = []
    for i, name in enumerate(names):
        called.append(f"{name}#{i}" if name in seen or name in ("", "-") else name)
        seen.add(name)
    lists = {spec.partition(":")[0] for spec in reading.explode}
    if absent := sorted(lists - set(called)):
        raise ValueError(
            f"--explode {absent[0]}: expected a column of that name, found {called[:40]}; for example --explode "
            f"{called[-1]}"
        )
    chosen = {c: c for c in called if c in wanted or c in lists} or {called[0]: called[0]}
    if reading.sections:
        chosen[reading.sections] = reading.sections
    return called, chosen


def _reader(
    stream: Any, separator: str, quotes: bool, called: list[str], chosen: list[str], lines: _Lines
) -> Any:
    return csv.open_csv(
        pa.PythonFile(stream, mode="r"),
        read_options=csv.ReadOptions(use_threads=False, column_names=called),
        parse_options=csv.ParseOptions(
            delimiter=separator,
            quote_char='"' if quotes else False,
            newlines_in_values=quotes,
            invalid_row_handler=lines.take,
        ),
        convert_options=csv.ConvertOptions(
            include_columns=[c for c in chosen if c in called],
            column_types=dict.fromkeys(called, pa.binary()),
            null_values=list(NULLS),
            strings_can_be_null=True,
        ),
    )


def _again(columns: Sequence[pa.Array], chosen: Sequence[str], names: Sequence[str]) -> pa.Array:
    """``BROKEN`` of a batch: rows that are the header again (files put one behind the other)."""
    n = len(columns[0])
    again = None
    for column, name in zip(columns, chosen, strict=True):
        same = pc.fill_null(pc.equal(column.view(pa.binary()), name.encode()), False)
        again = same if again is None else pc.and_(again, same)
        if not pc.any(again).as_py():
            return pa.nulls(n, pa.string())
    why = pa.scalar("the header again", pa.string())
    return pc.if_else(again, why, pa.scalar(None, pa.string()))


def _header(head: bytes, ending: str, reading: Reading) -> tuple[list[str], str, bytes]:
    """(names of the columns, what separates them, the head behind the line with the names)."""
    head = head.removeprefix(b"\xef\xbb\xbf")
    separators = [reading.separator] if reading.separator else [*SEPARATORS.get(ending, ANY_SEPARATOR)]
    while True:
        line = re.match(rb"[^\r\n]*(\r\n|\r|\n|$)", head)
        first = line.group() if line else b""
        if not first.strip() and first and not first.strip(b"\r\n\v\f "):
            head = head[len(first) :]  # blank lines before the header
        elif (told := re.match(rb"sep=(.)\r?\n?$", first)) is not None:  # Excel's line
            separators = [told.group(1).decode()]
            head = head[len(first) :]
        else:
            break
    if not head.strip():
        raise ValueError("nothing, not even a header")
    if len(first) >= HEAD:
        raise ValueError(f"a first line of more than {HEAD >> 20} MB")
    separator = _separator(first, separators, ending not in SEPARATORS and not reading.separator)
    if first.count(separator.encode()) >= MAX_COLUMNS:
        raise ValueError(
            f"a header of {first.count(separator.encode()) + 1} columns; at most {MAX_COLUMNS} are read"
        )
    if reading.header:
        if ending == ".inter":
            raise ValueError("a file that ends in .inter has a header; leave --header out")
        if not reading.sections:
            _check_fields(head, separator, reading)
        return list(reading.header), separator, head
    return _names(first, separator, ending), separator, head[len(first) :]


def first_line(stream: Any, ending: str) -> list[str]:
    """Fields of the line where a header would stand, whatever they are.

    Raises:
        ValueError: there is none.
    """
    return _header(_Utf8(stream).read(HEAD), ending, Reading())[0]


def _names(first: bytes, separator: str, ending: str) -> list[str]:
    """Of the columns, from the line that holds them."""
    block = csv.ReadOptions(block_size=max(len(first), 64))
    header = first.rstrip(b"\r\n") + b"\n"
    if len(separator) > 1:
        header, separator = header.replace(separator.encode(), NARROW), NARROW.decode()
    options = csv.ParseOptions(delimiter=separator, quote_char=False if ending == ".inter" else '"')
    names = csv.read_csv(pa.BufferReader(header), block, options).column_names
    if ending == ".inter":
        names = [name.split(":")[0] for name in names]
    return [name.strip() for name in names]


def _separator(first: bytes, separators: Sequence[str], any_: bool) -> str:
    """What the first line has most of, the first of those that are as many."""
    separator = max(separators, key=lambda s: first.count(s.encode()))
    if any_ and first.count(WIDE) > first.count(separator.encode()):
        return WIDE.decode()
    return " " if any_ and not first.count(separator.encode()) and b" " in first.strip() else separator


def _check_fields(head: bytes, separator: str, reading: Reading) -> None:
    """Raises ValueError where most of the first lines have another number of fields than ``--header`` has names."""
    lines = head.splitlines()[: (-1 if len(head) >= HEAD else None)][:100]
    texts = [line.decode(errors="replace") for line in lines if line.strip()]
    quoted = reading.quotes is not False and separator != "\t" and len(separator) == 1
    rows = csv_text.reader(texts, delimiter=separator) if quoted else (t.split(separator) for t in texts)
    try:
        counts = Counter(map(len, rows))
    except csv_text.Error:
        return  # a field without end: whoever reads the rows says so
    most, names = counts.most_common(1)[0][0], len(reading.header)
    if most != names and counts[names] * 2 < len(texts):
        example = ",".join([*reading.header, *["-"] * (most - names)][:most])
        raise ValueError(
            f"--header {','.join(reading.header)}: expected a name for each of the {most} fields of {texts[0][:80]!r}, "
            f"found {names} names; for example --header {example}"
        )


def _quotes_are_text(head: bytes) -> bool:
    """Whether the fields of a TSV begin with quotes that enclose nothing, while all lines have as many fields."""
    lines = head.split(b"\n")[:-1] or [head]
    if not re.search(rb'(^|[\t\n])"', head) or len({line.count(b"\t") for line in lines if line.strip()}) > 1:
        return False
    fields = re.findall(rb'(?:^|[\t\n])("[^\t\n]*)', head)
    return any(not re.fullmatch(rb'"([^"]|"")*"\r?', f) for f in fields)


def _whole_records(opened: Callable[[], Any], guessed: bool) -> Iterator[pa.RecordBatch]:
    rows = 0
    try:
        for batch in opened():
            rows += batch.num_rows
            yield batch
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error):
            return
        if "straddling" not in str(error):
            raise
        if guessed:
            raise QuotesAreText from error
        raise ValueError(
            f"a record of more than 1 MB behind {rows} others; a quote without its end?"
        ) from error


class _Utf8:
    """A stream whose bytes that are no UTF-8 pass the CSV parser as characters that stand for one byte each.

    The parser hands lines with too many or too few fields on as text: one stray byte there would end the file. The
    characters are the last 256 of the private planes. Where a log has them itself, their bytes are taken for stray
    ones too, and come out as they were.
    """

    _FIRST = 0x10FF00
    _STRAY = re.compile("[\udc80-\udcff\U0010ff00-\U0010ffff]")
    _STANDS = re.compile(rb"\xf4\x8f[\xbc-\xbf][\x80-\xbf]")

    def __init__(self, rest: Any):
        self._rest, self._ready, self._strays = rest, b"", False
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def read(self, size: int = -1) -> bytes:
        while not self._ready:
            more = self._rest.read(size) if size >= 0 else self._rest.read()
            self._ready = self._passing(more)
            if not more:
                break
        out, self._ready = (self._ready, b"") if size < 0 else (self._ready[:size], self._ready[size:])
        return out

    def _passing(self, data: bytes) -> bytes:
        if data and data.isascii() and not self._decoder.getstate()[0]:
            return data
        text = self._decoder.decode(data, final=not data)
        if self._STRAY.search(text):
            self._strays = True
            text = self._STRAY.sub(self._standing, text)
        return text.encode()

    def _standing(self, found: re.Match[str]) -> str:
        return "".join(chr(self._FIRST + byte) for byte in found.group().encode("utf-8", "surrogateescape"))

    def _back(self, value: bytes) -> bytes:
        return self._STANDS.sub(lambda found: bytes([ord(found.group().decode()) - self._FIRST]), value)

    def restored(self, column: pa.Array) -> pa.Array:
        """A column of bytes as text, which need not be UTF-8 then."""
        if self._strays and pc.any(pc.match_substring(column, b"\xf4\x8f")).as_py():
            raw = [None if value is None else self._back(value) for value in column.to_pylist()]
            column = pa.array(raw, pa.binary())
        return column.view(pa.string())

    def shown(self, text: str) -> str:
        return self._back(text.encode()).decode(errors="replace") if self._strays else text


class _Narrowed(paths.Stream):
    """A stream with one character for every separator of several."""

    def __init__(self, rest: Any, separator: bytes):
        self._rest, self._separator, self._held = rest, separator, b""

    def read(self, size: int = -1) -> bytes:
        while True:
            more = self._rest.read(size)
            data = self._held + more
            keep = len(data) - len(data.rstrip(self._separator[:1])) if more else 0
            data, self._held = (data[:-keep], data[-keep:]) if keep else (data, b"")
            if data or not more:
                return data.replace(self._separator, NARROW)
