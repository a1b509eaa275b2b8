"""Makes ``tests/golden/store-1``: a store of format 1 that every later version must read.

    python tests/golden/make_golden.py tests/golden/store-1

Run once per format version, never again for a released one. The folder holds two lines, a chain of a full generation
and a delta with tombstones, every codec, states, and dead letters. Users are strings with multi-byte characters in
``store-1`` and int64 with negative ids in ``store-1-int64``. ``store-2`` has records with tables, ``store-3`` the same
under packed manifests, as stores of many shards have. Tokens are simple sums, so that ``NAME.expected.json`` beside
each store can be checked by hand: it holds, for every user and group, the decoded tokens' first four values and the
XXH3-64 of all of them as little-endian float32, and the record's facts.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from cache_store import Group, Publication, RecordSchema, ShardWriter, Store, Table, bucket_of
from cache_store.change import publish
from cache_store.format.keys import as_users, key_bytes
from cache_store.format.packed import PACKED_FROM

SHARDS = 2
CODECS = ("float32", "float16", "bfloat16", "int8", "int4", "log8")
"""Those of version 0.1."""
TABLES = RecordSchema(
    (Group("items", 4, 8, "int64"), Group("masses", 5, 8, "log8"), Group("clusters", 2, 8, "log8")),
    "int64",
    (
        Table("items", "masses", 13, (None, 2048.0, 256.0), 1),
        Table("", "clusters", 5, (None, 2048.0, 256.0), 1),
    ),
)
"""Records of version 0.2: whole numbers, and which groups are tables."""
NUMBERS = [-(2**63), -7, 0, 1, 2, 3, 500, 2**63 - 1]
NAMES = ["a", "b", "user-1", "user-2", "ä", "日本", "z" * 511, "~"]


def tokens(users: list[int | str], version: int, schema: RecordSchema) -> dict[str, np.ndarray]:
    """Value of user number u, token t, place d: (u + 1) * 0.25 + t * 0.5 + d * version / 8; all exact in float32.
    Whole number n of user number u: 1000 (u + 1) + n."""
    out = {}
    for g in schema.groups:
        u = np.arange(len(users), dtype=np.float32)[:, None, None] + 1
        t, d = np.arange(g.tokens, dtype=np.float32)[:, None], np.arange(g.width, dtype=np.float32)
        out[g.name] = (u * 0.25 + t * 0.5 + d * version / 8).astype(np.float32)
        if g.codec == "int64":
            number = 1_000 * u.astype(np.int64)[:, 0] + np.arange(g.tokens * g.width // 2)
            out[g.name] = number.view(np.float32).reshape(out[g.name].shape)
    return out


def generation(
    store: Store, run: str, users: list, gone: list, version: int, schema: RecordSchema, **facts
) -> None:
    staging = store.stage(run)
    ordered = sorted([*users, *gone], key=key_bytes)
    bucket = bucket_of(as_users(ordered), SHARDS)
    values = tokens(users, version, schema)
    receipts = []
    for k in range(SHARDS):
        with ShardWriter(staging, k, SHARDS, schema, True, fingerprint="golden-model") as writer:
            for user in (u for u, b in zip(ordered, bucket, strict=True) if b == k):
                one = as_users([user])
                if user in gone:
                    writer.add_tombstones(one, summarized_ms=2_000)
                    continue
                i = users.index(user)
                row = {name: block[i : i + 1] for name, block in values.items()}
                writer.add(one, row, [i * 100 + version], [1_000 + i], 2_000 + version)
                writer.add_states(one, [f"state {i} {version}".encode()])
            receipts.append(writer.finish())
    pq.write_table(pa.table({"user": ["lost"], "reason": ["golden"]}), staging / "dead-letters.parquet")
    store.publish(
        staging,
        receipts,
        Publication(
            fingerprint="golden-model",
            table_snapshot=4815162342,
            watermark_ms=1000 * version,
            expected=len(ordered) + 1,
            dead_letters=1,
            published_ms=3000 + version,
            **facts,
        ),
    )


def expected(path: Path, users: list) -> dict:
    """What a reader must find, from this version's own reader; the golden test also derives the tokens itself."""
    out: dict = {}
    for line in ("main", "shadow"):
        store = Store.open(path, line=line, lease=False)
        found = store.lookup(users)
        rows = []
        for i, user in enumerate(users):
            groups = {
                name: [
                    found.tokens[i, s].reshape(-1)[:4].tolist(),
                    xxhash.xxh3_64_hexdigest(found.tokens[i, s].tobytes()),
                ]
                for name, s in store.manifest.schema.slices.items()
            }
            facts = [
                int(c[i]) for c in (found.status, found.event_count, found.last_event_ms, found.summarized_ms)
            ]
            rows.append({"user": user, "facts": facts, "groups": groups if found.status[i] == 0 else {}})
        out[line] = {"digest": store.manifest.digest, "generation": store.manifest.generation, "rows": rows}
    return out


def main(path: Path) -> None:
    for kind, users, target in (
        ("string", NAMES, path),
        ("int64", NUMBERS, path.with_name(path.name + "-int64")),
        ("int64", NUMBERS, path.with_name("store-2")),
        ("int64", NUMBERS, path.with_name("store-3")),
    ):
        shutil.rmtree(target, ignore_errors=True)
        store = Store.create(target, user_kind=kind, num_shards=SHARDS)
        schema = RecordSchema(tuple(Group(codec, 3, 33, codec) for codec in CODECS), kind)
        schema = TABLES if target.name in ("store-2", "store-3") else schema
        publish.PACKED_FROM = SHARDS if target.name == "store-3" else PACKED_FROM
        generation(store, "golden-1", users[:6], [], 1, schema)
        generation(store, "golden-2", users[4:7], users[:2], 2, schema, kind="delta", parent="00000001")
        paged = RecordSchema((Group("seeds", 14, 64, "float16"), Group("slots", 32, 64, "log8")), kind)
        generation(store, "golden-3", users[:5], [], 3, paged, line="shadow")
        store.close()
        for left in ("LOCK", "leases", "staging"):
            gone = target / left
            shutil.rmtree(gone) if gone.is_dir() else gone.unlink(missing_ok=True)
        target.with_name(f"{target.name}.expected.json").write_text(
            json.dumps(expected(target, users), indent=1) + "\n"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
