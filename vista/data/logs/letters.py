"""Rows that are set aside: their number, why, and what stood in them, cut to what a person reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vista.data.logs.schema import BROKEN, KEPT, LINE, LogFile, kind_of
from vista.data.logs.values import BadRows

KEPT_ELEMENTS = 20
AT_ONCE = 4_096


@dataclass(frozen=True)
class Letter:
    """One row set aside: its number in the file (from 0; in a text log its line, from 1), a short stable reason, its
    user, its values as JSON."""

    row: int
    reason: str
    user: str
    values: str


def letters(
    batch: pa.RecordBatch | pa.Table, source: LogFile, line: np.ndarray, bad: BadRows
) -> list[Letter]:
    """The bad rows of a batch as letters. ``line``: number of each row of the batch in its file."""
    found: list[Letter] = []
    rows = np.flatnonzero(bad.mask)
    for start in range(0, len(rows), AT_ONCE):
        some = rows[start : start + AT_ONCE]
        columns = {m: shown(batch.column(name), some) for m, name in source.names.items() if m != LINE}
        columns |= {m: [v] * len(some) for m, v in source.constants.items() if m not in columns}
        broken = columns.pop(BROKEN, [None] * len(some))
        for i, row in enumerate(some.tolist()):
            values = {"broken": broken[i]} if broken[i] else {}
            values |= {meaning: column[i] for meaning, column in columns.items()}
            user = values.get("user_id")
            text = json.dumps(values, default=str, ensure_ascii=False)
            found.append(Letter(int(line[row]), bad.reason(row), "" if user is None else str(user), text))
    return found


def shown(column: pa.Array | pa.ChunkedArray, rows: np.ndarray) -> list[Any]:
    """Values of some rows as JSON can hold them, long ones cut."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    if pa.types.is_dictionary(column.type):
        index = pc.take(column.indices, pa.array(rows))
        column, rows = column.dictionary, np.arange(len(index))
        used = pc.unique(index.drop_null())
        texts = dict(zip(used.to_pylist(), shown(column, used.to_numpy(zero_copy_only=False)), strict=True))
        return [None if i is None else texts[i] for i in index.to_pylist()]
    kind = kind_of(column.type)
    if kind == "string":
        raw = pc.binary_slice(column.take(pa.array(rows)).cast(pa.large_binary()), 0, 4 * KEPT)
        return [None if v is None else _text(v) for v in raw.to_pylist()]
    if kind is not None and (kind.startswith("list") or kind == "vector"):
        offsets = pc.list_value_length(column).to_numpy(zero_copy_only=False)
        found: list[list[Any] | None] = []
        for row in rows.tolist():
            if column[row].is_valid:
                values = column[row].values
                inside = shown(values, np.arange(min(len(values), KEPT_ELEMENTS)))
                found.append(inside + (["..."] if offsets[row] > KEPT_ELEMENTS else []))
            else:
                found.append(None)
        return found
    picked = column.take(pa.array(rows))
    if kind in ("timestamp", "duration"):  # those beyond the year 9999 are no Python value
        try:
            return picked.cast(pa.string()).to_pylist()
        except (pa.ArrowException, ValueError):
            return picked.cast(pa.int64()).to_pylist()
    return picked.to_pylist()


def _text(value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        text = value.decode(errors="ignore") if error.start >= 4 * KEPT - 4 else repr(value)
    return text if len(text) <= KEPT else text[:KEPT] + "..."
