"""Rows of a log to checked columns: every row is kept, or set aside with its number, the reason and its values.

Works on one Arrow batch at a time and touches rows one by one only where they are set aside. String items and
requests become XXH64 (seed 0) of their UTF-8 bytes, read as int64. Among n items some two share an id with
probability about n^2 / 2^65: 3e-8 for a million, 3 % for a billion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from vista.data.logs import actions, times
from vista.data.logs.letters import Letter, letters
from vista.data.logs.reading import Reading
from vista.data.logs.schema import BROKEN, LINE, SECOND, TOLD, LogFile, kind_of
from vista.jagged import owners_of

MAX_USER_BYTES = 511
MAX_TEXT_BYTES = 65_535
"""Of an item, request, action or surface, and of an item's name."""

MAX_ACTION = actions.MAX_ACTION


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


NO_NAMES = (np.zeros(0, np.int64), pa.array([], pa.string()))


def hash_strings(values: Sequence[str] | pa.Array) -> np.ndarray:
    """XXH64 (seed 0) of the UTF-8 bytes, as int64 [n]; no nulls."""
    if isinstance(values, pa.Array):
        raw = values.cast(pa.binary()).to_pylist()
    else:
        raw = [v.encode() for v in values]
    return np.fromiter(map(xxhash.xxh64_intdigest, raw), np.uint64, len(raw)).view(np.int64)


def check(batch: pa.RecordBatch | pa.Table, source: LogFile, rules: Rules, first_row: int) -> Checked:
    """Check a batch of a file whose footer was checked by ``vista.data.logs.inspecting.inspect``.

    Args:
        batch: rows of ``source`` with its columns ``source.names``.
        first_row: number of the first row in the file.
    """
    columns, line, bad = _columns(batch, source, first_row)
    reading = rules.reading
    user, time = _checked_rows(columns, source, rules, first_row, bad)
    item, names, item_text = _ids(columns["item_id"], source.kinds["item_id"], "item", bad)
    out = {"item": item, "time": time}
    out["request"] = (
        _ids(columns["request_id"], source.kinds["request_id"], "request", bad)[0]
        if "request_id" in columns
        else _zeros(len(user))
    )
    shown_file = source.shows
    mask = _masks(columns, source, rules, bad, item_text, null_is_none=shown_file)
    out["action"] = mask
    if shown_file:
        bad.where(columns["request_id"].is_null(), "null_request")
        out["position"] = _small(columns["position"], 2**31 - 1, "position", bad)
    else:
        out["surface"] = _surfaces(columns, source, rules, bad)
    as_shown = reading.unengaged == "impressions" and not shown_file
    if as_shown:
        if "position" in columns:
            out["position"] = _small(columns["position"], 2**31 - 1, "position", bad)
        else:
            out["position"] = np.zeros(len(user), np.int32)
        if "request_id" not in columns:
            out["request"] = np.where(time == 0, 1, time)  # what a user was shown at one time is one request
    elif reading.unengaged == "refused" and not shown_file:
        bad.where(mask == 0, "no_action")
    keep = ~bad.mask
    engaged = (mask != 0)[keep] if as_shown else None
    if keep.all():
        return Checked(user, out, names, [], engaged)
    found = letters(batch, source, np.flatnonzero(bad.mask), line, bad.reason)
    kept = user.filter(pa.array(keep))
    out = {name: c[keep] for name, c in out.items()}
    if len(names[0]):
        used = np.isin(names[0], out["item"])
        names = (names[0][used], names[1].filter(pa.array(used)))
    return Checked(kept, out, names, found, engaged)


