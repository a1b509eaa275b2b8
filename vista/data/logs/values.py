"""Columns of a log to typed values: text, whole numbers, ids, times, actions; and which rows are set aside, and why."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from vista.data.arrow import decoded, list_lengths, true
from vista.data.logs import actions, times
from vista.data.logs.reading import Reading
from vista.data.logs.schema import TOLD, LogFile, kind_of
from vista.jagged import owners_of

MAX_USER_BYTES = 511
MAX_TEXT_BYTES = 65_535
"""Of an item, request, action or surface, and of an item's name."""


@dataclass(frozen=True)
class Rules:
    """What a row must satisfy, and the vocabularies that its strings are read with.

    Attributes:
        min_time_ms, max_time_ms: bounds, inclusive.
        actions: names of the bits; an action that is not among them is refused.
        surfaces: names of string surfaces.
        reading: how the log is read; that of impression files differs by its columns.
        first_time_ms: of the run's first row, where times are the order of rows.
    """

    min_time_ms: int
    max_time_ms: int
    actions: tuple[str, ...]
    surfaces: tuple[str, ...]
    reading: Reading = field(default_factory=Reading)
    first_time_ms: int = 0


Columns = dict[str, pa.Array]
"""By meaning."""

NO_NAMES = (np.zeros(0, np.int64), pa.array([], pa.string()))


def hash_strings(values: Sequence[str] | pa.Array) -> np.ndarray:
    """XXH64 (seed 0) of the UTF-8 bytes, as int64 [n]; no nulls."""
    if isinstance(values, pa.Array):
        raw = values.cast(pa.binary()).to_pylist()
    else:
        raw = [v.encode() for v in values]
    return np.fromiter(map(xxhash.xxh64_intdigest, raw), np.uint64, len(raw)).view(np.int64)


class BadRows:
    """Which rows are set aside, and the first reason of each."""

    def __init__(self, n: int):
        self._code = np.zeros(n, np.int16)
        self._reasons: list[str] = [""]

    @property
    def mask(self) -> np.ndarray:
        return self._code > 0

    def where(self, rows: pa.Array | np.ndarray, reason: str) -> None:
        if not isinstance(rows, np.ndarray):
            rows = true(rows)
        if rows.any():
            self._reasons.append(reason)
            self._code[rows & (self._code == 0)] = len(self._reasons) - 1

    def reason(self, row: int) -> str:
        return self._reasons[self._code[row]]

    @property
    def reasons(self) -> list[str]:
        return self._reasons[1:]

    def of(self, reason: str) -> np.ndarray:
        return self._code == self._reasons.index(reason)


