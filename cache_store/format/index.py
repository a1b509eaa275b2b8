"""The index beside a shard: from a user's hash to the place of the record, one vectorised search per batch.

A file of 64-bit little-endian words:

    word 0      "VISTAIDX"
         1      version 1
         2      n, entries
         3      b, directory bits, at least 1
         4      flags: bit 0 second hashes, bit 1 lengths
         5      bytes of the LMDB file
         6      XXH3-64 of all words from 8 on
         7      header check: XXH3-64 of words 0 to 6
         8      directory [2^b + 1]: first entry whose hash has this prefix of b bits, or a larger one
         …      hash [n], ascending (ties by second hash)
         …      second hash [n]         if flag bit 0 (string ids)
         …      check [n]               first word of the value (the record's own check)
         …      offset [n]              byte offset of the value in the LMDB file; 0 marks a tombstone
         …      length [n]              if flag bit 1 (values of several sizes)

The manifest holds the digest of this file, this file the check of every record, the record the hash of its payload:
a reader that follows the chain cannot be given a record of another generation, shard or user.
XXH64 is uniform, so a directory of about n prefixes leaves about one entry to look at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xxhash

from cache_store.errors import Damaged, StoreError
from cache_store.native import library as native

MAGIC = int.from_bytes(b"VISTAIDX", "little")
VERSION = 1
SECOND, LENGTHS = 1, 2
HEADER_WORDS = 8


def build(
    hashes: np.ndarray,
    second: np.ndarray | None,
    check: np.ndarray,
    offset: np.ndarray,
    length: np.ndarray | None,
    file_bytes: int,
) -> np.ndarray:
    """The words of an index, uint64.

    Args:
        hashes: uint64 [n], any order.
        second: uint64 [n] for string ids, else None.
        check: uint64 [n], first word of each value.
        offset: int64 [n], 0 for tombstones.
        length: int64 [n], or None where all are equal.

    Raises:
        StoreError: two users have the same hashes.
    """
    n = len(hashes)
    order = np.argsort(hashes, kind="stable") if second is None else np.lexsort((second, hashes))
    h = hashes[order]
    equal = h[1:] == h[:-1]
    if second is not None:
        equal &= second[order][1:] == second[order][:-1]
    if equal.any():
        raise StoreError("two users of one shard share both hashes; rename one of them")
    bits = max(1, int(n - 1).bit_length()) if n else 1
    prefixes = np.arange((1 << bits) + 1, dtype=np.uint64)
    directory = np.searchsorted(h >> np.uint64(64 - bits), prefixes).astype(np.uint64)
    columns = [directory, h]
    if second is not None:
        columns.append(second[order])
    columns.append(check[order])
    columns.append(offset[order].astype(np.uint64))
    if length is not None:
        columns.append(length[order].astype(np.uint64))
    body = np.concatenate(columns)
    flags = (SECOND if second is not None else 0) | (LENGTHS if length is not None else 0)
    head = np.array([MAGIC, VERSION, n, bits, flags, file_bytes, 0, 0], np.uint64)
    head[6] = xxhash.xxh3_64_intdigest(body)
    head[7] = xxhash.xxh3_64_intdigest(head[:7])
    return np.concatenate([head, body])


@dataclass(frozen=True)
class IndexShape:
    """Where the columns of one index begin, in words from its start."""

    n: int
    bits: int
    directory: int
    hash: int
    second: int
    check: int
    offset: int
    length: int
    words: int
    file_bytes: int


def shape(words: np.ndarray, name: str) -> IndexShape:
    """Read and check the header of an index (uint64 [words of the file]).

    Raises:
        Damaged: not an index of this version, or its length is not what the header says.
    """
    if len(words) < HEADER_WORDS or int(words[0]) != MAGIC or int(words[1]) != VERSION:
        raise Damaged(f"{name}: not an index of version {VERSION}; run `vista verify`")
    if xxhash.xxh3_64_intdigest(np.ascontiguousarray(words[:7])) != int(words[7]):
        raise Damaged(f"{name}: header check fails; run `vista verify`")
    n, bits, flags, file_bytes = (int(w) for w in words[2:6])
    if not 1 <= bits <= 63:
        raise Damaged(f"{name}: expected 1 to 63 directory bits, found {bits}; run `vista verify`")
    directory = HEADER_WORDS
    hashes = directory + (1 << bits) + 1
    second = hashes + n
    check = second + (n if flags & SECOND else 0)
    offset = check + n
    length = offset + n
    end = length + (n if flags & LENGTHS else 0)
    if flags & ~(SECOND | LENGTHS):
        raise Damaged(f"{name}: flags {flags} unknown to this version; read it with a newer one")
    if end != len(words):
        raise Damaged(f"{name}: expected {end * 8} bytes, found {len(words) * 8}; run `vista verify`")
    return IndexShape(
        n, bits, directory, hashes, second if flags & SECOND else -1, check, offset,
        length if flags & LENGTHS else -1, end, file_bytes,
    )  # fmt: skip


_LONGEST = 1000
"""More entries than any prefix can have: about one is expected, and hashes are uniform."""


class IndexSet:
    """The indexes of all shards of a generation in one array of words, searched together.

    Args:
        words: uint64, all index files one after the other.
        starts: int [shards], first word of each; shapes: theirs.
    """

    def __init__(self, words: np.ndarray, starts: list[int], shapes: list[IndexShape]) -> None:
        self.words = words
        base = np.array(starts, np.int64)
        self._second = base + [s.second for s in shapes] if shapes and shapes[0].second >= 0 else None
        self._length = base + [s.length for s in shapes] if shapes and shapes[0].length >= 0 else None
        # One row per shard, so that a batch picks all it needs of its shards at once; native.c has the same columns.
        columns = [
            base + [s.directory for s in shapes],
            np.array([64 - s.bits for s in shapes], np.int64),
            np.array([s.n for s in shapes], np.int64),
            base + [s.hash for s in shapes],
            base if self._second is None else self._second,
            base + [s.check for s in shapes],
            base + [s.offset for s in shapes],
        ]
        self._shards = np.stack(columns, axis=1)
        self._addresses = words.ctypes.data, self._shards.ctypes.data, len(shapes)

    def find(
        self, shard: np.ndarray, hashes: np.ndarray, second: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the index of its shard has of each user.

        Args:
            shard: int64 [n].
            hashes: uint64 [n].
            second: uint64 [n] where the index has second hashes.

        Returns:
            entry, int64 [n], or -1; check, uint64 [n], the first word of its value; offset, int64 [n], of the value
            in its LMDB file, 0 for tombstones. The last two mean nothing without an entry.

        Raises:
            Damaged: a prefix has more entries than hashes give it; the file was altered after it was opened.
        """
        if self._second is None:
            second = None
        if native.library is not None:
            found = native.library.find(*self._addresses, shard, hashes, second, _LONGEST)
        else:
            found = self._find(shard, hashes, second)
        if found is None:
            raise Damaged(
                "an index was altered after it was opened; run `vista verify`, then open the store again"
            )
        return found

    def _find(
        self, shard: np.ndarray, hashes: np.ndarray, second: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """What ``native.library.find`` does, by NumPy."""
        words, facts = self.words, self._shards.take(shard, axis=0)
        slot: np.ndarray = facts[:, 0] + (hashes >> facts[:, 1].view(np.uint64)).view(np.int64)
        # What an index says may have been altered since it was opened: no entry outside its columns is looked at.
        end = np.minimum(words.take(slot + 1), facts[:, 2].view(np.uint64))
        at = np.minimum(words.take(slot), end).view(np.int64)
        end, entry = end.view(np.int64), np.full(len(hashes), -1)
        if (end - at > _LONGEST).any():
            return None
        rows = np.flatnonzero(at < end)
        while len(rows):
            same = words.take(facts[rows, 3] + at[rows]) == hashes[rows]
            if second is not None:
                same &= words.take(facts[rows, 4] + at[rows]) == second[rows]
            entry[rows[same]] = at[rows[same]]
            rows = rows[~same]
            at[rows] += 1
            rows = rows[at[rows] < end[rows]]
        check = words.take(facts[:, 5] + entry)
        return entry, check, words.take(facts[:, 6] + entry).view(np.int64)

    def length(self, shard: np.ndarray, entry: np.ndarray) -> np.ndarray:
        """Bytes of each entry's value, int64 [n]; only where the index has lengths."""
        if self._length is None:
            raise StoreError("this index holds values of one size")
        length: np.ndarray = self.words.take(self._length[shard] + entry, mode="clip").astype(np.int64)
        return length
