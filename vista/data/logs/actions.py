"""Actions of rows as bit masks: a column of one or several, a column for each, one that all rows have."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vista.data.arrow import decoded, list_lengths, true, valid
from vista.data.logs.reading import ActionColumn
from vista.jagged import owners_of

MAX_ACTION = 30
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


def told(column: pa.Array, action: ActionColumn, item: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(bool [N]: the row has the action, bool [N]: the value cannot be read) of the column of one action; nulls have
    it not.

    Args:
        item: of the rows, for columns that list the items with the action.
    """
    n = len(column)
    type_ = column.type
    if pa.types.is_null(type_):
        return np.zeros(n, bool), np.zeros(n, bool)
    if pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
        return _listed(column, item), np.zeros(n, bool)
    if pa.types.is_boolean(type_):
        column = column.cast(pa.int8())
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    compare = COMPARE[action.operator or "!="]
    value: Any = action.value or "0"
    if pa.types.is_string(column.type):
        if action.operator in ("==", "!=") and not _is_number(value):
            has = compare(np.array(column.to_pylist(), dtype=object), value)
            return np.asarray(has, bool) & valid(column), np.zeros(n, bool)
        column, wrong = _numbers(column)
    elif not _is_number(value):
        return np.zeros(n, bool), valid(column)
    else:
        wrong = np.zeros(n, bool)
    value = float(value)
    value = int(value) if value.is_integer() else value
    values = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
    return compare(values, value) & valid(column), wrong


def _listed(column: pa.Array, item: pa.Array) -> np.ndarray:
    """bool [N]: the row's item is in its list."""
    row, item = owners_of(list_lengths(column)), decoded(item)
    same = pc.equal(_as_items(column.flatten(), item.type), item.take(pa.array(row)))
    has = np.zeros(len(column), bool)
    has[row[true(same)]] = True
    return has


def _as_items(flat: pa.Array, type_: pa.DataType) -> pa.Array:
    """Values as ids of items; what cannot be one is null."""
    with suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return flat.cast(type_)
    found = []
    for value in flat:
        try:
            found.append(value.cast(type_).as_py())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            found.append(None)
    return pa.array(found, type_)


_WORDS = {"true": 1.0, "t": 1.0, "yes": 1.0, "y": 1.0, "false": 0.0, "f": 0.0, "no": 0.0, "n": 0.0}


def _numbers(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Text of numbers or truth values as float64, and bool [N]: which is neither."""
    with suppress(pa.ArrowInvalid):
        return column.cast(pa.float64()), np.zeros(len(column), bool)
    encoded = column.dictionary_encode()
    values = [_WORDS.get(v.lower(), v) for v in encoded.dictionary.to_pylist()]
    found = [float(v) if isinstance(v, float) or _is_number(v) else None for v in values]
    numbers = pa.array(found, pa.float64()).take(encoded.indices)
    return numbers, ~valid(numbers) & valid(column)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def bits(names: Sequence[str], vocabulary: Sequence[str]) -> dict[str, np.int32]:
    """The bit of each name."""
    place = {name: i for i, name in enumerate(vocabulary)}
    return {name: np.int32(1) << np.int32(place[name]) for name in names if name in place}
