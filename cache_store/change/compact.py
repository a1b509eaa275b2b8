"""Folding a chain: all of it into one full generation, or its newest deltas into one delta over the rest.

Records are copied as they are. Tombstones end in a full generation, which has the content digest of a full job over
the same users; a folded delta keeps them, for what lies below may still hold the user. Nothing is locked while shards
are built; deltas published meanwhile lie on the fold afterwards (``publish``). Anything else published meanwhile wins.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from cache_store.change import publish
from cache_store.change.fold import blocks, fold, sealed_rows
from cache_store.change.forget import Spread, in_turn
from cache_store.errors import Incomplete, PublishConflict
from cache_store.format import lines
from cache_store.format import manifest as manifests
from cache_store.format.layout import DEAD_LETTERS, Layout, storage_errors
from cache_store.format.manifest import DELTA, FULL
from cache_store.format.receipt import ShardReceipt, finished
from cache_store.read.generation import Generation
from cache_store.read.snapshot import Snapshot
from cache_store.write.writer import ShardWriter

MOST_PIECES = 256
"""Into which the shards of a fold are dealt out."""


def compact(
    layout: Layout,
    line: str,
    snapshot: Snapshot,
    published_ms: int,
    began: int,
    newest_only: int | None = None,
    spread: Spread = in_turn,
) -> str:
    """Publish the folded form of a chain on its line; its name.

    What is one generation already is left as it is. Killed and run again, it goes on with the shards that are missing.

    Args:
        newest_only: fold so many of the newest generations into one delta over the others; None folds all.
        began: ``publish.beginning`` from before the chain was opened.
        spread: does the work on the shards.

    Raises:
        PublishConflict: what is live does not lie on the chain. Incomplete: ``forget`` took a finished shard away. What
            was built is dropped.
        Damaged: a record to be copied fails its check. StorageFull, ReadOnlyStorage
    """
    newest = snapshot.chain[0].manifest
    chain, below = _parts(snapshot, newest_only)
    if len(chain) == 1:
        return newest.generation
    staging, receipts = build(layout, line, snapshot, began, newest_only, spread)
    # Only now: forget takes it from a staging folder, and from here on a finished shard with it, which shows.
    with storage_errors(f"compacting {newest.generation}"):
        letters = chain[0].folder / DEAD_LETTERS
        if DEAD_LETTERS in newest.extra_files:
            shutil.copyfile(letters, staging / DEAD_LETTERS)
    try:
        return publish.publish(
            layout,
            staging,
            receipts,
            publish.Publication(
                line=line,
                kind=DELTA if below else FULL,
                parent=below.manifest.generation if below else newest.generation,
                replaces=newest.generation,
                max_depth=newest.depth,
                fingerprint=newest.fingerprint,
                table_snapshot=newest.table_snapshot,
                watermark_ms=newest.watermark_ms,
                expected=sum(r.records + r.tombstones for r in receipts) + newest.dead_letters,
                dead_letters=newest.dead_letters,
                published_ms=published_ms,
                expired_before_ms=newest.expired_before_ms,
            ),
        ).generation
    except (PublishConflict, Incomplete):
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _parts(snapshot: Snapshot, newest_only: int | None) -> tuple[list[Generation], Generation | None]:
    """What is folded, and what the fold lies on."""
    chain = snapshot.chain
    below = chain[newest_only] if newest_only is not None and newest_only < len(chain) else None
    return chain[:newest_only], below


def build(
    layout: Layout,
    line: str,
    snapshot: Snapshot,
    began: int,
    newest_only: int | None,
    spread: Spread = in_turn,
) -> tuple[Path, list[ShardReceipt]]:
    """The shards of a fold, and where they are; those that are there already are kept.

    Raises:
        NothingPublished, Damaged, StorageFull, ReadOnlyStorage
    """
    chain, below = _parts(snapshot, newest_only)
    seals = xxhash.xxh3_64_hexdigest(b"".join(g.seal for g in chain))
    pointer = lines.live(layout, line)
    # A compaction that was rolled back is not the one that is asked for now.
    staging = publish.stage(layout, f"compact-{snapshot.name}-{seals}-{len(pointer.taken_back)}", began)
    n = chain[0].manifest.num_shards
    if spread is in_turn:  # the chain is open here
        return staging, [fold_shard(chain, k, staging, below is not None) for k in range(n)]
    folders = [str(g.folder) for g in chain]
    make = partial(_fold_shards, folders=folders, staging=str(staging), tombstones=below is not None)
    step = -(-n // MOST_PIECES)
    parts = spread("shards", [(k, min(k + step, n)) for k in range(0, n, step)], make)
    return staging, [ShardReceipt.from_dict(receipt) for part in parts for receipt in part]


def _fold_shards(
    shards: tuple[int, int], folders: Sequence[str], staging: str, tombstones: bool
) -> list[dict[str, Any]]:
    """Shards from the first number to before the second, by a process that has not opened the chain yet."""
    paths = [Path(folder) for folder in folders]
    chain = [Generation(path, manifests.read(path), verify=True) for path in paths]
    return [fold_shard(chain, k, Path(staging), tombstones).as_dict() for k in range(*shards)]


def due(sizes: Sequence[int], max_depth: int, room: float = math.inf) -> int | None:
    """How many of the newest generations of a chain to fold: 0 none yet, None all of it.

    A generation is folded with those above it once together they are half of it, so that every record is copied a
    number of times that grows with the logarithm of the store, and the full generation is rewritten seldom.

    Args:
        sizes: records and tombstones of every generation, newest first, the full one last.
        max_depth: deltas that may lie over it.
        room: how many times as large as it they may be together before all is folded.
    """
    if sum(sizes[:-1]) > room * sizes[-1]:
        return None
    if len(sizes) <= max_depth:
        return 0
    many = min(2, len(sizes))
    while many < len(sizes) and sizes[many] <= 2 * sum(sizes[:many]):
        many += 1
    return None if many == len(sizes) else many


def fold_shard(chain: list[Generation], shard: int, staging: Path, tombstones: bool = False) -> ShardReceipt:
    """Build one shard of the folded form, or find it built."""
    manifest = chain[0].manifest
    before = finished(staging, shard, manifest.num_shards)
    if before is not None:
        return before
    folded = fold(chain, shard, tombstones)
    with_states = any(g.states is not None for g in chain)
    with ShardWriter(
        staging, shard, manifest.num_shards, manifest.schema, with_states, fingerprint=manifest.fingerprint
    ) as writer:
        for part in blocks(len(folded.users), manifest.schema.record_bytes):
            users, depth, offset = folded.users[part], folded.depth[part], folded.offset[part]
            gone = folded.gone[part]
            rows: list[Any] = [None] * len(users)
            for d in np.unique(depth[~gone]):
                here = np.flatnonzero((depth == d) & ~gone)
                sealed = sealed_rows(chain[d], shard, users[here], offset[here])
                for at, row in zip(here.tolist(), sealed, strict=True):
                    rows[at] = row
            for at, row in zip(np.flatnonzero(gone).tolist(), writer.tombstones(users[gone]), strict=True):
                rows[at] = row
            writer.add_sealed(users, rows)
            if with_states:
                states = Snapshot(chain, verify=True).states(users)
                have = [i for i, s in enumerate(states) if s is not None]
                writer.add_states(users[have], [s for s in states if s is not None])
        return writer.finish()