def _checked_rows(
    columns: dict[str, pa.Array], source: LogFile, rules: Rules, first_row: int, bad: _Bad
) -> tuple[pa.Array, np.ndarray]:
    """(user, time int64 [N]) of the rows; those without user, item or a time within the bounds are bad."""
    user = columns["user_id"]
    bad.where(user.is_null(), "null_user")
    if source.kinds["user_id"] == "int":
        user = pa.array(_ints(user, "user", bad))
    else:
        user = _user_text(user, bad)
    bad.where(columns["item_id"].is_null(), "null_item")
    n = len(user)
    if rules.reading.by_order:
        time = rules.first_time_ms + source.first + first_row + np.arange(n, dtype=np.int64)
    elif "timestamp_ms" in columns:
        time = _times(columns["timestamp_ms"], columns.get(SECOND), rules, bad)
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
            column = _plain(column.flatten())
        if kind.endswith("int"):
            found[meaning] = np.unique(_ints(column.drop_null(), meaning, _Bad(len(column)))).tolist()
        else:
            _, values, _ = _texts(column, "", MAX_TEXT_BYTES, _Bad(len(column)))
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
    ids, _, _ = _ids(item, source.kinds["item_id"], "item", bad)
    codes, values, _ = _texts(_as_text(name), "name", MAX_TEXT_BYTES, bad)
    content: dict[str, pa.Array] = {}
    for meaning in ("category", "text"):
        if meaning in columns:
            content[meaning] = _words(columns[meaning], meaning, bad)
    if "vector" in columns and not pa.types.is_null(columns["vector"].type):
        content["vector"] = _vectors(columns["vector"], width, bad)
    keep = pa.array(~bad.mask)
    found = letters(batch, source, np.flatnonzero(bad.mask), line, bad.reason)
    names = values.take(pa.array(codes[~bad.mask]))
    return CheckedItems(ids[~bad.mask], names, {n: c.filter(keep) for n, c in content.items()}, found)


def _words(column: pa.Array, name: str, bad: _Bad) -> pa.Array:
    """Texts, null where there is none; of a list its elements with bars between."""
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), pa.string())
    if (kind_of(column.type) or "").startswith("list"):
        inside = _plain(column.flatten()).cast(pa.string())
        flat = pa.ListArray.from_arrays(_offsets(column), pc.fill_null(inside, ""))
        column = pc.if_else(column.is_null(), pa.scalar(None, pa.string()), pc.binary_join(flat, "|"))
    codes, values, null = _texts(_as_text(column), name, MAX_TEXT_BYTES, bad)
    text = values.take(pa.array(codes))
    return pc.if_else(pa.array(null | codes_empty(values)[codes]), pa.scalar(None, pa.string()), text)


def _offsets(column: pa.Array) -> pa.Array:
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def _vectors(column: pa.Array, width: int, bad: _Bad) -> pa.Array:
    """Lists of float32, null where there is none or all of it is 0; those of another width or not finite are bad."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    there = column.is_valid().to_numpy(zero_copy_only=False)
    bad.where(there & (lengths != width) & (lengths > 0), "vector_width")
    row = owners_of(lengths)
    flat = pc.fill_null(column.flatten().cast(pa.float64(), safe=False), np.nan).to_numpy(
        zero_copy_only=False
    )
    with np.errstate(over="ignore"):
        flat = flat.astype(np.float32)
    wrong = np.zeros(len(column), bool)
    wrong[row[~np.isfinite(flat)]] = True
    bad.where(wrong, "vector_not_finite")
    some = np.zeros(len(column), bool)
    some[row[flat != 0]] = True
    return pa.ListArray.from_arrays(_offsets(column), pa.array(flat), mask=pa.array(~some))


def _columns(
    batch: pa.RecordBatch | pa.Table, source: LogFile, first_row: int
) -> tuple[dict[str, pa.Array], np.ndarray, _Bad]:
    """Columns by meaning, the line or row of the file that each row is of, and the rows that are broken already."""
    n = batch.num_rows
    bad = _Bad(n)
    columns = {meaning: _plain(batch.column(name)) for meaning, name in source.names.items()}
    for meaning, value in source.constants.items():
        if meaning not in columns:
            as_int = source.kinds.get(meaning) == "int" and value is not None
            type_ = pa.int64() if source.kinds.get(meaning) == "int" else pa.string()
            columns[meaning] = pa.repeat(pa.scalar(int(value or 0) if as_int else value, type_), n)
    line = columns.pop(LINE).to_numpy() if LINE in columns else np.arange(first_row, first_row + n)
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

    @property
    def reasons(self) -> list[str]:
        return self._reasons[1:]

    def of(self, reason: str) -> np.ndarray:
        return self._code == self._reasons.index(reason)


def _zeros(n: int) -> np.ndarray:
    return np.zeros(n, np.int64)


def _plain(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """One array; of dictionaries those of text stay, text is string, and a column without a type is of nulls."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    if pa.types.is_dictionary(column.type) and kind_of(column.type) != "string":
        column = column.cast(column.type.value_type)
    return column


