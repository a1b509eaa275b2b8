"""A chain of generations seen as one: which users of a shard are there, and what each generation says of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cache_store.errors import Damaged
from cache_store.format.keys import from_keys, hash_of, second_hash_of
from cache_store.format.record import HEADER, HEADER_BYTES, PAGE_HEADER
from cache_store.read.generation import Generation


@dataclass(frozen=True)
class Folded:
    """Users of one shard over a chain, in key order.

    Attributes:
        users: int64 [n] or object [n] of str.
        depth: int64 [n], position in the chain (0 newest) of the generation that holds each record.
        offset: int64 [n], byte offset of the record in that generation's shard file.
        gone: bool [n], it is a tombstone.
    """

    users: np.ndarray
    depth: np.ndarray
    offset: np.ndarray
    gone: np.ndarray


def fold(chain: list[Generation], shard: int, tombstones: bool = False) -> Folded:
    """Newest record of every user of a shard; with ``tombstones`` also of users who are gone.

    Raises:
        Damaged
    """
    kind = chain[0].schema.user_kind
    users, depth, offset, gone = [], [], [], []
    for d, generation in enumerate(chain):
        entries = generation.keys(shard)
        users.append(from_keys(entries.keys, kind))
        depth.append(np.full(len(entries.keys), d))
        offset.append(entries.offset)
        gone.append(entries.length == HEADER_BYTES)
    ids = np.concatenate(users)
    # The first of equals is the newest. NumPy sorts str by code point, which is the order of UTF-8 bytes.
    _, first = np.unique(ids, return_index=True)
    buried = np.concatenate(gone)
    if not tombstones:
        first = first[~buried[first]]
    return Folded(ids[first], np.concatenate(depth)[first], np.concatenate(offset)[first], buried[first])


def count_users(chain: list[Generation]) -> int:
    """Users that a lookup would find: those of the full generation below, and what the deltas over it change of that.

    Raises:
        Damaged
    """
    base = chain[-1]
    total = base.manifest.records
    for shard in range(base.manifest.num_shards if len(chain) > 1 else 0):
        said = fold(chain[:-1], shard, tombstones=True)
        if len(said.users):
            second = second_hash_of(said.users) if said.users.dtype == object else None
            place, _ = base.locate(np.full(len(said.users), shard), hash_of(said.users), second)
            total += int((~said.gone & (place < 0)).sum()) - int((said.gone & (place >= 0)).sum())
    return total


def sealed_rows(generation: Generation, shard: int, users: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Records of users of one shard as stored, checked, uint8 [n, record_bytes].

    Raises:
        Damaged: a record fails its check; the text names the user.
    """
    rows = np.empty((len(users), generation.row_bytes), np.uint8)
    place, head = generation.table.files.starts[shard] + offset, np.empty(len(users), HEADER)
    ok = generation.gather(place, rows, hash_of(users), True, head)
    if not ok.all():
        raise Damaged(
            f"{generation.folder / generation.table.names[shard]}: the record of user {users[~ok][0]!r} fails its "
            f"check ({int((~ok).sum())} in this block); run `vista verify`, then `vista refresh --user` for those"
        )
    return rows[:, PAGE_HEADER : PAGE_HEADER + generation.schema.record_bytes]


def blocks(n: int, record_bytes: int, budget: int = 1 << 24) -> Iterator[slice]:
    """Row ranges of at most ``budget`` bytes of records."""
    step = max(1, budget // record_bytes)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))
