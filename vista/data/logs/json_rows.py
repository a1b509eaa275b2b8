"""Rows of JSON lines as batches of text. JSON tells text from numbers: "7" is a name."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa

from vista.data.logs.csv_rows import NULLS
from vista.data.logs.exploding import explode_object
from vista.data.logs.facts import Facts
from vista.data.logs.reading import Reading
from vista.data.logs.schema import BROKEN, LINE

MAX_LINE = 16 << 20
"""Bytes of a line that is read; a longer one is broken."""

BATCH_ROWS, BATCH_BYTES = 65_536, 32 << 20
KEPT = 500
KEPT_KEYS = 100
_NULLS = frozenset(NULLS)


def json_rows(
    stream: Any, names: list[str], facts: Facts, reading: Reading, ids: Collection[str] = ()
) -> Iterator[pa.RecordBatch]:
    """Batches of the columns ``names`` as text, with ``LINE`` and ``BROKEN``; of ``ids`` a list or object is broken."""
    schema = pa.schema([*((name, pa.string()) for name in names), (LINE, pa.int64()), (BROKEN, pa.string())])
    rows: list[tuple[Any, ...]] = []
    keys: dict[str, None] = {}
    held = 0
    for number, line in enumerate(_lines(stream), start=1):
        if not line.strip():
            continue
        try:
            if len(line) > MAX_LINE:
                raise ValueError(f"a line of more than {MAX_LINE >> 20} MiB")
            found, why = json.loads(line), None
            if not isinstance(found, dict):
                raise ValueError(type(found).__name__)
            some = list(explode_object(found, reading)) if reading.explode else (found,)
        except (ValueError, RecursionError) as error:
            said = "brackets in brackets" if isinstance(error, RecursionError) else error
            start = line[: 4 * KEPT].decode(errors="replace").strip()[:KEPT]
            some, why = ({},), f"expected a JSON object, found {start!r} ({said})"
        for row in some:
            odd = next((n for n in ids if type(row.get(n)) in (list, dict)), None)
            wrong = why if odd is None else f"{odd}: expected one id, found {str(row[odd])[:KEPT]}"
            rows.append((*map(row.get, names), number, wrong))
            if len(keys) < KEPT_KEYS:
                keys.update(dict.fromkeys(row))
            if len(rows) >= BATCH_ROWS:
                yield _batch(rows, names, schema, facts, keys)
                held = 0
        held += len(line)
        if held >= BATCH_BYTES:
            yield _batch(rows, names, schema, facts, keys)
            held = 0
    yield _batch(rows, names, schema, facts, keys)
    if not keys:
        raise ValueError("no JSON object with a field in it")


def _lines(stream: Any) -> Iterator[bytes]:
    """Lines; of one longer than :data:`MAX_LINE` the first bytes."""
    held = b""
    long = False
    while block := stream.read(1 << 20):
        lines = (held + block).split(b"\n") if not long else block.split(b"\n")
        if long:
            if len(lines) == 1:
                continue
            yield held
            lines, long = lines[1:], False
        yield from lines[:-1]
        held = lines[-1]
        if len(held) > MAX_LINE:
            held, long = held[: MAX_LINE + 1], True
    if held:
        yield held


def _batch(
    rows: list[tuple[Any, ...]], names: list[str], schema: pa.Schema, facts: Facts, keys: dict[str, None]
) -> pa.RecordBatch:
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in schema]
    rows.clear()
    texts = [_texts(name, c, facts) for name, c in zip(names, columns[:-2], strict=True)]
    try:
        arrays = [pa.array(c, pa.string()) for c in texts]
    except UnicodeEncodeError:  # half of a character, as "\ud83d" alone is
        for column in texts:
            for i, value in enumerate(column):
                if value is not None and not _encodes(value):
                    columns[-1][i] = columns[-1][i] or f"half of a character: {value[:KEPT]!r}"
                    column[i] = None
        arrays = [pa.array(c, pa.string()) for c in texts]
    keys.update((name, None) for name, a in zip(names, arrays, strict=True) if a.null_count < len(a))
    facts.names = list(keys)
    why = [w if w is None or _encodes(w) else ascii(w) for w in columns[-1]]
    return pa.record_batch(
        [*arrays, pa.array(columns[-2], pa.int64()), pa.array(why, pa.string())], schema=schema
    )


def _encodes(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _texts(name: str, values: list[Any], facts: Facts) -> list[str | None]:
    """The values of a column as text; notes of what its lists are."""
    kinds = Counter(map(type, values))
    if kinds[float]:  # pandas writes integers as floats where some are missing
        values = [int(v) if type(v) is float and v.is_integer() and abs(v) < 2**53 else v for v in values]
    if kinds[type(None)] == len(values):
        return values
    if kinds[list]:
        inner = {type(v) for row in values if type(row) is list for v in row} - {type(None)}
        listed = {"int" if kind is int else "string" for kind in inner}
        facts.lists[name] = sorted(listed.union(facts.lists.get(name, ())))
        facts.listed[name] = facts.listed.get(name, 0) + kinds[list]
    if kinds[str]:
        values = [None if type(v) is str and v in _NULLS else v for v in values]
        if name not in facts.texts and any(type(v) is str and v.isdecimal() for v in values):
            facts.texts.append(name)
    return [v if type(v) is str or v is None else json.dumps(v, ensure_ascii=False) for v in values]
