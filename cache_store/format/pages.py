"""Where LMDB put each value: a walk over the pages of a finished, immutable file.

LMDB (0.9, data format 1, 64-bit) keeps keys in leaf pages and values over 2,038 bytes in runs of whole "overflow"
pages. This module reads keys, offsets and lengths from the bytes alone, so readers need no LMDB environment, which
is what makes them safe under fork and threads. The writer checks every result against LMDB itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cache_store.errors import Damaged
from cache_store.format.record import PAGE

_MAGIC = 0xBEEFC0DE
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4
_BIG = 1


@dataclass(frozen=True)
class LeafEntries:
    """Keys of one LMDB file in order, with the place of their values.

    Attributes:
        keys: bytes, n of them.
        offset: int64 [n], byte offset of each value in the file.
        length: int64 [n], bytes of each value.
    """

    keys: list[bytes]
    offset: np.ndarray
    length: np.ndarray


def _word(data: np.ndarray, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size].tobytes(), "little")


def root_page(data: np.ndarray, name: str) -> tuple[int, int]:
    """(root page, entries) of the main database; root is -1 where it is empty (uint8 [file bytes]).

    Raises:
        Damaged: not an LMDB file of data format 1 with 4096-byte pages.
    """
    metas = []
    for page in (0, 1):
        at = page * PAGE + 16
        if len(data) < (page + 1) * PAGE or _word(data, at, 4) != _MAGIC or _word(data, at + 4, 4) != 1:
            raise Damaged(f"{name}: not an LMDB file of data format 1; run `vista verify`")
        if _word(data, at + 24, 4) != PAGE:
            raise Damaged(f"{name}: expected pages of {PAGE} bytes, found {_word(data, at + 24, 4)}")
        main = at + 72
        metas.append((_word(data, at + 128, 8), _word(data, main + 40, 8), _word(data, main + 32, 8)))
    _, root, entries = max(metas)
    return (-1 if root == (1 << 64) - 1 else root), entries


def walk(data: np.ndarray, name: str) -> LeafEntries:
    """All entries in key order.

    Args:
        data: uint8 [file bytes], a mapping of the file.
        name: for the text of errors.

    Raises:
        Damaged: a page is not what its parent says.
    """
    root, count = root_page(data, name)
    keys: list[bytes] = []
    offsets: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    stack = [] if root < 0 else [root]
    visited = 0
    while stack:
        page = stack.pop()
        visited += 1
        at = page * PAGE
        if page < 2 or at + PAGE > len(data) or _word(data, at, 8) != page or visited > len(data) // PAGE:
            raise Damaged(f"{name}: page {page} is not a page of this tree; run `vista verify`")
        raw = data[at : at + PAGE]
        flags = _word(raw, 10, 2)
        n = (_word(raw, 12, 2) - 16) // 2
        if n < 0 or 16 + 2 * n > PAGE:
            raise Damaged(f"{name}: page {page} states {n} nodes; run `vista verify`")
        node = raw[16 : 16 + 2 * n].view("<u2").astype(np.int64)
        if n and (node.min() < 16 or node.max() > PAGE - 8):
            raise Damaged(f"{name}: page {page} points outside itself; run `vista verify`")
        head = raw[node[:, None] + np.arange(8)].view("<u2").astype(np.int64)  # lo, hi, flags, key bytes
        if flags & _BRANCH:
            stack.extend((head[:, 0] | head[:, 1] << 16 | head[:, 2] << 32)[::-1].tolist())
            continue
        if not flags & _LEAF:
            raise Damaged(f"{name}: page {page} is neither branch nor leaf; run `vista verify`")
        text = raw.tobytes()
        if len(keys) + n > count or head[:, 3].sum() > PAGE:
            raise Damaged(f"{name}: page {page} holds more than it can; run `vista verify`")
        keys.extend(text[a + 8 : a + 8 + k] for a, k in zip(node.tolist(), head[:, 3].tolist(), strict=True))
        value = node + 8 + head[:, 3]
        big = (head[:, 2] & _BIG) != 0
        if (value[big] > PAGE - 8).any() or (value > PAGE).any():
            raise Damaged(f"{name}: page {page} has a node past its end; run `vista verify`")
        offset = at + value
        if big.any():
            target = raw[value[big][:, None] + np.arange(8)].view("<u8")[:, 0].astype(np.int64)
            offset[big] = target * PAGE + 16
        length = head[:, 0] | head[:, 1] << 16
        if ((offset < 0) | (offset + length > len(data))).any():
            raise Damaged(f"{name}: page {page} points past the end of the file; run `vista verify`")
        offsets.append(offset)
        lengths.append(length)
    if len(keys) != count:
        raise Damaged(f"{name}: states {count} entries, holds {len(keys)}; run `vista verify`")
    join = np.concatenate if offsets else lambda _: np.zeros(0, np.int64)
    return LeafEntries(keys, join(offsets), join(lengths))
