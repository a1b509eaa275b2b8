"""Edits of JSON and of words that keep a file's form and break its meaning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

NUMBERS = (-1, 0, 1, 2, 7, 2**31, 2**32 - 1, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 0.5, 1e308)
OTHERS: tuple[Any, ...] = (
    None, True, False, "", "x", "../../x", "shard-00000-of-00002.mdb", "a" * 5_000, "\x00", "\ud800", [], {}, [[]],
    [None], {"a": 1}, "00000001", "00000002", "main", "full", "delta", "0" * 32,
)  # fmt: skip
WORDS = (
    0, 1, 2, 7, 15, 16, 17, 4_096, 1 << 31, 1 << 40, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 63) + 5, (1 << 64) - 1,
)  # fmt: skip


def choose(rng: np.random.Generator, values: Any) -> Any:
    """One of a sequence, as it is."""
    return values[int(rng.integers(len(values)))]


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values in a tree, the tree itself left out."""
    found = [] if not path else [path]
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        found += places(value, (*path, key))
    return found


def edit(rng: np.random.Generator, tree: Any) -> str:
    """Change one place of a JSON tree in itself; what was done, in words."""
    path = choose(rng, places(tree))
    above = tree
    for key in path[:-1]:
        above = above[key]
    key, value = path[-1], above[path[-1]]
    kind = str(rng.choice(["number", "other", "remove", "list", "near"]))
    if kind == "remove":
        del above[key]
    elif kind == "list" and isinstance(value, list) and value:
        act = str(rng.choice(["reversed", "twice", "shorter", "one for all"]))
        above[key] = {
            "reversed": value[::-1], "twice": value + value[:1], "shorter": value[:-1],
            "one for all": [value[0]] * len(value),
        }[act]  # fmt: skip
        kind = act
    elif kind == "near" and type(value) is int:
        above[key] = value + int(rng.choice([-1, 1, 2, -2 * value - 1]))
    elif kind == "near" and isinstance(value, str) and value:
        above[key] = value[:-1] + chr(ord(value[-1]) ^ 1)
    else:
        above[key] = choose(rng, NUMBERS if kind == "number" else OTHERS)
    return f"{'.'.join(map(str, path))}: {kind}"


def edit_file(rng: np.random.Generator, path: Path) -> str:
    """Change one place of a JSON file; what was done, in words."""
    values = json.loads(path.read_text())
    done = edit(rng, values)
    text, more = text_of(rng, values)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return f"{path.name} {done}{more}"


def text_of(rng: np.random.Generator, tree: Any) -> tuple[str, str]:
    """JSON of a tree, now and then with a key that is there twice or with a depth that no reader follows."""
    text, chance = json.dumps(tree), rng.random()
    if isinstance(tree, dict) and tree and chance < 0.1:
        key = choose(rng, list(tree))
        return f"{text[:-1]}, {json.dumps(key)}: {json.dumps(choose(rng, OTHERS))}}}", f"; {key} twice"
    if chance < 0.12:
        return text[:-1] + ', "deep": ' + "[" * 50_000 + "]" * 50_000 + "}", "; deep"
    if chance < 0.14:
        return text.replace("1", "NaN", 1), "; NaN"
    return text, ""
