"""A consumer of ``vista follow --deliver redis://HOST?stream=NAME``: the records, into a store of one's own.

    python receive_summaries.py redis://HOST:6379 NAME STORE

What was received up to is kept beside the store, after the records went live: killed before, it takes the same records
again, which changes nothing. A new model begins a full generation. Needs ``pip install vista-cache redis``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import redis

from cache_store import Publication, RecordSchema, ShardWriter, Store, as_users, bucket_of, key_bytes

SHARDS, MOST, WAIT_MS = 4, 10_000, 1_000


def receive(client: redis.Redis, stream: str, path: Path) -> str | None:
    """Bring what has arrived live; the generation's name, None where nothing came within ``WAIT_MS``."""
    store = Store.open(path) if path.joinpath("CURRENT").exists() else None
    position = path.with_name(f"{path.name}.position")
    after = position.read_text() if position.exists() else "0-0"
    found = client.xread({stream: after}, count=MOST, block=WAIT_MS)
    if not found:
        return None
    entries = found[0][1] if isinstance(found, list) else next(iter(found.values()))[0]
    head = entries[0][1]
    same_model = [values[b"fingerprint"] == head[b"fingerprint"] for _, values in entries]
    entries = entries[: same_model.index(False) if False in same_model else None]
    last, fingerprint = entries[-1][0].decode(), head[b"fingerprint"].decode()
    schema = RecordSchema.from_dict(json.loads(head[b"schema"]))
    newest = {values[b"user"].decode(): values.get(b"record") for _, values in entries}
    delta = store is not None and store.manifest.fingerprint == fingerprint

    store = store or Store.create(path, user_kind=schema.user_kind, num_shards=SHARDS)
    staging = store.stage(f"received-{last}")
    ids = [int(u) if schema.user_kind == "int64" else u for u in newest if delta or newest[u] is not None]
    ids.sort(key=key_bytes)
    users = as_users(ids, schema.user_kind)
    receipts, bucket = [], bucket_of(users, store.format.num_shards)
    for shard in range(store.format.num_shards):
        with ShardWriter(
            staging, shard, store.format.num_shards, schema, fingerprint=fingerprint, anew=True
        ) as writer:
            mine = users[bucket == shard]
            gone = np.array([newest[str(u)] is None for u in mine.tolist()], bool)
            rows = [newest[str(u)] for u in mine.tolist()]
            for at, row in zip(np.flatnonzero(gone).tolist(), writer.tombstones(mine[gone]), strict=True):
                rows[at] = row
            writer.add_sealed(mine, rows)
            receipts.append(writer.finish())
    published = store.publish(
        staging,
        receipts,
        Publication(
            kind="delta" if delta else "full",
            parent=store.manifest.generation if delta else None,
            fingerprint=fingerprint,
            watermark_ms=max(int(values[b"watermark_ms"]) for _, values in entries),
            expected=len(users),
        ),
    )
    store.fold(6)
    store.prune(2)
    position.write_text(last)
    return published.generation


if __name__ == "__main__":
    url, stream, path = sys.argv[1:]
    client = redis.Redis.from_url(url)
    while True:
        if name := receive(client, stream, Path(path)):
            print(name, flush=True)