def _as_text(column: pa.Array) -> pa.Array:
    """A column of any simple type as text, dictionaries of text as they are."""
    return column if kind_of(column.type) == "string" else column.cast(pa.string())


def _texts(column: pa.Array, name: str, most: int, bad: _Bad) -> tuple[np.ndarray, pa.Array, np.ndarray]:
    """(code int64 [N], the distinct texts, bool [N]: null) of a column of text; rows that are no UTF-8 or longer than
    ``most`` bytes are bad, and their text is empty. Looks at distinct values alone, however often each stands there."""
    column = _as_text(column)
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
    flawed = pc.fill_null(pc.greater(pc.binary_length(raw), most), False).to_numpy(zero_copy_only=False)
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


def _user_text(column: pa.Array, bad: _Bad) -> pa.Array:
    codes, values, null = _texts(_as_text(column), "user", MAX_USER_BYTES, bad)
    empty = pc.equal(pc.binary_length(values), 0).to_numpy(zero_copy_only=False)
    bad.where(empty[codes] & ~null, "user_length")
    return values.take(pa.array(codes))


def _ints(column: pa.Array, name: str, bad: _Bad) -> np.ndarray:
    """int64 [N], nulls as 0; rows whose number is not whole or does not fit are bad."""
    if pa.types.is_null(column.type):
        return _zeros(len(column))
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if kind_of(column.type) == "string":  # constants of a path
        column = pc.if_else(column.is_null(), "0", _as_text(column))
    filled = pc.fill_null(column, 0) if column.null_count else column
    try:
        return filled.cast(pa.int64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        pass
    if pa.types.is_floating(filled.type):
        values = filled.to_numpy(zero_copy_only=False).astype(np.float64)
        nothing = np.isnan(values)
        bad.where(nothing, f"null_{name}")
        with np.errstate(invalid="ignore"):
            wrong = ~nothing & ((values != np.rint(values)) | (np.abs(values) >= 2**63))
        bad.where(wrong, f"{name}_not_whole")
        return np.where(nothing | wrong, 0, values).astype(np.int64)
    found = [_int64(v) for v in filled.to_pylist()]
    bad.where(np.array([v is None for v in found]), f"{name}_out_of_range")
    return np.array([v or 0 for v in found], np.int64)


def _int64(value: object) -> int | None:
    try:
        number = int(value)  # type: ignore[call-overload]
    except (ValueError, OverflowError, ArithmeticError):
        return None
    return number if number == value and -(2**63) <= number < 2**63 else None


def _ids(
    column: pa.Array, kind: str, name: str, bad: _Bad
) -> tuple[np.ndarray, tuple[np.ndarray, pa.Array], pa.Array]:
    """(int64 [N], names, the ids as the log has them): ints as they are, strings hashed, nulls 0."""
    if kind in ("int", "null"):
        values = _ints(column, name, bad)
        return values, NO_NAMES, pa.array(values)
    codes, values, null = _texts(_as_text(column), name, MAX_TEXT_BYTES, bad)
    ids = hash_strings(values)
    used = pa.array(ids), values
    if null.any():
        ids[-1] = 0
        used = pa.array(ids[:-1]), values[:-1]
    return ids[codes], (used[0].to_numpy(), used[1]), pa.DictionaryArray.from_arrays(codes, values)


def _times(column: pa.Array, second: pa.Array | None, rules: Rules, bad: _Bad) -> np.ndarray:
    """int64 [N], milliseconds."""
    if kind_of(column.type) == "string":
        codes, values, null = _texts(column, "time", 1_000, bad)
        text = values.take(pa.array(codes))
        column = pc.if_else(pa.array(null | (codes_empty(values)[codes])), pa.scalar(None, pa.string()), text)
    if second is not None and kind_of(second.type) == "string":
        codes, values, null = _texts(second, "time", 1_000, bad)
        second = pc.if_else(pa.array(null), pa.scalar(None, pa.string()), values.take(pa.array(codes)))
    if pa.types.is_null(column.type):
        bad.where(np.ones(len(column), bool), "null_time")
        return _zeros(len(column))
    time, missing, unread = times.milliseconds(column, rules.reading, second)
    bad.where(missing, "null_time")
    bad.where(unread, "no_time_format" if rules.reading.time_format else "unreadable_time")
    bad.where(time < 0, "negative_time")
    bad.where(time < rules.min_time_ms, "time_too_early")
    bad.where(time > rules.max_time_ms, "time_too_late")
    return time


def codes_empty(values: pa.Array) -> np.ndarray:
    """bool: which texts are empty."""
    return pc.equal(pc.binary_length(values), 0).to_numpy(zero_copy_only=False)


def _small(column: pa.Array, largest: int, name: str, bad: _Bad) -> np.ndarray:
    bad.where(column.is_null(), f"null_{name}")
    values = _ints(column, name, bad)
    bad.where((values < 0) | (values > largest), f"{name}_out_of_range")
    return np.where((values < 0) | (values > largest), 0, values).astype(np.int32)


def _surfaces(columns: dict[str, pa.Array], source: LogFile, rules: Rules, bad: _Bad) -> np.ndarray:
    kind = source.kinds.get("surface", "null") if "surface" in columns else "null"
    if kind == "null":
        return np.zeros(len(columns["user_id"]), np.int32)
    column = columns["surface"]
    if kind == "int":
        return _small(column, 2**31 - 1, "surface", bad)
    bad.where(column.is_null(), "null_surface")
    values, unknown = _named(column, rules.surfaces, "surface", bad)
    bad.where(unknown, "unknown_surface")
    return values.astype(np.int32)


def _named(
    column: pa.Array, vocabulary: tuple[str, ...], name: str, bad: _Bad
) -> tuple[np.ndarray, np.ndarray]:
    """(place in the vocabulary int64 [N], 0 where there is none; bool [N]: not null and not in it)."""
    codes, values, null = _texts(_as_text(column), name, MAX_TEXT_BYTES, bad)
    place = {text: i for i, text in enumerate(vocabulary)}
    known = np.array([place.get(v, -1) for v in values.to_pylist()], np.int64)
    if not len(known):
        return np.zeros(len(column), np.int64), np.zeros(len(column), bool)
    known = known[codes]
    return np.maximum(known, 0), (known == -1) & ~null


def _masks(
    columns: dict[str, pa.Array], source: LogFile, rules: Rules, bad: _Bad, item: pa.Array, null_is_none: bool
) -> np.ndarray:
    """int32 [N]: the bits of a row's actions, from every column that tells some."""
    n = len(item)
    mask = np.zeros(n, np.int32)
    reading = rules.reading
    key = "actions" if "actions" in columns else "action"
    if key in columns:
        none = null_is_none or bool(reading.actions)
        mask = _actions(columns[key], source.kinds[key], rules, bad, null_is_none=none)
    bits = actions.bits(rules.reading.named_actions(), rules.actions)
    for action in reading.actions:
        if TOLD + action.name not in columns:
            continue
        column = columns[TOLD + action.name]
        if kind_of(column.type) == "string":
            codes, values, null = _texts(column, "action", MAX_TEXT_BYTES, bad)
            column = pc.if_else(pa.array(null), pa.scalar(None, pa.string()), values.take(pa.array(codes)))
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


def _actions(column: pa.Array, kind: str, rules: Rules, bad: _Bad, null_is_none: bool) -> np.ndarray:
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
        flat = _plain(column.flatten())
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        row = owners_of(lengths)
    else:
        flat, row = column.drop_null(), np.flatnonzero(~nulls)
    inner = _Bad(len(flat))
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
