"""What is live: publication, lines, promotion and rollback."""

from __future__ import annotations

import errno
import os
import shutil

import numpy as np
import pytest
from known_stores import PAGED, SMALL, KnownStore

from cache_store import Group, Publication, RecordSchema, ShardWriter, Status, Store, bucket_of, finished
from cache_store.errors import (
    ChainTooDeep,
    Damaged,
    FingerprintMismatch,
    FormatUnknown,
    GenerationUnknown,
    Incomplete,
    OutOfOrder,
    PublishConflict,
    ReadOnlyStorage,
    SchemaError,
    StorageFull,
    StoreBusy,
    StoreError,
    Unstorable,
    WrongBucket,
)
from cache_store.format.layout import exclusive, storage_errors


def test_a_run_without_all_its_shards_is_not_published(tmp_path):
    known = KnownStore(tmp_path / "s", num_shards=3)
    staging, receipts = known.stage({u: 1 for u in range(9)})
    facts = {"fingerprint": "model-a", "watermark_ms": 0, "expected": 9}
    with pytest.raises(Incomplete, match=r"without \[1\]"):
        known.admin.publish(staging, [receipts[0], receipts[2]], Publication(**facts))
    with pytest.raises(FingerprintMismatch):
        known.admin.publish(staging, receipts, Publication(**{**facts, "fingerprint": "model-b"}))
    with pytest.raises(Damaged, match="field files"):
        known.admin.publish(staging, [{**r, "num_shards": 4} for r in receipts], Publication(**facts))
    (staging / "shard-00001-of-00003.mdb").unlink()
    with pytest.raises(Incomplete, match="shard-00001-of-00003.mdb"):
        known.admin.publish(staging, receipts, Publication(**facts))


def test_the_same_run_publishes_once(tmp_path):
    known = KnownStore(tmp_path / "s")
    staging, receipts = known.stage({1: 1}, run="nightly")
    facts = {"fingerprint": "model-a", "watermark_ms": 0, "expected": 1}
    first = known.admin.publish(staging, receipts, Publication(**facts)).generation
    assert known.admin.publish(staging, receipts, Publication(**facts)).generation == first
    second = known.publish({1: 2})
    assert known.admin.publish(staging, receipts, Publication(**facts)).generation == first
    assert known.open().manifest.generation == second  # an old run does not come back to life
    known.admin.rollback()
    _, again = known.stage({1: 2}, run="run-2")
    assert known.admin.publish(tmp_path / "s/staging/run-2", again, Publication(**facts)).generation == second
    assert known.open().manifest.generation == first  # nor one that was taken back
    with pytest.raises(StoreError, match="Store.stage"):
        known.admin.publish(tmp_path / "elsewhere", receipts, Publication(**facts))


@pytest.mark.parametrize("step", ["manifest", "ready", "renamed"])
def test_a_publication_cut_short_is_finished_by_the_same_run(tmp_path, monkeypatch, step):
    from cache_store.change import publish
    from cache_store.format import lines

    known = KnownStore(tmp_path / "s")
    old = known.publish({1: 1})
    staging, receipts = known.stage({1: 2}, run="cut")
    facts = {"fingerprint": "model-a", "watermark_ms": 0, "expected": 1}

    class Cut(BaseException):
        pass

    write_file, write_pointer = publish.write_file, lines.write_pointer

    def cut_write(path, data):
        if path.name == {"manifest": "manifest.json", "ready": "READY"}.get(step):
            raise Cut
        write_file(path, data)

    def cut_pointer(*_):
        raise Cut

    monkeypatch.setattr(publish, "write_file", cut_write)
    monkeypatch.setattr(lines, "write_pointer", cut_pointer)
    with pytest.raises(Cut):
        known.admin.publish(staging, receipts, Publication(**facts))
    assert known.open().manifest.generation == old
    monkeypatch.setattr(publish, "write_file", write_file)
    monkeypatch.setattr(lines, "write_pointer", write_pointer)
    name = known.admin.publish(staging, receipts, Publication(**facts)).generation
    known.check(known.open().lookup([1]), [1], {1: 2})
    assert known.open().manifest.generation == name and known.admin.verify().ok


def test_numbers_are_never_given_away_twice(tmp_path):
    known = KnownStore(tmp_path / "s")
    names = [known.publish({1: v}) for v in range(3)]
    known.admin.rollback()
    shutil.rmtree(tmp_path / "s/generations" / names[2])
    assert int(known.publish({1: 9})) > int(names[2])


def test_the_slower_of_two_publishers_is_refused_unless_it_insists(tmp_path):
    known = KnownStore(tmp_path / "s")
    base = known.publish({1: 1})
    winner = known.publish({1: 2}, "delta")
    with pytest.raises(PublishConflict, match=f"{winner}.*{base}.*vista refresh"):
        known.publish({1: 3}, "delta", parent=base)
    forced = known.publish({1: 3}, "delta", parent=base, force=True)
    known.check(known.open().lookup([1]), [1], {1: 3})
    assert known.open().manifest.generation == forced


