"""What changed between two generations: records as stored, for stores that are not ours.

Only users that a generation of one chain names and the other chain does not have can differ, so the work is that of the
deltas between, whatever the store holds. Of these a record changed if its check in the index did. Folding copies
records as they are, so what was folded since counts as unchanged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cache_store.change.fold import blocks
from cache_store.errors import Damaged
from cache_store.format.manifest import Manifest
from cache_store.format.record import PAGE_HEADER
from cache_store.read.snapshot import Snapshot, Status


@dataclass(frozen=True)
class Changes:
    """Users whose records changed, and their records.

    Attributes:
        manifest: of the generation that is reported; its schema and fingerprint say how to read the records.
        users: int64 [n] or object [n] of str.
        rows: uint8 [n, record_bytes], records as ``ShardWriter.add_sealed`` takes them; zeros where gone.
        gone: bool [n], users who had a record and have none now.
    """

    manifest: Manifest
    users: np.ndarray
    rows: np.ndarray
    gone: np.ndarray


def changes(before: Snapshot | None, after: Snapshot) -> Iterator[Changes]:
    """Blocks of at most 16 MiB of what differs, shard by shard; against None all users of ``after``.

    Users whom ``Store.forget`` removed are in neither, and not reported.

    Raises:
        Damaged: a record fails its check.
    """
    chains = [snapshot.chain for snapshot in (before, after) if snapshot is not None]
    sealed = Counter((g.manifest.generation, g.seal) for chain in chains for g in chain)
    one_sided = [g for chain in chains for g in chain if sealed[g.manifest.generation, g.seal] == 1]
    manifest, size = after.chain[0].manifest, after.schema.record_bytes
    for shard in range(manifest.num_shards):
        named = [g.users(shard)[0] for g in one_sided]
        users = np.unique(np.concatenate(named)) if named else np.zeros(0, np.int64)
        for part in blocks(len(users), size):
            block = users[part]
            there, check = after.checks(block)
            had, former = before.checks(block) if before else (np.zeros(len(block), bool), check)
            changed = (there != had) | (there & (check != former))
            block, gone = block[changed], ~there[changed]
            if not len(block):
                continue
            found = after.lookup_raw(block)
            if (corrupt := found.status == Status.CORRUPT).any():
                user = block[corrupt].tolist()[0]
                raise Damaged(
                    f"generation {manifest.generation}: the record of user {user!r} fails its check; run "
                    f"`vista verify`, then `vista refresh --user` for those it names"
                )
            rows = found.rows[:, PAGE_HEADER : PAGE_HEADER + size]
            yield Changes(manifest, block, np.ascontiguousarray(rows), gone)
