"""Rows of JSON lines as batches of text. JSON tells text from numbers: "7" is a name."""

from __future__ import annotations

import ast
import io
import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from vista.data.logs.csv_rows import NULLS
from vista.data.logs.exploding import explode_object
from vista.data.logs.facts import Facts
from vista.data.logs.reading import Reading, exploded
from vista.data.logs.schema import BROKEN, KEPT, LINE

MAX_LINE = 16 << 20
"""Bytes of a line that is read; a longer one is broken."""

BATCH_ROWS, BATCH_BYTES = 65_536, 32 << 20
HEAD, MAX_DOCUMENT = 1 << 20, 1 << 30
"""Bytes of a JSON document that are looked at, and that are read."""
KEPT_KEYS = 100
_NULLS = frozenset(NULLS)
_loads = json.JSONDecoder().decode


def json_rows(
    stream: Any, names: list[str], facts: Facts, reading: Reading, ids: Collection[str], document: bool
) -> Iterator[pa.RecordBatch]:
    """Batches of the columns ``names`` as text, with ``LINE`` and ``BROKEN``; of ``ids`` a list or object is broken.

    A name such as ``user.id`` that is no key is the key ``id`` of the object ``user``.

    Args:
        document: the file may be one JSON document, see :func:`records`.
    """
    schema = pa.schema([*((name, pa.string()) for name in names), (LINE, pa.int64()), (BROKEN, pa.string())])
    rows: list[tuple[Any, ...]] = []
    keys: dict[str, None] = {}
    inner = {name: name.split(".") for name in names if "." in name}
    held = 0
    seen: Collection[str] = ()
    absent = {exploded(spec)[0] for spec in reading.explode}
    for number, line in enumerate(records(stream, document), start=1):
        if not isinstance(line, dict) and not line.strip():
            continue
        try:
            found, why = line if isinstance(line, dict) else parsed(line), None
            if absent:
                absent -= found.keys()
                keys.update(dict.fromkeys(found) if absent else {})
            some = list(explode_object(found, reading)) if reading.explode else (found,)
        except (ValueError, RecursionError) as error:
            said = "brackets in brackets" if isinstance(error, RecursionError) else error
            text = line if isinstance(line, bytes) else json.dumps(line).encode()
            start = text[: 4 * KEPT].decode(errors="replace").strip()[:KEPT]
            some, why = ({},), f"expected a JSON object, found {start!r} ({said})"
        for row in some:
            if inner:
                row = {**row, **{n: _inside(row, path) for n, path in inner.items() if n not in row}}
            rows.append((*map(row.get, names), number, why))
            if row.keys() != seen and len(keys) < KEPT_KEYS:
                keys.update(dict.fromkeys(row))
                seen = row.keys()
            if len(rows) >= BATCH_ROWS:
                yield _batch(rows, names, schema, facts, keys, ids)
                held = 0
        held += len(line) if isinstance(line, bytes) else 0
        if held >= BATCH_BYTES:
            yield _batch(rows, names, schema, facts, keys, ids)
            held = 0
    yield _batch(rows, names, schema, facts, keys, ids)
    if absent and keys:
        raise ValueError(
            f"--explode {min(absent)}: expected a field of that name, found {list(keys)[:40]}; for example --explode "
            f"{next(iter(keys))}"
        )
    if not keys:
        raise ValueError("no JSON object with a field in it")


def parsed(line: bytes) -> dict[str, Any]:
    """The object of a line: JSON, or as Python writes a dict.

    Raises:
        ValueError, RecursionError: it is none.
    """
    if len(line) > MAX_LINE:
        raise ValueError(f"a line of more than {MAX_LINE >> 20} MiB")
    text = line.decode("utf-8-sig")
    try:
        found = _loads(text)
    except ValueError:
        if not text.startswith(("{'", "{u'", '{u"')):
            raise
        try:
            found = ast.literal_eval(text)
        except (SyntaxError, MemoryError) as error:
            raise ValueError(str(error)) from error
    if not isinstance(found, dict):
        raise ValueError(type(found).__name__)
    return found