def test_deltas_have_a_bound_and_the_schema_of_their_parent(tmp_path):
    known = KnownStore(tmp_path / "s")
    known.publish({1: 1})
    known.publish({1: 2}, "delta", max_depth=2)
    known.publish({1: 3}, "delta", max_depth=2)
    with pytest.raises(ChainTooDeep, match="vista compact"):
        known.publish({1: 4}, "delta", max_depth=2)
    known.schema = PAGED
    with pytest.raises(SchemaError, match="parent"):
        known.publish({1: 4}, "delta")
    known.schema = SMALL
    known.truth["00000099"] = {}
    with pytest.raises(PublishConflict):
        known.publish({1: 4}, "delta", parent="00000099")
    with pytest.raises(GenerationUnknown):
        known.publish({1: 4}, "delta", parent="00000099", force=True)


def test_the_same_job_twice_has_one_digest_whatever_the_batches(tmp_path):
    schema = RecordSchema((Group("seeds", 8, 32, "int8"),))
    users = np.arange(200)
    tokens = {"seeds": np.random.default_rng(3).normal(size=(200, 8, 32)).astype(np.float32)}
    digests, files = set(), set()
    for attempt, step in enumerate((200, 7)):
        store = Store.create(tmp_path / str(attempt), num_shards=1)
        with ShardWriter(store.stage("r"), 0, 1, schema, fingerprint="m") as writer:
            for i in range(0, 200, step):
                s = slice(i, i + step)
                writer.add(users[s], {"seeds": tokens["seeds"][s]}, users[s], users[s], attempt)
            receipt = writer.finish()
        store.publish(
            store.stage("r"),
            [receipt],
            Publication(fingerprint="m", watermark_ms=0, expected=200, published_ms=attempt),
        )
        digests.add(Store.open(tmp_path / str(attempt)).manifest.digest)
        files.add(receipt.files["shard-00000-of-00001.mdb"].digest)
    assert len(digests) == 1 and len(files) == 2  # summarising times are in the file, not in the digest


def test_a_shard_already_finished_is_kept(tmp_path):
    known = KnownStore(tmp_path / "s", num_shards=1)
    staging, receipts = known.stage({1: 1, 2: 1}, run="r")
    path = staging / "shard-00000-of-00001.mdb"
    before = path.stat()
    assert finished(staging, 0, 1).as_dict() == receipts[0]
    assert known.stage({1: 1, 2: 1}, run="r")[1] == receipts and path.stat().st_ino == before.st_ino
    assert known.stage({1: 1, 2: 2}, run="r")[1] != receipts and path.stat().st_ino != before.st_ino
    os.truncate(path, 100)
    assert finished(staging, 0, 1) is None
    assert not list(staging.glob(".*"))


def test_the_writer_refuses_what_would_be_lost_or_wrong(tmp_path):
    schema = RecordSchema((Group("seeds", 2, 4, "float16"), Group("slots", 1, 4, "log8")))
    users = np.arange(100)
    mine = users[bucket_of(users, 2) == 0]

    def tokens(n, value=1.0, slot=1.0):
        return {"seeds": np.full((n, 2, 4), value, np.float32), "slots": np.full((n, 1, 4), slot, np.float32)}

    with ShardWriter(tmp_path, 0, 2, schema, fingerprint="m") as writer:
        one = np.array([1])
        writer.add(mine[4:5], tokens(1), one, one, 0)
        for wrong in (mine[4:5], mine[3:4]):
            with pytest.raises(OutOfOrder, match="ascending"):
                writer.add(wrong, tokens(1), one, one, 0)
        with pytest.raises(WrongBucket, match="bucket_of"):
            writer.add(users[bucket_of(users, 2) == 1][:1], tokens(1), one, one, 0)
        two = np.array([1, 1])
        for value, slot in ((np.nan, 1), (np.inf, 1), (7e4, 1), (1, -1), (1, np.nan)):
            bad = tokens(2, 1, 1)
            bad["seeds"][1, 0, 0], bad["slots"][1, 0, 3] = value, slot
            with pytest.raises(Unstorable, match="codec") as caught:
                writer.add(mine[5:7], bad, two, two, 0)
            assert caught.value.users == [mine[6]]
        for wrong in (tokens(3), {"seeds": tokens(2)["seeds"]}, {**tokens(2), "more": two}):
            with pytest.raises(SchemaError):
                writer.add(mine[5:7], wrong, two, two, 0)
        with pytest.raises(SchemaError, match="event_count"):
            writer.add(mine[5:7], tokens(2), np.array([-1, 1]), two, 0)
        with pytest.raises(SchemaError, match="with_states"):
            writer.add_states(mine[:1], [b""])
        writer.add(mine[5:7], tokens(2), two, two, 0)
        assert writer.finish().records == 3
    with pytest.raises(WrongBucket):
        ShardWriter(tmp_path, 2, 2, schema, fingerprint="m")


