"""The folder of a demo: what an earlier demo made is known by its marker, and nothing else is ever deleted.

    OUT/.vista-demo     JSON: format, and every file the demo made with its size and XXH3-128;
                        until its end the folder's inode instead, locked, and touched twice a second

A demo is given an empty folder, so what lies under its own names at its end is its own: when it was killed, whatever
did not change after it last touched the marker. Another demo may clear the folder only while every file in it is one
of those, unchanged; else it is refused before anything is touched.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cache_store.format.layout import abandoned, digest_file
from tools.report.tables_seen import KEPT
from vista.small_text import replacing, small_json

MARKER = ".vista-demo"
FORMAT = "vista-demo 1"
NAMES = ("logs", "warehouse", "model", "model.training", "store", "index", "runs", "report.html")
BEAT_S = 0.5
AFTER_NS = 2_000_000_000
"""How long after the last beat a file may have changed that a killed demo made."""


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
            if key in (MARKER, KEPT) or abandoned(path) == MARKER:
                continue
            if path.is_symlink() or known is None or known.get(key) != _fact(path):
                found.append(key)
        # An empty folder that somebody made is his; one below a name of a demo's, in a folder that holds files of a
        # demo, is the demo's, which may have been stopped as it made the first file there.
        key = here.relative_to(out).as_posix()
        if not names and not files and here != out and (known is None or key.partition("/")[0] not in NAMES):
            found.append(key + "/")
    return sorted(found)


def clear(out: Path) -> None:
    """Delete what the marker lists, then the folders that this leaves empty. Only after :func:`foreign` was empty."""
    for key in _inventory(out) or ():
        (out / key).unlink(missing_ok=True)
    for path in [*out.glob(f".{MARKER}.*"), out / MARKER, out / KEPT]:
        path.unlink(missing_ok=True)
    for folder, _, _ in os.walk(out, topdown=False):
        if Path(folder) != out:
            os.rmdir(folder)


@contextmanager
def making(out: Path) -> Iterator[None]:
    """Fill a cleared folder: what is in it in the end is listed, and what is in it when this process is killed is known
    to be a demo's."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / MARKER, "w", encoding="utf-8") as marker:
        with suppress(OSError):  # a filesystem without locks: such a folder is refused when a demo was killed
            fcntl.flock(marker, fcntl.LOCK_EX)
        marker.write(json.dumps({"format": FORMAT, "folder": out.stat().st_ino}) + "\n")
        marker.flush()
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(BEAT_S):
                os.utime(marker.fileno())

        threading.Thread(target=beat, daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            mark(out)


def mark(out: Path) -> None:
    """List what the demo made."""
    text = json.dumps({"format": FORMAT, "files": {key: _fact(out / key) for key in _made(out)}})
    with replacing(out / MARKER) as file:
        file.write(f"{text}\n".encode())


def _made(out: Path) -> Iterator[str]:
    for name in NAMES:
        for path in (out / name, *(out / name).rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(out).as_posix()


def next_free(out: Path) -> Path:
    """``out``, or where that holds other files ``out-2``, ``out-3``, ..."""
    others = (out.with_name(f"{out.name}-{n}") for n in itertools.count(2))
    return next(path for path in itertools.chain([out], others) if not foreign(path))


def _fact(path: Path) -> list[object]:
    return [path.stat().st_size, digest_file(path)]


def _inventory(out: Path) -> dict[str, list[object]] | None:
    """Files that a demo made here; None where no marker tells."""
    try:
        found = small_json(out / MARKER)
        if found["format"] != FORMAT or found.get("folder", out.stat().st_ino) != out.stat().st_ino:
            return None
        if "files" not in found:
            with open(out / MARKER, "rb") as marker:
                fcntl.flock(marker, fcntl.LOCK_SH | fcntl.LOCK_NB)  # held: that demo lives
                last = os.fstat(marker.fileno()).st_mtime_ns + AFTER_NS
            return {key: _fact(out / key) for key in _made(out) if (out / key).stat().st_ctime_ns <= last}
        files = found["files"].items()
        return {k: v for k, v in files if ".." not in Path(k).parts and Path(k).parts[0] in NAMES} or None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None
