"""Lists of one row as rows of their own: a user's or a session's events, a slate's items; nested or as text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vista.data.arrow import decoded, list_lengths, valid
from vista.data.logs.reading import Reading, exploded
from vista.data.logs.schema import BROKEN, LINE
from vista.jagged import owners_of, places_of

POSITION = "position"
"""Column of an element's place in its list, unless the log has one."""

MAX_ELEMENTS = 10_000_000
AT_ONCE = 262_144


def explode_all(batches: Iterator[pa.RecordBatch], reading: Reading) -> Iterator[pa.RecordBatch]:
    """Batches of text exploded, about :data:`AT_ONCE` rows at a time."""
    if not reading.explode:
        yield from batches
        return
    for batch in batches:
        for part in explode_parts(batch, reading):
            at = part.schema.get_field_index(POSITION)
            yield part.set_column(at, POSITION, part.column(at).cast(pa.string()))


def explode_parts(batch: pa.RecordBatch, reading: Reading) -> Iterator[pa.RecordBatch]:
    """A batch exploded in parts."""
    first = exploded(reading.explode[0])[0]
    if first not in batch.schema.names or not batch.num_rows:
        yield explode(batch, reading)
        return
    ends = np.cumsum(list_lengths(_as_list(batch.column(first))))
    start = 0
    while start < batch.num_rows:
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + AT_ONCE, "right")))
        yield explode(batch.slice(start, stop - start), reading)
        start = stop


def explode(batch: pa.RecordBatch, reading: Reading) -> pa.RecordBatch:
    """One row per element of the lists that ``reading.explode`` names; ``LINE`` and ``BROKEN`` go with them. Rows whose
    lists differ in length are broken; those of empty lists are none."""
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    lists = {}
    for spec in reading.explode:
        name, fields, between = exploded(spec)
        if name in columns:
            lists[name] = (_as_list(columns.pop(name)), fields, between)
    if not lists:
        return batch.append_column(POSITION, pa.array(np.zeros(batch.num_rows, np.int64)))
    lengths = np.stack([list_lengths(c) for c, _, _ in lists.values()])
    broken = valid(columns[BROKEN])
    uneven = (lengths != lengths[0]).any(0) & ~broken
    long = (lengths[0] > MAX_ELEMENTS) & ~broken
    alone = broken | uneven | long
    count = np.where(alone, 1, lengths[0])
    row, inside = owners_of(count), places_of(count)
    found = {name: c.take(pa.array(row)) for name, c in columns.items()}
    if uneven.any() or long.any():
        why = found[BROKEN].to_pylist()
        for i in np.flatnonzero((uneven | long)[row]).tolist():
            sizes = ", ".join(f"{n} {lengths[k][row[i]]}" for k, n in enumerate(lists))
            why[i] = f"expected lists of one length (at most {MAX_ELEMENTS}), found {sizes}"
        found[BROKEN] = pa.array(why, pa.string())
    for name, (column, fields, between) in lists.items():
        starts = column.offsets.to_numpy()[:-1]
        at = pa.array(np.where(alone[row], -1, starts[row] + inside))
        values = column.values.take(pc.if_else(pc.less(at, 0), pa.scalar(None, pa.int64()), at))
        if pa.types.is_struct(values.type):
            found |= {inner.name: pc.struct_field(values, [k]) for k, inner in enumerate(values.type)}
        elif fields:
            _apart(found, name, values, fields, between)
        else:
            found[name] = values
    found.setdefault(POSITION, pa.array(inside))
    last = {n: found.pop(n) for n in (LINE, BROKEN)}
    return pa.record_batch({**found, **last})


def _apart(
    found: dict[str, pa.Array], name: str, values: pa.Array, fields: Sequence[str], between: str
) -> None:
    """Add the two fields of texts such as ``N1-0``; what is none breaks its row."""
    parts = pc.split_pattern(values, between, max_splits=1, reverse=True)
    short = ~(pc.fill_null(pc.list_value_length(parts), 2).to_numpy(zero_copy_only=False) == 2)
    if short.any():
        why = found[BROKEN].to_pylist()
        for i in np.flatnonzero(short).tolist():
            says = f"expected {fields[0]}{between}{fields[1]}, found {str(values[i])[:200]!r}"
            why[i] = why[i] or f"{name}: {says}"
        found[BROKEN] = pa.array(why, pa.string())
        parts = pc.if_else(pa.array(short), pa.scalar(None, parts.type), parts)
    both = pc.fill_null(parts, pa.scalar([None, None], parts.type))
    found |= {inner: pc.list_element(both, k) for k, inner in enumerate(fields)}


def explode_object(row: Mapping[str, Any], reading: Reading) -> Iterator[Mapping[str, Any]]:
    """The rows of a JSON object.

    Raises:
        ValueError: what should be a list is none, or lists differ in length.
    """
    lists: dict[str, list[Any]] = {}
    for spec in reading.explode:
        name, fields, between = exploded(spec)
        if name not in row:
            raise ValueError(f"{name}: expected a list, found none")
        found = [] if row[name] is None else row[name]
        if isinstance(found, str):
            found = found.split()
        if not isinstance(found, list):
            raise ValueError(f"{name}: expected a list, found {str(found)[:200]!r}")
        if fields:
            found = [dict(zip(fields, str(v).rsplit(between, 1), strict=False)) for v in found]
        lists[name] = found
    sizes = {len(v) for v in lists.values()}
    if len(sizes) != 1 or max(sizes) > MAX_ELEMENTS:
        listed = ", ".join(f"{n} {len(v)}" for n, v in lists.items())
        raise ValueError(f"expected lists of one length (at most {MAX_ELEMENTS}), found {listed}")
    outer = {k: v for k, v in row.items() if k not in lists}
    for position, elements in enumerate(zip(*lists.values(), strict=True)):
        found = {POSITION: position, **outer}
        for name, element in zip(lists, elements, strict=True):
            found |= element if isinstance(element, dict) else {name: element}
        yield found


def _as_list(column: pa.Array) -> pa.ListArray:
    """A column of lists; of text that is a JSON list, or values with spaces between."""
    column = decoded(column)
    if pa.types.is_fixed_size_list(column.type) or pa.types.is_large_list(column.type):
        return column.cast(pa.list_(column.type.value_type))
    if pa.types.is_list(column.type):
        return column
    if pa.types.is_null(column.type):
        return column.cast(pa.list_(pa.string()))
    text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    if pc.any(pc.starts_with(text, "[")).as_py():
        return pa.array([_listed(v) for v in text.to_pylist()], pa.list_(pa.string()))
    return pc.utf8_split_whitespace(pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text))


def _listed(text: str | None) -> Sequence[str | None] | None:
    if not text:
        return None
    if not text.startswith("["):
        return text.split()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text.strip("[]").replace(",", " ").split()
    return [v if v is None or isinstance(v, str) else json.dumps(v) for v in found]
