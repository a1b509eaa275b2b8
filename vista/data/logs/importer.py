"""Rows of a log to checked columns: every row is kept, or set aside with its number, the reason and its values.

Works on one Arrow batch at a time and touches rows one by one only where they are set aside. String items and
requests become XXH64 (seed 0) of their UTF-8 bytes, read as int64. Among n items some two share an id with
probability about n^2 / 2^65: 3e-8 for a million, 3 % for a billion.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from vista.data.logs.schema import BROKEN, LINE, TIME_UNITS, Source, kind_of
from vista.jagged import owners_of

MAX_USER_BYTES = 511
MAX_ACTION = 30


@dataclass(frozen=True)
class Rules:
    """What a row must satisfy, and the vocabularies that its strings are read with.

    Attributes:
        min_time_ms, max_time_ms: bounds, inclusive.
        actions: names of the bits; an action that is not among them is refused.
        surfaces: names of string surfaces.
        time_unit: of times that are numbers (``vista.data.logs.schema.TIME_UNITS``).
    """

    min_time_ms: int
    max_time_ms: int
    actions: tuple[str, ...]
    surfaces: tuple[str, ...]
    time_unit: str = "ms"


@dataclass(frozen=True)
class Letter:
    """One row set aside: its number in the file (from 0; in a text log its line, from 1), a short stable reason, its
    user, all its values as JSON."""

    row: int
    reason: str
    user: str
    values: str


@dataclass(frozen=True)
class Checked:
    """The good rows of a batch.

    Attributes:
        user: Arrow int64 or string [N], no nulls.
        columns: ``item, action, time, request`` and ``surface`` (events) or ``position`` (impressions), [N] each;
            a time of -1 stands for none (impressions without times).
        names: (item int64 [M], name Arrow string [M]) of string items, distinct.
        letters: the other rows.
    """

    user: pa.Array
    columns: dict[str, np.ndarray]
    names: tuple[np.ndarray, pa.Array]
    letters: list[Letter]

    def __len__(self) -> int:
        return len(self.user)


NO_NAMES = (np.zeros(0, np.int64), pa.array([], pa.string()))


def hash_strings(values: Sequence[str] | pa.Array) -> np.ndarray:
    """XXH64 (seed 0) of the UTF-8 bytes, as int64 [n]; no nulls."""
    if isinstance(values, pa.Array):
        raw = values.cast(pa.binary()).to_pylist()
    else:
        raw = [v.encode() for v in values]
    return np.fromiter(map(xxhash.xxh64_intdigest, raw), np.uint64, len(raw)).view(np.int64)


def check(batch: pa.RecordBatch | pa.Table, source: Source, rules: Rules, first_row: int) -> Checked:
    """Check a batch of a file whose footer was checked by ``vista.data.logs.schema.inspect``.

    Args:
        batch: rows of ``source`` with its columns ``source.names``.
        first_row: number of the first row in the file.
    """
    n = batch.num_rows
    columns, line, bad = _columns(batch, source, first_row)
    user = columns["user_id"]
    bad.where(user.is_null(), "null_user")
    if source.kinds["user_id"] == "int":
        user = user.cast(pa.int64())
    else:
        user = user.cast(pa.string())
        width = pc.binary_length(user)
        bad.where(pc.or_kleene(pc.equal(width, 0), pc.greater(width, MAX_USER_BYTES)), "user_length")
    bad.where(columns["item_id"].is_null(), "null_item")
    item, names = _ids(columns["item_id"], source.kinds["item_id"])
    out = {"item": item}
    if "timestamp_ms" in columns:
        out["time"] = _times(columns["timestamp_ms"], rules, bad)
    else:
        out["time"] = np.full(n, -1, np.int64)
    out["request"] = (
        _ids(columns["request_id"], source.kinds["request_id"])[0] if "request_id" in columns else _zeros(n)
    )
    impressions = "position" in columns
    key = "actions" if impressions else "action"
    out["action"] = _actions(columns[key], source.kinds[key], rules, bad, null_is_none=impressions)
    if impressions:
        bad.where(columns["request_id"].is_null(), "null_request")
        out["position"] = _small(columns["position"], 2**31 - 1, "position", bad)
    else:
        out["surface"] = _surfaces(columns, source, rules, bad)
    keep = ~bad.mask
    if keep.all():
        return Checked(user, out, names, [])
    rows = np.flatnonzero(bad.mask)
    found = zip(rows.tolist(), _values(batch, source, rows), strict=True)
    letters = [Letter(int(line[i]), bad.reason(i), *values) for i, values in found]
    kept = user.filter(pa.array(keep))
    out = {name: c[keep] for name, c in out.items()}
    if len(names[0]):
        used = np.isin(names[0], out["item"])
        names = (names[0][used], names[1].filter(pa.array(used)))
    return Checked(kept, out, names, letters)


def check_items(
    batch: pa.RecordBatch, source: Source, first_row: int
) -> tuple[np.ndarray, pa.Array, list[Letter]]:
    """(item int64 [M], name string [M], the rows set aside) of an item file's rows; items of a file without a column
    of names are their own names."""
    columns, line, bad = _columns(batch, source, first_row)
    item = columns["item_id"]
    name = columns.get("name", item)
    bad.where(item.is_null(), "null_item")
    bad.where(name.is_null(), "null_name")
    keep = pa.array(~bad.mask)
    ids, _ = _ids(item.filter(keep), source.kinds["item_id"])
    rows = np.flatnonzero(bad.mask)
    found = zip(rows.tolist(), _values(batch, source, rows), strict=True)
    letters = [Letter(int(line[i]), bad.reason(i), *values) for i, values in found]
    return ids, name.filter(keep).cast(pa.string()), letters


def _columns(
    batch: pa.RecordBatch | pa.Table, source: Source, first_row: int
) -> tuple[dict[str, pa.Array], np.ndarray, _Bad]:
    """Columns by meaning, the line or row of the file that each row is of, and the rows that are broken already."""
    bad = _Bad(batch.num_rows)
    columns = {meaning: _valid(_plain(batch.column(name)), bad) for meaning, name in source.names.items()}
    line = (
        columns.pop(LINE).to_numpy() if LINE in columns else np.arange(first_row, first_row + batch.num_rows)
    )
    if BROKEN in columns:
        bad.where(columns.pop(BROKEN).is_valid(), "broken_line")
    return columns, line, bad


class _Bad:
    """Which rows are set aside, and the first reason of each."""

    def __init__(self, n: int):
        self._code = np.zeros(n, np.int16)
        self._reasons: list[str] = [""]

    @property
    def mask(self) -> np.ndarray:
        return self._code > 0

    def where(self, rows: pa.Array | np.ndarray, reason: str) -> None:
        if not isinstance(rows, np.ndarray):
            rows = pc.fill_null(rows, False).to_numpy(zero_copy_only=False)
        if rows.any():
            self._reasons.append(reason)
            self._code[rows & (self._code == 0)] = len(self._reasons) - 1

    def reason(self, row: int) -> str:
        return self._reasons[self._code[row]]


def _zeros(n: int) -> np.ndarray:
    return np.zeros(n, np.int64)


def _plain(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """One array, dictionaries decoded."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column


