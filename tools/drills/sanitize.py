"""The compiled part under AddressSanitizer and UndefinedBehaviorSanitizer, with guard pages around what it is given.

    make sanitize                                # a million calls
    vista drill sanitize --calls 1000000

``native.c`` is built anew with both, and a child whose interpreter has them loaded calls its functions with arrays that
end at a page that no one may touch: places, offsets and words from the whole range of their types, sizes that are none.
What NumPy gives for the same is what it must give; the first error of a sanitizer ends the child and is told.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import xxhash

from cache_store.format import index
from cache_store.format.keys import hash_of
from cache_store.format.quantize import Codec
from cache_store.format.record import HEADER, header_check
from cache_store.native import library as native
from tools.drills.asked import asked

PAGE, MODEL = 4_096, 77
EDGES = (
    -(1 << 63), -(1 << 63) + 15, -PAGE, -1, 0, 15, 16, 17, PAGE, PAGE + 16, 1 << 40, 1 << 62, (1 << 63) - 1,
)  # fmt: skip
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class GuardedRoom:
    """Room between two pages that no one may touch; arrays in it end at the second."""

    def __init__(self, pages: int) -> None:
        self._map = mmap.mmap(-1, (pages + 2) * PAGE)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._room = self._bytes[PAGE : (pages + 1) * PAGE]
        for at in (self._bytes.ctypes.data, self._bytes.ctypes.data + (pages + 1) * PAGE):
            if _libc.mprotect(at, PAGE, 0):
                raise OSError(ctypes.get_errno(), "mprotect")

    def put(self, values: np.ndarray) -> np.ndarray:
        """A copy of an array that ends where the room ends."""
        size = values.nbytes
        if not size:
            return values
        out = self._room[len(self._room) - size :].view(values.dtype).reshape(values.shape)
        out[...] = values
        return out


def build(folder: Path) -> Path:
    """``native.c`` with both sanitizers.

    Raises:
        subprocess.CalledProcessError: there is no compiler, or it has no sanitizers.
    """
    source, out = Path(native.__file__).with_name("native.c"), folder / "native_sanitized.so"
    flags = ["-O1", "-g", "-shared", "-fPIC", "-fno-omit-frame-pointer", "-fsanitize=address,undefined",
             "-fno-sanitize-recover=all"]  # fmt: skip
    subprocess.run([_compiler(), *flags, str(source), "-o", str(out)], check=True)
    return out


def _compiler() -> str:
    found = shutil.which("gcc") or shutil.which("cc")
    if found is None:
        raise SystemExit("sanitize: no C compiler here")
    return found


def run(calls: int, seed: int = 0) -> dict[str, object]:
    """So many calls in a child; its figures.

    Raises:
        RuntimeError: a sanitizer found something, or a result differs; the text says what.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
        found = subprocess.check_output([_compiler(), "-print-file-name=libasan.so"], text=True)
        options = {"LD_PRELOAD": found.strip(), "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0"}
        environment = {**os.environ, **options}
        asked_for = ["--child", str(library), "--calls", str(calls), "--seed", str(seed)]
        words = [sys.executable, "-m", "tools.drills.sanitize", *asked_for]
        limit = 60 + calls / 100
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=limit)
    if done.returncode:
        raise RuntimeError(f"exit {done.returncode}: {done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def child(library: Path, calls: int, seed: int) -> dict[str, object]:
    """Call the functions; each kind in turn."""
    built, rng = native.Library(library), np.random.default_rng(seed)
    rooms = [GuardedRoom(64) for _ in range(6)]
    kinds = (_copy, _find, _hash, _decode)
    start, counts = time.perf_counter(), dict.fromkeys((k.__name__[1:] for k in kinds), 0)
    for n in range(calls):
        kind = kinds[n % len(kinds)]
        kind(built, rng, rooms)
        counts[kind.__name__[1:]] += 1
    return {"calls": calls, **counts, "seconds": round(time.perf_counter() - start, 1)}


def _copy(built: native.Library, rng: np.random.Generator, rooms: list[GuardedRoom]) -> None:
    pages, held, n = int(rng.integers(1, 3)), int(rng.integers(1, 12)), int(rng.integers(0, 10))
    payload = int(rng.integers(241, pages * PAGE - 79))
    data = rooms[0].put(rng.integers(0, 256, held * PAGE, np.uint8))
    place = rng.integers(0, held, n) * PAGE + 16
    wild = rng.random(n) < 0.4
    place[wild] = rng.choice(np.array(EDGES), int(wild.sum()))
    keys, head = rng.integers(0, 1 << 63, n, np.uint64), rooms[3].put(np.zeros(n, HEADER))
    for i in np.flatnonzero(rng.random(n) < 0.5).tolist():
        at = int(place[i])
        if 16 <= at <= held * PAGE - pages * PAGE + 16 and at % PAGE == 16:
            one = data[at : at + 64].view(HEADER)
            one["key_hash"], one["model"], one["format"], one["flags"], one["zero"] = keys[i], MODEL, 1, 0, 0
            one["payload_hash"] = xxhash.xxh3_64_intdigest(data[at + 64 : at + 64 + payload].tobytes())
            one["check"] = header_check(one)
    out = rooms[1].put(np.zeros((n, pages * PAGE), np.uint8))
    good, verify = rooms[4].put(np.zeros(n, bool)), bool(rng.integers(2))
    built.copy_rows(
        data.ctypes.data, len(data), rooms[2].put(place), out, bool(rng.integers(2)), payload, rooms[5].put(keys),
        MODEL, verify, head, good, None,
    )  # fmt: skip
    for i, at in enumerate(place.tolist()):
        start = at - 16
        inside = 0 <= start <= len(data) - pages * PAGE and start % PAGE == 0
        expected = data[start : start + pages * PAGE] if inside else np.zeros(pages * PAGE, np.uint8)
        if not (out[i] == expected).all() or (good[i] and not inside):
            raise AssertionError(f"copy_rows: row {i} at {at}")


def _find(built: native.Library, rng: np.random.Generator, rooms: list[GuardedRoom]) -> None:
    n, text = int(rng.integers(0, 40)), bool(rng.integers(2))
    hashes, second = rng.integers(0, 1 << 64, (2, n), np.uint64, endpoint=False)
    words = index.build(hashes, second if text else None, hashes ^ second, np.arange(n) + 16, None, 99)
    shape = index.shape(words, "index")
    for at in rng.integers(index.HEADER_WORDS, len(words), int(rng.integers(0, 4))).tolist():
        words[at] = np.uint64(int(rng.choice(np.array(EDGES))) & ((1 << 64) - 1))
    table = index.IndexSet(rooms[0].put(words), [0], [shape])
    asked = np.concatenate([hashes, rng.integers(0, 1 << 64, 8, np.uint64, endpoint=False)])
    others = np.concatenate([second, asked[n:]]) if text else None
    shard = np.zeros(len(asked), np.int64)
    if rng.random() < 0.1:
        shard[-1] = int(rng.choice(np.array(EDGES)[[0, 3, 10, 12]]))
    found = built.find(*table._addresses, rooms[1].put(shard), rooms[2].put(asked), others, index._LONGEST)
    if (shard != 0).any():
        if found is not None:
            raise AssertionError("find: a shard that there is none of")
        return
    expected = table._find(shard, asked, others)
    if (found is None) != (expected is None):
        raise AssertionError("find: another verdict than NumPy's")
    if found is not None and expected is not None:
        there = expected[0] >= 0
        for ours, theirs in zip(found, expected, strict=True):
            if not (ours[there] == theirs[there]).all():
                raise AssertionError("find: another answer than NumPy's")


def _hash(built: native.Library, rng: np.random.Generator, rooms: list[GuardedRoom]) -> None:
    ids = rng.integers(-(1 << 63), (1 << 63) - 1, int(rng.integers(0, 20)), np.int64, endpoint=True)
    held, native.library = native.library, None
    try:
        expected = hash_of(ids)
    finally:
        native.library = held
    if not (built.hash(rooms[0].put(ids)) == expected).all():
        raise AssertionError("hash: another than NumPy's")


def _decode(built: native.Library, rng: np.random.Generator, rooms: list[GuardedRoom]) -> None:
    codec = str(rng.choice(native.CODECS))
    n, tokens, width = (int(x) for x in rng.integers(1, (6, 5, 40)))
    fields = Codec(codec, tokens, width).fields
    records = np.zeros(n, fields)
    whole = rooms[0].put(rng.integers(0, 256, records.nbytes, np.uint8)).view(records.dtype)
    codes, scale = whole[fields[-1][0]], whole["scale"] if codec == "int8" else None
    out = rooms[1].put(np.zeros((n, tokens, width), np.float32))
    table = rooms[2].put(np.arange(256, dtype=np.float32))
    built.decode(codec, codes, scale, table, out, bool(rng.integers(2)))
    if codec == "log8" and not (out == table[codes]).all():
        raise AssertionError("decode: log8")


def main() -> None:
    given = asked(__doc__, calls=1_000_000, seed=0, child=(Path, argparse.SUPPRESS))
    made = child(given.child, given.calls, given.seed) if given.child else run(given.calls, given.seed)
    print(json.dumps(made))


if __name__ == "__main__":
    main()
