"""What goes in comes out, by key, in the caller's order."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from cache_store import Group, RecordSchema, ShardWriter, Status, Store, bucket_of
from cache_store.errors import FingerprintMismatch, Incomplete, MissingUsers
from cache_store.keys import as_users


def build(path, users, tokens, schema, run="run-1", num_shards=3, fingerprint="model-a", **publish):
    store = Store.create(path, user_kind=schema.user_kind, num_shards=num_shards)
    staging, bucket = store.stage(run), bucket_of(users, num_shards)
    receipts = []
    for k in range(num_shards):
        mine = bucket == k
        with ShardWriter(staging, k, num_shards, schema, True, fingerprint=fingerprint) as writer:
            at = np.flatnonzero(mine)
            writer.add(users[mine], {g: t[mine] for g, t in tokens.items()}, at, at * 10, 7)
            writer.add_states(users[mine], [str(u).encode() for u in users[mine]])
            receipts.append(writer.finish().as_dict())
    facts = {"watermark_ms": 5, "expected": len(users)} | publish
    return store.publish(staging, receipts, fingerprint=fingerprint, **facts)


@pytest.mark.parametrize("kind", ["int64", "string"])
@pytest.mark.parametrize("width", [8, 64])
def test_tokens_come_back_in_the_callers_order_with_their_facts(tmp_path, kind, width):
    schema = RecordSchema((Group("seeds", 16, width, "float32"), Group("slots", 8, width, "log8")), kind)
    rng = np.random.default_rng(0)
    users = np.sort(rng.choice(10**6, 200, replace=False))
    if kind == "string":
        users = as_users(sorted(map(str, users.tolist())))
    tokens = {
        "seeds": rng.normal(size=(200, 16, width)).astype(np.float32),
        "slots": 2.0 ** rng.integers(-3, 9, (200, 8, width)).astype(np.float32),
    }
    build(tmp_path / "store", users, tokens, schema)
    store = Store.open(tmp_path / "store", fingerprint="model-a")
    asked = as_users([*users[[7, 150, 7, 3]].tolist(), "nobody" if kind == "string" else -1])
    for reader in (store, pickle.loads(pickle.dumps(store))):
        found = reader.lookup(asked)
        assert found.status.tolist() == [0, 0, 0, 0, Status.MISSING]
        assert found.event_count.tolist() == [7, 150, 7, 3, 0]
        assert found.last_event_ms.tolist() == [70, 1500, 70, 30, 0]
        np.testing.assert_array_equal(found.tokens[:4, :16], tokens["seeds"][[7, 150, 7, 3]])
        np.testing.assert_array_equal(found.tokens[:4, 16:], tokens["slots"][[7, 150, 7, 3]])
        assert not found.tokens[4].any()
        assert reader.states(asked) == [str(u).encode() for u in asked[:4]] + [None]


def test_another_models_generation_is_refused_and_nothing_incomplete_is_published(tmp_path):
    schema = RecordSchema((Group("seeds", 4, 8, "float16"),))
    users, tokens = np.arange(10), {"seeds": np.ones((10, 4, 8), np.float32)}
    with pytest.raises(Incomplete, match="1 are unaccounted for"):
        build(tmp_path / "store", users, tokens, schema, expected=11)
    name = build(tmp_path / "store", users, tokens, schema)
    assert build(tmp_path / "store", users, tokens, schema) == name  # the same run again
    with pytest.raises(FingerprintMismatch):
        Store.open(tmp_path / "store", fingerprint="model-b")
    with pytest.raises(MissingUsers):
        Store.open(tmp_path / "store", missing="raise").lookup([1, 99])
