"""Times of logs to milliseconds: numbers of a unit, Arrow times, dates as text, dates and times in two columns."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vista.data.arrow import valid
from vista.data.logs.reading import TIME_UNITS, Reading, with_year

FAR = 2**62
"""What lies beyond any bounds, also once it is cut."""

FORMATS = (
    *(f"{day}{time}"
      for day in ("%Y/%m/%d", "%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%Y.%m.%d", "%m-%d-%Y", "%d-%m-%Y", "%m/%d/%y",
                  "%d/%m/%y", "%d.%m.%y", "%d-%b-%Y", "%d %b %Y", "%b %d, %Y", "%d %B %Y", "%B %d, %Y")
      for time in (" %H:%M:%S", " %H:%M", " %I:%M:%S %p", " %I:%M %p", "")),
    "%d/%b/%Y:%H:%M:%S %z", "%Y%m%d", "%Y%m%d%H%M%S", "%Y-%m-%d %H:%M:%S EST", "%a %b %d %H:%M:%S %Y",
    "%a %b %d %H:%M:%S %z %Y", "%m %d, %Y",
)  # fmt: skip
"""Formats that a refusal may suggest."""

YEARLESS = ("%d/%b %H:%M:%S", "%d/%b %H:%M", "%d/%b", "%b %d %H:%M:%S", "%b %d %H:%M", "%b %d", "%d %b %H:%M:%S",
            "%d %b %H:%M", "%d %b", "%m/%d %H:%M:%S", "%m/%d %H:%M", "%m-%d %H:%M:%S", "%m-%d %H:%M",
            "%d.%m. %H:%M:%S", "%d.%m. %H:%M", "%H:%M:%S", "%H:%M")  # fmt: skip
"""Formats of what tells no year."""

NUMBER = r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$"
CUT = r"^[0-9]\.[0-9]{0,6}[eE]\+[0-9]{2}$"
"""A number as spreadsheets and ``%g`` cut it (``1.70E+12``): of a time nothing useful is left."""


def milliseconds(
    column: pa.Array, reading: Reading, second: pa.Array | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(int64 [N], bool [N] missing, bool [N] unreadable) of a column of times, of any kind.

    Args:
        second: the time of the day, where the first column is the date.
    """
    if second is not None:
        column = _together(column, second, reading)
    type_ = column.type
    missing = column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
    unread = np.zeros(len(column), bool)
    if pa.types.is_integer(type_) and reading.time_format:
        column = _padded(column, reading.time_format)
    if pa.types.is_string(column.type):
        column, unread = parsed(column, reading.time_format, reading.time_unit)
        return _numbers(column, "ms", 0, missing | unread), missing, unread
    start = reading.start_ms
    if pa.types.is_timestamp(type_) or pa.types.is_duration(type_):
        start = start if pa.types.is_duration(type_) else 0
        return _numbers(column, type_.unit, start, missing), missing, unread
    if pa.types.is_date(type_):
        column = column.cast(pa.date32()).view(pa.int32()).cast(pa.int64())
        days = pc.multiply(column, 86_400)
        return _numbers(days, "s", 0, missing), missing, unread
    return _numbers(column, reading.time_unit, start, missing), missing, unread