def records(stream: Any, document: bool) -> Iterator[bytes | dict[str, Any]]:
    """Lines; of a file that is one JSON document its objects: those of the list that it is, or of its longest one.

    Raises:
        ValueError: a document without a list of objects, or too large to be read at once.
    """
    head = stream.read(HEAD)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not document or start[:1] not in (b"[", b"{") or any(map(_is_object, start.split(b"\n", 5)[:5])):
        yield from _lines(stream, head)
        return
    parts = [head]
    while block := stream.read(HEAD):
        parts.append(block)
        if len(parts) > MAX_DOCUMENT // HEAD:
            raise ValueError(
                f"one JSON document of more than {MAX_DOCUMENT >> 20} MiB; write it as lines (jq -c '.[]' FILE)"
            )
    whole = b"".join(parts)
    try:
        found = _loads(whole.decode("utf-8-sig"))
    except ValueError:
        if start[:1] == b"[":
            raise
        yield from _lines(io.BytesIO(), whole)  # lines, the first of them broken
        return
    values = found.values() if isinstance(found, dict) else [found]
    objects = [v for v in values if isinstance(v, list) and any(isinstance(e, dict) for e in v)]
    if not objects and isinstance(found, dict):
        objects = [[found]]
    if not objects:
        raise ValueError("a JSON document without a list of objects")
    yield from (e if isinstance(e, dict) else json.dumps(e).encode() for e in max(objects, key=len))


def flattened(row: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """An object's fields with those of objects in it, as ``user.id``."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        nested = isinstance(value, dict) and before.count(".") < 8
        inner = flattened(value, f"{before}{name}.") if nested else None
        found |= inner or {before + name: value}
    return found


def _is_object(line: bytes) -> bool:
    try:
        parsed(line)
    except (ValueError, RecursionError):
        return False
    return True


def _inside(row: Mapping[str, Any], path: Sequence[str]) -> Any:
    found: Any = row
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _lines(stream: Any, head: bytes) -> Iterator[bytes]:
    """Lines of what begins with ``head``; of one longer than :data:`MAX_LINE` the first bytes."""
    held = b""
    long = False
    for block in itertools.chain([head], iter(lambda: stream.read(1 << 20), b"")):
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
    rows: list[tuple[Any, ...]],
    names: list[str],
    schema: pa.Schema,
    facts: Facts,
    keys: dict[str, None],
    ids: Collection[str],
) -> pa.RecordBatch:
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in schema]
    rows.clear()
    for name, column in zip(names, columns, strict=False):
        if name in ids and not {list, dict}.isdisjoint(map(type, column)):
            for i, value in enumerate(column):
                if type(value) in (list, dict):
                    columns[-1][i] = columns[-1][i] or f"{name}: expected one id, found {str(value)[:KEPT]}"
    texts = [_texts(name, c, facts) for name, c in zip(names, columns[:-2], strict=True)]
    try:
        arrays = [c if isinstance(c, pa.Array) else pa.array(c, pa.string()) for c in texts]
    except UnicodeEncodeError:  # half of a character, as "\ud83d" alone is
        for column in (c for c in texts if isinstance(c, list)):
            for i, value in enumerate(column):
                if value is not None and not _encodes(value):
                    columns[-1][i] = columns[-1][i] or f"half of a character: {value[:KEPT]!r}"
                    column[i] = None
        arrays = [c if isinstance(c, pa.Array) else pa.array(c, pa.string()) for c in texts]
    keys.update((name, None) for name, a in zip(names, arrays, strict=True) if a.null_count < len(a))
    facts.names = list(keys)
    why = columns[-1]
    if why.count(None) < len(why):
        why = [w if w is None or _encodes(w) else ascii(w) for w in why]
    return pa.record_batch(
        [*arrays, pa.array(columns[-2], pa.int64()), pa.array(why, pa.string())], schema=schema
    )


def _encodes(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _texts(name: str, values: list[Any], facts: Facts) -> list[str | None] | pa.Array:
    """The values of a column as text; notes of what its lists are."""
    if values.count(None) == len(values):
        return values
    kinds = Counter(map(type, values))
    if kinds.keys() <= {int, type(None)}:
        try:
            return pa.array(values, pa.int64()).cast(pa.string())
        except (OverflowError, pa.ArrowInvalid):
            return [None if v is None else str(v) for v in values]
    if kinds[float]:  # pandas writes integers as floats where some are missing
        values = [int(v) if type(v) is float and v.is_integer() and abs(v) < 2**53 else v for v in values]
    if kinds[list]:
        inner = {type(v) for row in values if type(row) is list for v in row} - {type(None)}
        listed = {"int" if kind is int else "string" for kind in inner}
        facts.lists[name] = sorted(listed.union(facts.lists.get(name, ())))
        facts.listed[name] = facts.listed.get(name, 0) + kinds[list]
    if kinds[str]:
        plain = kinds.keys() <= {str, type(None)}
        if not plain or not _NULLS.isdisjoint(values):
            values = [None if type(v) is str and v in _NULLS else v for v in values]
        if name not in facts.texts and any(map(str.isdecimal, (v for v in values if type(v) is str))):
            facts.texts.append(name)
        if plain:
            return values
    return [v if type(v) is str or v is None else json.dumps(v, ensure_ascii=False) for v in values]
