"""The folder of a demo: what an earlier demo made is known by its marker, and nothing else is ever deleted.

    OUT/.vista-demo     JSON: format, and every file the demo made with its size and XXH3-128

A demo is given an empty folder, so what lies under its own names at its end is its own. Another demo may clear the
folder only while every file in it is one of those, unchanged; else it is refused before anything is touched.
"""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

from cache_store.format.layout import digest_file
from tools.report.tables_seen import KEPT
from vista.small_text import small_json

MARKER = ".vista-demo"
FORMAT = "vista-demo 1"
NAMES = ("logs", "warehouse", "model", "model.training", "store", "index", "runs", "report.html")


def foreign(out: Path) -> list[str]:
    """Files below ``out`` that no demo is known to have made as they are now, sorted; empty for an empty folder."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        return ["."]
    known = _inventory(out)
    found = []
    for folder, names, files in os.walk(out):
        here = Path(folder)
        for name in (*files, *(n for n in names if (here / n).is_symlink())):
            path = here / name
            key = path.relative_to(out).as_posix()
            if key not in (MARKER, KEPT) and (path.is_symlink() or known.get(key) != _fact(path)):
                found.append(key)
        # An empty folder that somebody made is his; one below a name of a demo's, in a folder that holds files of a
        # demo, is the demo's, which may have been stopped as it made the first file there.
        key = here.relative_to(out).as_posix()
        if not names and not files and here != out and not (known and key.partition("/")[0] in NAMES):
            found.append(key + "/")
    return sorted(found)


def clear(out: Path) -> None:
    """Delete what the marker lists, then the folders that this leaves empty. Only after :func:`foreign` was empty."""
    for key in _inventory(out):
        (out / key).unlink(missing_ok=True)
    for name in (MARKER, KEPT):
        (out / name).unlink(missing_ok=True)
    for folder, _, _ in os.walk(out, topdown=False):
        if Path(folder) != out:
            os.rmdir(folder)


def mark(out: Path) -> None:
    """List what the demo made."""
    files = {
        path.relative_to(out).as_posix(): _fact(path)
        for name in NAMES for path in (out / name, *(out / name).rglob("*"))
        if path.is_file() and not path.is_symlink()
    }  # fmt: skip
    if files:
        (out / MARKER).write_text(json.dumps({"format": FORMAT, "files": files}) + "\n", encoding="utf-8")


def next_free(out: Path) -> Path:
    """``out``, or where that holds other files ``out-2``, ``out-3``, ..."""
    others = (out.with_name(f"{out.name}-{n}") for n in itertools.count(2))
    return next(path for path in itertools.chain([out], others) if not foreign(path))


def _fact(path: Path) -> list[object]:
    return [path.stat().st_size, digest_file(path)]


def _inventory(out: Path) -> dict[str, list[object]]:
    try:
        found = small_json(out / MARKER)
        files = found["files"] if found["format"] == FORMAT else {}
        return {k: v for k, v in files.items() if ".." not in Path(k).parts and Path(k).parts[0] in NAMES}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return {}