def plain(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """One array; of dictionaries those of text stay, text is string, and a column without a type is of nulls."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    words = pa.types.is_dictionary(column.type) and kind_of(column.type) == "string"
    return column if words else decoded(column)


def as_text(column: pa.Array) -> pa.Array:
    """A column of any simple type as text, dictionaries of text as they are."""
    return column if kind_of(column.type) == "string" else column.cast(pa.string())


def texts_of(column: pa.Array, name: str, most: int, bad: BadRows) -> tuple[np.ndarray, pa.Array, np.ndarray]:
    """(code int64 [N], the distinct texts, bool [N]: null) of a column of text; rows that are no UTF-8 or longer than
    ``most`` bytes are bad, and their text is empty. Looks at distinct values alone, however often each stands there."""
    column = as_text(column)
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    values, codes = encoded.dictionary, encoded.indices
    if values.null_count:  # a dictionary may hold a null of its own
        codes = pc.if_else(encoded.is_null(), pa.scalar(None, codes.type), codes)
    null = codes.is_null().to_numpy(zero_copy_only=False)
    place = pc.fill_null(codes.cast(pa.int64()), len(values)).to_numpy(zero_copy_only=False)
    used = np.bincount(place, minlength=len(values))[: len(values)] > 0
    if not used.all():  # dictionaries are of more rows than these
        values = values.filter(pa.array(used))
        place = np.append(np.cumsum(used) - 1, len(values))[place]
    raw = values.cast(pa.large_binary())
    flawed = true(pc.greater(pc.binary_length(raw), most))
    empty = pa.scalar(b"", pa.large_binary())
    if flawed.any():
        bad.where(np.append(flawed, False)[place], f"{name}_length")
        raw = pc.if_else(pa.array(flawed), empty, raw)
    try:
        text = raw.cast(pa.string())
    except pa.ArrowInvalid:
        wrong = np.array([v is not None and not _is_utf8(v) for v in raw.to_pylist()])
        bad.where(np.append(wrong, False)[place], "not_utf8")
        text = pc.if_else(pa.array(wrong), empty, raw).cast(pa.string())
    text = pc.fill_null(text, "")
    if null.any():
        text = pa.concat_arrays([text, pa.array([""])])
    return place, text, null


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def text_of(column: pa.Array, name: str, most: int, bad: BadRows, empty_is_null: bool = False) -> pa.Array:
    """The texts that :func:`texts_of` finds, row by row."""
    codes, values, null = texts_of(column, name, most, bad)
    if empty_is_null:
        null = null | _empty(values)[codes]
    return pc.if_else(pa.array(null), pa.scalar(None, pa.string()), values.take(pa.array(codes)))


def _empty(values: pa.Array) -> np.ndarray:
    return pc.equal(pc.binary_length(values), 0).to_numpy(zero_copy_only=False)


def _refuse_rounded(column: pa.Array, name: str, bad: BadRows) -> None:
    """Floats beyond what their type counts in ones: digits were lost before they came here, and several ids are one."""
    if pa.types.is_floating(column.type):
        values = np.abs(pc.fill_null(column, 0).to_numpy(zero_copy_only=False))
        lost = values > 2.0 ** (np.finfo(values.dtype).nmant + 1)
        bad.where(lost & np.isfinite(values), f"{name}_digits_lost")


def user_text(column: pa.Array, bad: BadRows) -> pa.Array:
    _refuse_rounded(column, "user", bad)
    codes, values, null = texts_of(column, "user", MAX_USER_BYTES, bad)
    bad.where(_empty(values)[codes] & ~null, "user_length")
    return values.take(pa.array(codes))


def _ints(column: pa.Array, name: str, bad: BadRows) -> np.ndarray:
    """int64 [N], nulls as 0; rows whose number is not whole or does not fit are bad."""
    if pa.types.is_null(column.type):
        return np.zeros(len(column), np.int64)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if kind_of(column.type) == "string":  # constants of a path
        column = pc.if_else(column.is_null(), "0", as_text(column))
    filled = pc.fill_null(column, 0) if column.null_count else column
    _refuse_rounded(filled, name, bad)
    with suppress(pa.ArrowInvalid):
        return filled.cast(pa.int64()).to_numpy(zero_copy_only=False)
    if pa.types.is_floating(filled.type):
        values = filled.to_numpy(zero_copy_only=False).astype(np.float64)
        nothing = np.isnan(values)
        bad.where(nothing, f"null_{name}")
        with np.errstate(invalid="ignore"):
            wrong = ~nothing & ((values != np.rint(values)) | (np.abs(values) >= 2**63))
        bad.where(wrong, f"{name}_not_whole")
        return np.where(nothing | wrong, 0, values).astype(np.int64)
    found = [int64_of(v) for v in filled.to_pylist()]
    bad.where(np.array([v is None for v in found]), f"{name}_out_of_range")
    return np.array([v or 0 for v in found], np.int64)


def int64_of(value: object) -> int | None:
    try:
        number = int(value)  # type: ignore[call-overload]
    except (ValueError, OverflowError, ArithmeticError):
        return None
    return number if number == value and -(2**63) <= number < 2**63 else None


def ids_of(
    column: pa.Array, kind: str, name: str, bad: BadRows
) -> tuple[np.ndarray, tuple[np.ndarray, pa.Array], pa.Array]:
    """(int64 [N], names, the ids as the log has them): ints as they are, strings hashed, nulls 0."""
    if kind in ("int", "null"):
        values = _ints(column, name, bad)
        return values, NO_NAMES, pa.array(values)
    _refuse_rounded(column, name, bad)
    codes, values, null = texts_of(column, name, MAX_TEXT_BYTES, bad)
    ids, named = hash_strings(values), len(values) - bool(null.any())  # the text of nulls is the last
    ids[named:] = 0
    return ids[codes], (ids[:named], values[:named]), pa.DictionaryArray.from_arrays(codes, values)


def times_of(column: pa.Array, second: pa.Array | None, rules: Rules, bad: BadRows) -> np.ndarray:
    """int64 [N], milliseconds."""
    if kind_of(column.type) == "string":
        column = text_of(column, "time", 1_000, bad, empty_is_null=True)
    if second is not None and kind_of(second.type) == "string":
        second = text_of(second, "time", 1_000, bad)
    if pa.types.is_null(column.type):
        bad.where(np.ones(len(column), bool), "null_time")
        return np.zeros(len(column), np.int64)
    time, missing, unread = times.milliseconds(column, rules.reading, second)
    bad.where(missing, "null_time")
    bad.where(unread, "no_time_format" if rules.reading.time_format else "unreadable_time")
    bad.where(time < 0, "negative_time")
    bad.where(time < rules.min_time_ms, "time_too_early")
    bad.where(time > rules.max_time_ms, "time_too_late")
    return time


def small_ints(column: pa.Array, largest: int, name: str, bad: BadRows) -> np.ndarray:
    bad.where(column.is_null(), f"null_{name}")
    values = _ints(column, name, bad)
    outside = (values < 0) | (values > largest)
    bad.where(outside, f"{name}_out_of_range")
    return np.where(outside, 0, values).astype(np.int32)


def surfaces_of(columns: Columns, source: LogFile, rules: Rules, bad: BadRows) -> np.ndarray:
    kind = source.kinds.get("surface", "null") if "surface" in columns else "null"
    if kind == "null":
        return np.zeros(len(columns["user_id"]), np.int32)
    column = columns["surface"]
    if kind == "int":
        return small_ints(column, 2**31 - 1, "surface", bad)
    bad.where(column.is_null(), "null_surface")
    values, unknown = _named(column, rules.surfaces, "surface", bad)
    bad.where(unknown, "unknown_surface")
    return values.astype(np.int32)


def _named(
    column: pa.Array, vocabulary: tuple[str, ...], name: str, bad: BadRows
) -> tuple[np.ndarray, np.ndarray]:
    """(place in the vocabulary int64 [N], 0 where there is none; bool [N]: not null and not in it)."""
    codes, values, null = texts_of(column, name, MAX_TEXT_BYTES, bad)
    place = {text: i for i, text in enumerate(vocabulary)}
    known = np.array([place.get(v, -1) for v in values.to_pylist()], np.int64)[codes]
    return np.maximum(known, 0), (known == -1) & ~null


def masks_of(
    columns: Columns, source: LogFile, rules: Rules, bad: BadRows, item: pa.Array, null_is_none: bool
) -> np.ndarray:
    """int32 [N]: the bits of a row's actions, from every column that tells some."""
    n = len(item)
    mask = np.zeros(n, np.int32)
    reading = rules.reading
    key = "actions" if "actions" in columns else "action"
    if key in columns:
        none = null_is_none or bool(reading.actions)
        mask = _actions(columns[key], source.kinds[key], rules, bad, null_is_none=none)
    bits = actions.bits(reading.named_actions(), rules.actions)
    for action in reading.actions:
        if TOLD + action.name not in columns:
            continue
        column = columns[TOLD + action.name]
        if kind_of(column.type) == "string":
            column = text_of(column, "action", MAX_TEXT_BYTES, bad)
        has, wrong = actions.told(column, action, item)
        bad.where(wrong, "unreadable_action")
        if action.name in bits:
            mask[has] |= bits[action.name]
        else:
            bad.where(has, "unknown_action")
    if reading.action_is:
        if reading.action_is in bits:
            mask |= bits[reading.action_is]
        else:
            bad.where(np.ones(n, bool), "unknown_action")
    return mask


def _actions(column: pa.Array, kind: str, rules: Rules, bad: BadRows, null_is_none: bool) -> np.ndarray:
    """int32 [N]: bit masks of a column of actions."""
    n = len(column)
    if kind == "null":
        if not null_is_none:
            bad.where(np.ones(n, bool), "null_action")
        return np.zeros(n, np.int32)
    nulls = column.is_null().to_numpy(zero_copy_only=False)
    if not null_is_none:
        bad.where(nulls, "null_action")
    if kind.startswith("list"):
        flat, row = plain(column.flatten()), owners_of(list_lengths(column))
    else:
        flat, row = column.drop_null(), np.flatnonzero(~nulls)
    inner = BadRows(len(flat))
    inner.where(flat.is_null(), "null_action")
    if kind.endswith("int"):
        values = _ints(flat, "action", inner)
        unknown = (values < 0) | (values >= len(rules.actions))
        values = np.where(unknown, 0, values)
    else:
        values, unknown = _named(flat, rules.actions, "action", inner)
    inner.where(unknown, "unknown_action")
    for reason in inner.reasons:
        rows = np.zeros(n, bool)
        rows[row[inner.of(reason)]] = True
        bad.where(rows, reason)
    bits = np.left_shift(np.int32(1), values.astype(np.int32))
    mask = np.zeros(n, np.int32)
    if kind.startswith("list"):
        np.bitwise_or.at(mask, row, bits)
    else:
        mask[row] = bits
    return mask