def _valid(column: pa.Array, bad: _Bad) -> pa.Array:
    """The column without strings that are not UTF-8 (null in their place, the row set aside)."""
    if kind_of(column.type) != "string":
        return column
    try:
        column.validate(full=True)
        return column
    except pa.ArrowInvalid:
        raw = column.cast(pa.binary()).to_pylist()
    wrong = np.array([v is not None and not _is_utf8(v) for v in raw])
    bad.where(wrong, "not_utf8")
    return pa.array([None if w else v for v, w in zip(raw, wrong, strict=True)], pa.binary()).cast(
        pa.string()
    )


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _ints(column: pa.Array) -> np.ndarray:
    """int64 [N], nulls as 0."""
    column = column.cast(pa.int64())
    if column.null_count:
        column = pc.fill_null(column, 0)
    return column.to_numpy(zero_copy_only=False)


def _codes(column: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """(code int64 [N], distinct strings); nulls have code -1."""
    encoded = column.cast(pa.string()).dictionary_encode()
    codes = encoded.indices
    if codes.null_count:
        codes = pc.fill_null(codes, -1)
    return codes.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary


def _ids(column: pa.Array, kind: str) -> tuple[np.ndarray, tuple[np.ndarray, pa.Array]]:
    """(int64 [N], names): ints as they are, strings hashed, nulls 0."""
    if kind == "int":
        return _ints(column), NO_NAMES
    codes, values = _codes(column)
    ids = np.append(hash_strings(values), 0)
    return ids[codes], (ids[:-1], values)


def _times(column: pa.Array, rules: Rules, bad: _Bad) -> np.ndarray:
    """int64 [N], milliseconds."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
        factor = 1.0
    else:
        factor = TIME_UNITS[rules.time_unit]
    missing = column.is_null(nan_is_null=True)
    bad.where(missing, "null_time")
    values = pc.if_else(missing, 0, column).to_numpy(zero_copy_only=False)
    if values.dtype.kind == "f" or factor > 1:
        # Exact below 2^53; what is beyond lies outside any bounds, also once it is cut.
        time = np.clip(np.rint(values * factor), -(2**62), 2**62).astype(np.int64)
    else:
        time = values.astype(np.int64) // round(1 / factor)
    bad.where(time < 0, "negative_time")
    bad.where(time < rules.min_time_ms, "time_too_early")
    bad.where(time > rules.max_time_ms, "time_too_late")
    return time


def _small(column: pa.Array, largest: int, name: str, bad: _Bad) -> np.ndarray:
    bad.where(column.is_null(), f"null_{name}")
    values = _ints(column)
    bad.where((values < 0) | (values > largest), f"{name}_out_of_range")
    return np.where((values < 0) | (values > largest), 0, values).astype(np.int32)


def _surfaces(columns: dict[str, pa.Array], source: Source, rules: Rules, bad: _Bad) -> np.ndarray:
    if "surface" not in columns:
        return np.zeros(len(columns["user_id"]), np.int32)
    column = columns["surface"]
    if source.kinds["surface"] == "int":
        return _small(column, 2**31 - 1, "surface", bad)
    bad.where(column.is_null(), "null_surface")
    values, unknown = _named(column, rules.surfaces)
    bad.where(unknown, "unknown_surface")
    return values.astype(np.int32)


def _named(column: pa.Array, vocabulary: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(place in the vocabulary int64 [N], 0 where there is none; bool [N]: not null and not in it)."""
    codes, values = _codes(column)
    place = {name: i for i, name in enumerate(vocabulary)}
    known = np.array([place.get(v, -1) for v in values.to_pylist()] + [-2], np.int64)[codes]
    return np.maximum(known, 0), known == -1


def _actions(column: pa.Array, kind: str, rules: Rules, bad: _Bad, null_is_none: bool) -> np.ndarray:
    """int32 [N]: bit masks."""
    n = len(column)
    nulls = column.is_null().to_numpy(zero_copy_only=False)
    if not null_is_none:
        bad.where(nulls, "null_action")
    if kind.startswith("list"):
        flat = _plain(column.flatten())
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        row = owners_of(lengths)
    else:
        flat, row = column.drop_null(), np.flatnonzero(~nulls)
    if kind.endswith("int"):
        values = _ints(flat)
        unknown = (values < 0) | (values >= len(rules.actions))
        values = np.where(unknown, 0, values)
    else:
        values, unknown = _named(flat, rules.actions)
    inner_null = flat.is_null().to_numpy(zero_copy_only=False)
    for which, reason in ((inner_null, "null_action"), (unknown & ~inner_null, "unknown_action")):
        if which.any():
            rows = np.zeros(n, bool)
            rows[row[which]] = True
            bad.where(rows, reason)
    bits = np.left_shift(np.int32(1), values.astype(np.int32))
    mask = np.zeros(n, np.int32)
    if kind.startswith("list"):
        np.bitwise_or.at(mask, row, bits)
    else:
        mask[row] = bits
    return mask


def _values(batch: pa.RecordBatch | pa.Table, source: Source, rows: np.ndarray) -> Iterator[tuple[str, str]]:
    """Per row: (its user, its raw values by meaning as JSON)."""
    columns = {}
    for meaning, name in source.names.items():
        if meaning == LINE:
            continue
        column = _plain(batch.column(name)).take(pa.array(rows))
        try:
            columns[meaning] = column.to_pylist()
        except UnicodeDecodeError:
            raw = column.cast(pa.binary()).to_pylist()
            columns[meaning] = [None if v is None else v.decode() if _is_utf8(v) else repr(v) for v in raw]
    broken = columns.pop(BROKEN, [None] * len(rows))
    for i in range(len(rows)):
        values = {"broken": broken[i]} if broken[i] else {}
        values |= {meaning: column[i] for meaning, column in columns.items()}
        user = values.get("user_id")
        yield "" if user is None else str(user), json.dumps(values, default=str, ensure_ascii=False)