def test_a_new_model_is_taken_live_and_back_in_one_step_each(tmp_path):
    known = KnownStore(tmp_path / "s")
    old = known.publish({1: 1, 2: 1})
    known.fingerprint = "model-b"
    shadow = known.publish({1: 5, 2: 5}, line="shadow")
    newer = known.publish({2: 6}, "delta", line="shadow")
    assert known.admin.lines() == {"main": old, "shadow": newer}
    live, beside = known.open(), known.open(line="shadow")
    known.check(live.lookup([1, 2]), [1, 2], {1: 1, 2: 1})
    known.check(beside.lookup([1, 2]), [1, 2], {1: 5, 2: 6})
    assert known.admin.promote("shadow") == newer
    live.refresh()
    known.check(live.lookup([1, 2]), [1, 2], {1: 5, 2: 6})
    assert live.rollback() == old
    known.check(live.lookup([1, 2]), [1, 2], {1: 1, 2: 1})
    assert known.admin.promote("shadow", generation=shadow) == shadow
    known.admin.prune(keep=1)
    assert known.admin.verify().ok and known.admin.lines() == {"main": shadow, "shadow": newer}


def test_a_damaged_pointer_is_refused_and_promotion_repairs_it(tmp_path):
    known = KnownStore(tmp_path / "s")
    first, _ = known.publish({1: 1}), known.publish({1: 2})
    pointer = tmp_path / "s/CURRENT"
    pointer.write_text(f"{first}\n" + pointer.read_text().partition("\n")[2])
    with pytest.raises(Damaged, match="CURRENT.*vista promote"):
        known.open()
    known.admin.promote("main", generation=first)
    known.check(known.open().lookup([1]), [1], {1: 1})


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_is_told_and_leaves_the_old_generation_live(tmp_path, monkeypatch, code):
    from cache_store.change import publish

    known = KnownStore(tmp_path / "s")
    old = known.publish({1: 1})
    staging, receipts = known.stage({1: 2})

    def refuse(path, data):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(publish, "write_file", refuse)
    wanted = StorageFull if code == errno.ENOSPC else ReadOnlyStorage
    with pytest.raises(wanted, match="live generation is untouched.*run the same command again"):
        known.admin.publish(staging, receipts, Publication(fingerprint="model-a", watermark_ms=0, expected=1))
    assert known.open().manifest.generation == old


def test_lmdb_out_of_space_is_the_same_error():
    import lmdb

    with pytest.raises(StorageFull, match="shard-1"), storage_errors("shard-1"):
        raise lmdb.MapFullError("mdb_put: MDB_MAP_FULL: Environment mapsize limit reached")
    with pytest.raises(StorageFull), storage_errors("shard-1"):
        raise lmdb.Error("mdb_txn_commit: No space left on device")


def test_one_process_at_a_time_changes_a_store(tmp_path):
    known = KnownStore(tmp_path / "s")
    with exclusive(known.admin.layout, "pruning"), pytest.raises(StoreBusy, match="another process"):
        with exclusive(known.admin.layout, "publishing", wait=False):
            pass


def test_unknown_formats_and_features_are_refused(tmp_path):
    known = KnownStore(tmp_path / "s")
    known.publish({1: 1})
    store = tmp_path / "s"
    good = (store / "FORMAT").read_text()
    for text, error in (
        ("vista-store 2\n" + good.partition("\n")[2], FormatUnknown), ("sqlite\n", FormatUnknown),
        (good.replace('"features": []', '"features": ["zstd"]'), FormatUnknown),
        (good.replace("xxh64-seed0-mod", "murmur"), FormatUnknown), (good.replace("int64", "int32"), Damaged),
        (good[:-5], Damaged),
    ):  # fmt: skip
        (store / "FORMAT").write_text(text)
        with pytest.raises(error):
            known.open()
    (store / "FORMAT").write_text(good)
    from cache_store.format import manifest as manifests

    path = store / "generations/00000001/manifest.json"
    text = path.read_text()
    for old, new in (
        ('"features": []', '"features": ["zstd"]'),
        ("vista-generation 1", "vista-generation 2"),
    ):
        changed = text.replace(old, new)
        path.write_text(changed)
        (path.parent / "READY").write_bytes(manifests.seal(changed))
        with pytest.raises(FormatUnknown, match="newer"):
            known.open()
    with pytest.raises(FormatUnknown, match="no store"):
        Store.open(tmp_path)
    with pytest.raises(FormatUnknown, match="expected an empty folder"):
        Store.create(tmp_path, num_shards=2)
    with pytest.raises(FormatUnknown, match="is a store of"):
        Store.create(store, num_shards=3)


def test_statuses_have_the_published_numbers():
    assert {s.name: int(s) for s in Status} == {"FRESH": 0, "STALE": 1, "MISSING": 2, "CORRUPT": 3}