def _numbers(column: pa.Array, unit: str, start: int, missing: np.ndarray) -> np.ndarray:
    factor = TIME_UNITS[unit]
    if pa.types.is_timestamp(column.type) or pa.types.is_duration(column.type):
        column = column.view(pa.int64())
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    if missing.any():
        column = pc.if_else(pa.array(missing), pa.scalar(0, column.type), column)
    found = column.to_numpy(zero_copy_only=False)
    if found.dtype.kind == "f" or factor > 1 or found.dtype == np.uint64:
        # Exact below 2^53; what is beyond lies outside any bounds, also once it is cut.
        with np.errstate(over="ignore", invalid="ignore"):
            ms = np.clip(np.rint(found.astype(np.float64) * factor), -FAR, FAR).astype(np.int64)
    else:
        ms = np.clip(found.astype(np.int64) // round(1 / factor), -FAR, FAR)
    return np.clip(ms + start, -FAR, FAR)


def parsed(column: pa.Array, time_format: str = "", unit: str = "ms") -> tuple[pa.Array, np.ndarray]:
    """(timestamp ms [N], bool [N]: not null, and no time) of text: in a format, else ISO 8601 or numbers of a unit."""
    there = valid(column)
    target = pa.timestamp("ms")
    if time_format and not re.search(r"%[zZfjcxX]", time_format):
        found = pc.strptime(pc.utf8_trim_whitespace(column), time_format, "ms", error_is_null=True)
        return found.cast(target), there & ~valid(found)
    if not time_format:
        for type_ in (pa.timestamp("ms", "UTC"), target):
            try:
                return column.cast(type_).cast(target), np.zeros(len(column), bool)
            except pa.ArrowInvalid:
                continue
    encoded = column.dictionary_encode()
    moments = [_moment(v, time_format, unit) for v in encoded.dictionary.to_pylist()]
    found = pa.array(moments, target).take(encoded.indices)
    return found, there & ~valid(found)


def _moment(text: str, time_format: str, unit: str) -> datetime | int | None:
    try:
        if time_format:
            return _utc(datetime.strptime(text.strip(), time_format))
        if re.match(NUMBER, text):
            value = float(text) * TIME_UNITS[unit]
            return None if re.match(CUT, text) or not abs(value) < FAR else round(value)
        # "2024-01-31 12:00:00 UTC" is how BigQuery writes it
        text = text[:-4] + "Z" if text.endswith((" UTC", " GMT")) else text.strip()
        return _utc(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        return None


def _utc(found: datetime) -> datetime:
    return found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found


def suggested(samples: list[str]) -> str:
    """The format that most of the values have, empty where none does."""
    best = max(FORMATS, key=lambda f: sum(_moment(v, f, "ms") is not None for v in samples))
    return best if any(_moment(v, best, "ms") is not None for v in samples) else ""


def yearless(samples: list[str]) -> str:
    """The format without a year that all of the values have, empty where none does."""
    years = [f"2000 {v.strip()}" for v in samples]  # a leap year: 29 February is a day
    return next((f for f in YEARLESS if all(_moment(v, with_year(f), "ms") is not None for v in years)), "")


def _together(date: pa.Array, time: pa.Array, reading: Reading) -> pa.Array:
    """Date and time of the day as one column: text, or an Arrow time."""
    if pa.types.is_time(time.type):
        unit = time.type.unit
        whole = time.view(pa.int32() if unit in ("s", "ms") else pa.int64()).cast(pa.int64())
        day, _, _ = milliseconds(date, reading)
        ms = _numbers(whole, unit, 0, ~valid(whole))
        absent = pc.or_(date.is_null(), time.is_null())
        return pc.if_else(absent, pa.scalar(None, pa.timestamp("ms")), pa.array(day + ms, pa.timestamp("ms")))
    parts = reading.time_format.split(" ", 1) if " " in reading.time_format else ["", ""]
    texts = [_padded(c, f) for c, f in ((date, parts[0]), (time, parts[1]))]
    return pc.binary_join_element_wise(*texts, " ")


def _padded(column: pa.Array, time_format: str) -> pa.Array:
    """A column as text; integers as wide as their format (``%H%M``: 5 is 0005)."""
    if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
        return pc.strftime(column.cast(pa.timestamp("s")), time_format or "%Y-%m-%d")
    text = column.cast(pa.string())
    if pa.types.is_integer(column.type) and re.fullmatch(r"(%[YmdHMS])+", time_format):
        width = sum(4 if c == "Y" else 2 for c in time_format[1::2])
        text = pc.utf8_lpad(text, width, "0")
    return text
