"""Folding a chain of deltas into one full generation: records are copied as they are, tombstones end here.

The result has the content digest of a full job over the same users. Nothing is locked while shards are built; going
live is an ordinary publication on the generation that was folded, so a delta published meanwhile wins.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import xxhash

from cache_store.change import publish
from cache_store.change.fold import blocks, fold, sealed_rows
from cache_store.errors import Incomplete, PublishConflict
from cache_store.format import lines
from cache_store.format.layout import Layout, storage_errors
from cache_store.format.receipt import ShardReceipt, finished
from cache_store.read.generation import Generation
from cache_store.read.snapshot import Snapshot
from cache_store.write.writer import ShardWriter


def compact(layout: Layout, line: str, snapshot: Snapshot, published_ms: int, began: int) -> str:
    """Publish the full form of a chain on its line; the name of what is then live.

    A chain of one generation is left as it is. Killed and run again, it goes on with the shards that are missing.

    Args:
        began: ``publish.beginning`` from before the chain was opened.

    Raises:
        PublishConflict: something was published meanwhile. Incomplete: ``forget`` took a finished shard away. What was
            built is dropped.
        Damaged: a record to be copied fails its check. StorageFull, ReadOnlyStorage
    """
    chain, newest = snapshot.chain, snapshot.chain[0].manifest
    if len(chain) == 1:
        return newest.generation
    seals = xxhash.xxh3_64_hexdigest(b"".join(g.seal for g in chain))
    pointer = lines.live(layout, line)
    # A compaction that was rolled back is not the one that is asked for now.
    run_id = f"compact-{newest.generation}-{seals}-{len(pointer.taken_back)}"
    staging = publish.stage(layout, run_id, began)
    receipts = [fold_shard(chain, k, staging) for k in range(newest.num_shards)]
    # Only now: forget takes it from a staging folder, and from here on a finished shard with it, which shows.
    with storage_errors(f"compacting {newest.generation}"):
        letters = chain[0].folder / publish.DEAD_LETTERS
        if publish.DEAD_LETTERS in newest.extra_files:
            shutil.copyfile(letters, staging / publish.DEAD_LETTERS)
    try:
        return publish.publish(
            layout,
            staging,
            receipts,
            publish.Publication(
                line=line,
                parent=newest.generation,
                fingerprint=newest.fingerprint,
                table_snapshot=newest.table_snapshot,
                watermark_ms=newest.watermark_ms,
                expected=sum(r.records for r in receipts) + newest.dead_letters,
                dead_letters=newest.dead_letters,
                published_ms=published_ms,
            ),
        ).generation
    except (PublishConflict, Incomplete):
        shutil.rmtree(staging, ignore_errors=True)
        raise


def fold_shard(chain: list[Generation], shard: int, staging: Path) -> ShardReceipt:
    """Build one shard of the full form, or find it built."""
    manifest = chain[0].manifest
    before = finished(staging, shard, manifest.num_shards)
    if before is not None:
        return before
    folded = fold(chain, shard)
    with_states = any(g.states is not None for g in chain)
    with ShardWriter(
        staging, shard, manifest.num_shards, manifest.schema, with_states, fingerprint=manifest.fingerprint
    ) as writer:
        for part in blocks(len(folded.users), manifest.schema.record_bytes):
            users, depth, offset = folded.users[part], folded.depth[part], folded.offset[part]
            rows = np.empty((len(users), manifest.schema.record_bytes), np.uint8)
            for d in np.unique(depth):
                here = depth == d
                rows[here] = sealed_rows(chain[d], shard, users[here], offset[here])
            writer.add_sealed(users, list(rows))
            if with_states:
                states = Snapshot(chain, verify=True).states(users)
                have = [i for i, s in enumerate(states) if s is not None]
                writer.add_states(users[have], [s for s in states if s is not None])
        return writer.finish()
