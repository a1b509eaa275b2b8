"""Rows of a log to checked columns: every row is kept, or set aside with its number, the reason and its values.

Works on one Arrow batch at a time and touches rows one by one only where they are set aside. String items and
requests become XXH64 (seed 0) of their UTF-8 bytes, read as int64. Among n items some two share an id with
probability about n^2 / 2^65: 3e-8 for a million, 3 % for a billion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vista.data.arrow import list_lengths, lists, valid
from vista.data.logs.letters import Letter, letters
from vista.data.logs.schema import BROKEN, LINE, SECOND, LogFile, kind_of
from vista.data.logs.values import (
    MAX_TEXT_BYTES,
    BadRows,
    Columns,
    Rules,
    _ints,
    ids_of,
    masks_of,
    plain,
    small_ints,
    surfaces_of,
    text_of,
    texts_of,
    times_of,
    user_text,
)
from vista.jagged import owners_of


@dataclass(frozen=True)
class Checked:
    """The good rows of a batch.

    Attributes:
        user: Arrow int64 or string [N], no nulls.
        columns: ``item, action, time, request`` and ``surface`` (events) or ``position`` (impressions), [N] each;
            a time of -1 stands for none (impressions without times).
        names: (item int64 [M], name Arrow string [M]) of string items, distinct.
        letters: the other rows.
        engaged: bool [N]: of a log whose rows are all impressions (``Reading.unengaged``), those that are events too;
            None where all are events.
    """

    user: pa.Array
    columns: dict[str, np.ndarray]
    names: tuple[np.ndarray, pa.Array]
    letters: list[Letter]
    engaged: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.user)


def check(batch: pa.RecordBatch | pa.Table, source: LogFile, rules: Rules, first_row: int) -> Checked:
    """Check a batch of a file whose footer was checked by ``vista.data.logs.inspecting.inspect``.

    Args:
        batch: rows of ``source`` with its columns ``source.names``.
        first_row: number of the first row in the file.
    """
    columns, line, bad = _columns(batch, source, first_row)
    reading = rules.reading
    user, time = _checked_rows(columns, source, rules, first_row, bad)
    item, names, item_text = ids_of(columns["item_id"], source.kinds["item_id"], "item", bad)
    out = {"item": item, "time": time, "request": np.zeros(len(user), np.int64)}
    if "request_id" in columns:
        out["request"] = ids_of(columns["request_id"], source.kinds["request_id"], "request", bad)[0]
    mask = masks_of(columns, source, rules, bad, item_text, null_is_none=source.shows)
    out["action"] = mask
    if source.shows:
        bad.where(columns["request_id"].is_null(), "null_request")
        out["position"] = small_ints(columns["position"], 2**31 - 1, "position", bad)
    else:
        out["surface"] = surfaces_of(columns, source, rules, bad)
    as_shown = reading.unengaged == "impressions" and not source.shows
    if as_shown:
        out["position"] = np.zeros(len(user), np.int32)
        if "position" in columns:
            out["position"] = small_ints(columns["position"], 2**31 - 1, "position", bad)
        if "request_id" not in columns:
            out["request"] = np.where(time == 0, 1, time)  # what a user was shown at one time is one request
    elif reading.unengaged == "refused" and not source.shows:
        bad.where(mask == 0, "no_action")
    keep = ~bad.mask
    engaged = (mask != 0)[keep] if as_shown else None
    if keep.all():
        return Checked(user, out, names, [], engaged)
    found = letters(batch, source, line, bad)
    kept = user.filter(pa.array(keep))
    out = {name: c[keep] for name, c in out.items()}
    if len(names[0]):
        used = np.isin(names[0], out["item"])
        names = (names[0][used], names[1].filter(pa.array(used)))
    return Checked(kept, out, names, found, engaged)


def _checked_rows(
    columns: Columns, source: LogFile, rules: Rules, first_row: int, bad: BadRows
) -> tuple[pa.Array, np.ndarray]:
    """(user, time int64 [N]) of the rows; those without user, item or a time within the bounds are bad."""
    user = columns["user_id"]
    bad.where(user.is_null(), "null_user")
    if source.kinds["user_id"] == "int":
        user = pa.array(_ints(user, "user", bad))
    else:
        user = user_text(user, bad)
    bad.where(columns["item_id"].is_null(), "null_item")
    n = len(user)
    if rules.reading.by_order:
        time = rules.first_time_ms + source.first + first_row + np.arange(n, dtype=np.int64)
    elif "timestamp_ms" in columns:
        time = times_of(columns["timestamp_ms"], columns.get(SECOND), rules, bad)
    else:
        time = np.full(n, -1, np.int64)
    return user, time


def accepted(
    batch: pa.RecordBatch | pa.Table, source: LogFile, rules: Rules, first_row: int, meanings: Sequence[str]
) -> dict[str, list[str | int]]:
    """The distinct values of columns of actions and surfaces in the rows that :func:`check` would take, whatever the
    vocabularies."""
    columns, _, bad = _columns(batch, source, first_row)
    _checked_rows(columns, source, rules, first_row, bad)
    keep = ~bad.mask
    found = {}
    for meaning in meanings:
        column = columns[meaning].filter(pa.array(keep))
        kind = source.kinds[meaning]
        if kind.startswith("list"):
            column = plain(column.flatten())
        if kind.endswith("int"):
            found[meaning] = np.unique(_ints(column.drop_null(), meaning, BadRows(len(column)))).tolist()
        else:
            _, values, _ = texts_of(column, "", MAX_TEXT_BYTES, BadRows(len(column)))
            found[meaning] = [v for v in values.to_pylist() if v]
    return found


@dataclass(frozen=True)
class CheckedItems:
    """The good rows of a batch of an item file.

    Attributes:
        item: int64 [M].
        name: string [M]; items of a file without a column of names are their own names.
        content: ``category``, ``text`` (string [M]) and ``vector`` (list of float32 [M]), those that the file has.
        letters: the other rows.
    """

    item: np.ndarray
    name: pa.Array
    content: dict[str, pa.Array]
    letters: list[Letter]


def check_items(batch: pa.RecordBatch, source: LogFile, first_row: int, width: int = 0) -> CheckedItems:
    """Check a batch of an item file.

    Args:
        width: floats that a vector must have. One of zeros alone is as none.
    """
    columns, line, bad = _columns(batch, source, first_row)
    item = columns["item_id"]
    name = columns.get("name", item)
    bad.where(item.is_null(), "null_item")
    bad.where(name.is_null(), "null_name")
    ids, _, _ = ids_of(item, source.kinds["item_id"], "item", bad)
    codes, values, _ = texts_of(name, "name", MAX_TEXT_BYTES, bad)
    content: dict[str, pa.Array] = {}
    for meaning in ("category", "text"):
        if meaning in columns:
            content[meaning] = _words(columns[meaning], meaning, bad)
    if "vector" in columns and not pa.types.is_null(columns["vector"].type):
        content["vector"] = _vectors(columns["vector"], width, bad)
    keep = pa.array(~bad.mask)
    found = letters(batch, source, line, bad)
    names = values.take(pa.array(codes[~bad.mask]))
    return CheckedItems(ids[~bad.mask], names, {n: c.filter(keep) for n, c in content.items()}, found)


def _words(column: pa.Array, name: str, bad: BadRows) -> pa.Array:
    """Texts, null where there is none; of a list its elements with bars between."""
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), pa.string())
    if (kind_of(column.type) or "").startswith("list"):
        inside = plain(column.flatten()).cast(pa.string())
        flat = lists(list_lengths(column), pc.fill_null(inside, ""))
        column = pc.if_else(column.is_null(), pa.scalar(None, pa.string()), pc.binary_join(flat, "|"))
    return text_of(column, name, MAX_TEXT_BYTES, bad, empty_is_null=True)


def _vectors(column: pa.Array, width: int, bad: BadRows) -> pa.Array:
    """Lists of float32, null where there is none or all of it is 0; those of another width or not finite are bad."""
    lengths = list_lengths(column)
    bad.where(valid(column) & (lengths != width) & (lengths > 0), "vector_width")
    row = owners_of(lengths)
    told = pc.fill_null(column.flatten().cast(pa.float64(), safe=False), np.nan)
    with np.errstate(over="ignore"):
        flat = told.to_numpy(zero_copy_only=False).astype(np.float32)
    wrong = np.zeros(len(column), bool)
    wrong[row[~np.isfinite(flat)]] = True
    bad.where(wrong, "vector_not_finite")
    some = np.zeros(len(column), bool)
    some[row[flat != 0]] = True
    return lists(lengths, flat, ~some)


def _columns(
    batch: pa.RecordBatch | pa.Table, source: LogFile, first_row: int
) -> tuple[Columns, np.ndarray, BadRows]:
    """Columns by meaning, the line or row of the file that each row is of, and the rows that are broken already."""
    n = batch.num_rows
    bad = BadRows(n)
    columns = {meaning: plain(batch.column(name)) for meaning, name in source.names.items()}
    for meaning, value in source.constants.items():
        if meaning not in columns:
            number = source.kinds.get(meaning) == "int"
            found = int(value or 0) if number and value is not None else value
            columns[meaning] = pa.repeat(pa.scalar(found, pa.int64() if number else pa.string()), n)
    line = columns.pop(LINE).to_numpy() if LINE in columns else np.arange(first_row, first_row + n)
    if BROKEN in columns:
        bad.where(columns.pop(BROKEN).is_valid(), "broken_line")
    return columns, line, bad
