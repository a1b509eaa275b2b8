"""While a chain is read, its mapped files are compared with the manifests: a part of them with every lookup.

Who reads past the end of a file that was cut is killed by the system, so every size is asked once a second; and an
index that was altered would answer wrongly, so one after the other is hashed anew. A lookup does the part that is due
since the one before it: many lookups a second share the work, however many shards there are.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import xxhash

from cache_store.errors import Damaged
from cache_store.format.receipt import FileFact
from cache_store.read.generation import Generation

ROUND_MS = 1000
"""In this time every size is asked, and one shard's indexes are hashed."""
PIECE_BYTES = 256 << 10
"""Of an index, hashed at a time."""


class FileWatch:
    """What was looked at of one chain, and what comes next. For threads: one looks, the others go on.

    Args:
        deep: also hash the indexes.
        opened_ms: when the files were opened, and so looked at.
    """

    def __init__(self, chain: list[Generation], deep: bool, opened_ms: int) -> None:
        self._chain, self._deep = chain, deep
        self._files = [item for generation in chain for item in generation.sizes()]
        self._looked_ms, self._due, self._turn = opened_ms, 0, 0
        self._steps: Iterator[None] = iter(())
        self._length = 0
        self._begin()
        self._lock = threading.Lock()

    def look(self, now_ms: int) -> None:
        """Look at what is due; the whole of it where there was no lookup for a second, or the clock went back.

        Raises:
            Damaged: a file was cut or grew, or an index was altered.
        """
        if now_ms == self._looked_ms or not self._lock.acquire(blocking=False):
            return
        try:
            passed = now_ms - self._looked_ms
            self._looked_ms = now_ms
            # In steps times ROUND_MS, so that nothing is lost by rounding.
            self._due += self._length * (passed if 0 <= passed < ROUND_MS else ROUND_MS)
            self._due = min(self._due, self._length * ROUND_MS)
            while self._due >= ROUND_MS:
                self._due -= ROUND_MS
                try:
                    next(self._steps)
                except StopIteration:
                    self._begin()
                    next(self._steps)
        except Damaged:
            self._begin()
            self._looked_ms = now_ms - ROUND_MS  # the next lookup looks at all of it, and finds it again
            raise
        finally:
            self._lock.release()

    def _begin(self) -> None:
        """The next round; of as many steps as files and pieces."""
        shard, depth = divmod(self._turn, len(self._chain))
        generation = self._chain[depth]
        indexes = list(generation.indexes(shard % len(generation.manifest.shards))) if self._deep else []
        self._length = len(self._files) + sum(-(-fact.bytes // PIECE_BYTES) for _, fact in indexes)
        self._steps, self._turn = _round(self._files, indexes), self._turn + 1


def _round(files: list[tuple[str, int]], indexes: list[tuple[str, FileFact]]) -> Iterator[None]:
    # Not a method: a circle through the watch would keep files that were let go of mapped, and on the disk, for as long
    # as no garbage is collected.
    for path, size in files:
        still(path, size)
        yield
    for path, fact in indexes:
        yield from _hashed(path, fact)


def still(path: str, size: int) -> None:
    """Ask whether a file has the size with which it was opened. One that is gone is no concern: its mapping stays.

    Raises:
        Damaged
    """
    try:
        found = os.stat(path).st_size
    except OSError:
        return
    if found != size:
        raise Damaged(_altered(path, f"expected {size} bytes, found {found}"))


def look_at_all(generation: Generation, deep: bool) -> None:
    """Every size, and the digest of every index, at once.

    Raises:
        Damaged
    """
    for path, size in generation.sizes():
        still(path, size)
    for shard in range(len(generation.manifest.shards) if deep else 0):
        for path, fact in generation.indexes(shard):
            for _ in _hashed(path, fact):
                pass


def _hashed(path: str, fact: FileFact) -> Iterator[None]:
    """Hash an index piece by piece and compare it with its manifest; one that is gone is left out."""
    digest, start = xxhash.xxh3_128(), 0
    while start < fact.bytes:
        try:
            with open(path, "rb", buffering=0) as file:
                file.seek(start)
                block = file.read(PIECE_BYTES)
        except OSError:
            return
        digest.update(block)
        start += len(block) or fact.bytes
        if start >= fact.bytes and digest.hexdigest() != fact.digest:
            raise Damaged(_altered(path, "does not have the digest that the manifest states"))
        yield


def _altered(path: str, what: str) -> str:
    return (
        f"{path}: {what}, though it was whole when it was opened; run `vista verify`, then `vista rollback` or "
        f"rebuild the shard"
    )
