"""What is live: publication, lines, rollback, compaction, leases and pruning."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_stores import PAGED, SMALL, TEXT, KnownStore

from cache_store import Group, Publication, RecordSchema, ShardWriter, Status, Store, bucket_of, finished
from cache_store.change import compact
from cache_store.errors import (
    ChainTooDeep,
    Damaged,
    FingerprintMismatch,
    FormatUnknown,
    GenerationUnknown,
    Incomplete,
    NothingPublished,
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
from cache_store.testing import Truth


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


@pytest.mark.parametrize("schema", [SMALL, PAGED, TEXT], ids=["small", "paged", "text"])
def test_a_compacted_chain_has_the_digest_of_a_full_run(tmp_path, schema):
    known = KnownStore(tmp_path / "s", schema)
    known.publish({u: 1 for u in range(30)}, watermark=5)
    known.publish({u: 2 for u in range(0, 30, 4)} | {7: None}, "delta", watermark=6)
    chain = known.publish({u: 3 for u in range(28, 33)} | {0: None}, "delta", watermark=7)
    store = known.open()
    name = store.compact()
    assert store.manifest.kind == "full" and store.manifest.watermark_ms == 7 and store.compact() == name
    full = KnownStore(tmp_path / "full", schema)
    full.publish(known.truth[chain])
    assert full.open().manifest.digest == store.manifest.digest
    users = list(range(35))
    known.check(store.lookup(known.ids(users)), users, known.truth[chain])
    assert store.states(known.ids(users)) == full.open().states(known.ids(users))
    assert store.rollback() == chain
    assert store.compact() > name  # asked for again, made again


@pytest.mark.parametrize("newest", [2, 3, 6])
@pytest.mark.parametrize("strings", [False, True], ids=["int64", "string"])
def test_folding_the_newest_deltas_changes_no_answer_and_hides_who_is_gone(tmp_path, strings, newest):
    truth = Truth(num_users=60, strings=strings)
    store = truth.create(tmp_path / "s")
    name = truth.publish(store, "full", 1000)
    for version in range(1001, 1007):
        name = truth.publish(store, f"d{version}", version, parent=name, base=version - 1)
    folded = store.compact(newest)
    manifest = store.manifest
    assert (manifest.kind, manifest.depth, manifest.watermark_ms) == ("delta", 7 - newest, 1006)
    truth.check_all(store, 1006)
    assert store.verify().problems == [] and store.compact(1) == folded
    name = truth.publish(store, "later", 1007, parent=folded, base=1006)
    store.refresh()
    truth.check_all(store, 1007)
    store.compact()
    again = truth.create(tmp_path / "full")
    truth.publish(again, "whole", 1007, base=None)
    assert store.manifest.kind == "full" and store.manifest.digest == again.manifest.digest


@pytest.mark.parametrize("newest", [2, None], ids=["some", "all"])
@pytest.mark.parametrize("strings", [False, True], ids=["int64", "string"])
def test_deltas_published_while_a_fold_is_built_lie_on_it_afterwards(tmp_path, monkeypatch, strings, newest):
    truth = Truth(num_users=40, strings=strings)
    store, other = truth.create(tmp_path / "s"), Store(tmp_path / "s")
    names = [truth.publish(store, "full", 1000)]
    for version in (1001, 1002):
        names.append(truth.publish(store, f"d{version}", version, parent=names[-1], base=version - 1))
    fold_shard, gone = compact.fold_shard, truth.users[[3]]

    def meanwhile(*args):
        if len(names) < 5:
            version = 1000 + len(names)
            names.append(truth.publish(other, f"late{version}", version, parent=names[-1], base=version - 1))
            if len(names) == 4:
                other.forget(gone)
        return fold_shard(*args)

    monkeypatch.setattr(compact, "fold_shard", meanwhile)
    live = store.compact(newest)
    forgotten = np.arange(40) == 3
    truth.check_all(store, 1004, forgotten)
    assert store.manifest.depth == (3 if newest else 2) and store.verify().problems == []
    assert [m.watermark_ms for m in store.generations() if m.generation > names[-1]] == [1002, 1003, 1004]
    assert store.rollback() == names[-1]  # what was live before the fold
    truth.check_all(store, 1004, forgotten)
    store.promote(generation=live)
    store.refresh()
    name = truth.publish(store, "later", 1005, parent=live, base=1004)
    store.refresh()
    store.prune(keep=1)
    truth.check_all(store, 1005, forgotten)
    store.compact()
    truth.check_all(store, 1005, forgotten)
    assert name < store.manifest.generation and store.manifest.depth == 0


@pytest.mark.parametrize("links", [True, False], ids=["links", "no-links"])
def test_a_fold_cut_short_while_it_takes_deltas_along_is_finished_by_the_next(tmp_path, monkeypatch, links):
    from cache_store.change import publish

    class Cut(BaseException):
        pass

    def no_links(*_):
        raise OSError(errno.EPERM, "no links here")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    truth = Truth(num_users=40)
    store = truth.create(tmp_path / "s")
    name = truth.publish(store, "full", 1000)
    folded = truth.publish(store, "d1001", 1001, parent=name, base=1000)
    store.build_fold(folded, None)
    name = truth.publish(store, "d1002", 1002, parent=folded, base=1001)
    name = truth.publish(store, "d1003", 1003, parent=name, base=1002)
    enter, calls = publish.enter, 0
    for step in range(1, 9):
        calls = 0

        def cut(layout, staging, manifest, step=step):
            nonlocal calls
            calls += 1
            if calls == step:
                raise Cut
            enter(layout, staging, manifest)
            if calls == step - 1:
                raise Cut

        monkeypatch.setattr(publish, "enter", cut)
        try:
            store.compact(None, folded)
            break
        except Cut:
            assert Store(tmp_path / "s").refresh() == name
    assert step > 3
    truth.check_all(store, 1003)
    chain = [m.kind for m in store.generations() if m.generation > name][-2:]
    assert store.manifest.depth == 2 and chain == ["delta", "delta"]
    with pytest.raises(PublishConflict):
        store.compact(None, name)
    store.prune(keep=1)
    truth.check_all(store, 1003)
    assert store.verify().problems == []


def test_a_fold_gives_way_to_what_does_not_lie_on_what_it_folds(tmp_path):
    truth = Truth()
    store = truth.create(tmp_path / "s")
    full = truth.publish(store, "full", 1000)
    name = truth.publish(store, "d", 1001, parent=full, base=1000)
    store.build_fold(name, None)
    truth.publish(store, "other", 1002, base=None)
    with pytest.raises(PublishConflict):
        store.compact(None, name)
    store.refresh()
    truth.check_all(store, 1002)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 2_000), min_size=100, max_size=400), st.integers(5, 8))
def test_what_is_due_copies_records_a_few_times_and_keeps_the_chain_short(arriving, max_depth):
    chain, copied = [100_000], 0
    for size in arriving:
        newest = compact.due(chain, max_depth)
        if newest != 0:
            many = len(chain) if newest is None else newest
            copied += sum(chain[:many])
            chain[:many] = [100_000] if many == len(chain) else [sum(chain[:many])]
        chain.insert(0, size)
        assert len(chain) <= max_depth + 1
    assert copied <= 12 * sum(arriving) + 100_000  # folding all of it each time: 10 to 1,700 times


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


def test_rollback_needs_a_target_and_prune_leaves_one(tmp_path):
    known = KnownStore(tmp_path / "s")
    names = [known.publish({1: 0})]
    with pytest.raises(NothingPublished, match="before"):
        known.admin.rollback()
    with pytest.raises(StoreError, match="keep"):
        known.admin.prune(keep=0)
    names += [known.publish({1: v}) for v in range(1, 5)]
    assert known.admin.prune(keep=1, dry_run=True).generations == names[:3]
    assert len(known.admin.generations()) == 5
    report = known.admin.prune(keep=1)
    assert report.generations == names[:3] and report.bytes > 0
    with pytest.raises(GenerationUnknown, match="cannot go back"):
        known.admin.rollback(names[0])
    assert known.admin.rollback() == names[3]
    report = known.admin.prune()
    assert not report.generations and "forward" in report.kept[names[4]]
    assert known.admin.promote(generation=names[4]) == names[4] and known.admin.verify().ok


def test_what_a_rollback_took_back_stays_until_something_newer_is_live(tmp_path):
    known = KnownStore(tmp_path / "s")
    names = [known.publish({1: v}) for v in range(4)]
    known.admin.rollback(names[1])
    assert set(known.admin.prune(keep=1).kept) == {
        names[0],
        names[1],
        names[3],
    }  # names[2] is not the newest of them
    newer = known.publish({1: 9})
    assert known.admin.prune(keep=1).generations == [names[0], names[3]]
    assert set(known.admin.prune(keep=1).kept) == {names[1], newer}


def test_prune_keeps_what_a_delta_lies_on(tmp_path):
    known = KnownStore(tmp_path / "s")
    names = [known.publish({1: 1}), known.publish({2: 1}, "delta"), known.publish({3: 1}, "delta")]
    assert not known.admin.prune(keep=1).generations
    known.publish({4: 1})
    known.publish({4: 2})
    assert known.admin.prune(keep=1).generations == names


def test_a_lease_keeps_prune_from_what_is_read_until_the_reader_moves_or_dies(tmp_path):
    known = KnownStore(tmp_path / "s")
    names = [known.publish({1: 1})]
    reader = known.open()
    names += [known.publish({1: v}) for v in range(2, 6)]
    known.admin.prune(keep=1)
    assert reader.states([1]) == [b"state 1 1"]  # opened only now, though three generations newer exist
    known.check(reader.lookup([1], as_of=0), [1], {1: 1})  # what was known when it opened
    reader.refresh()
    assert known.admin.prune(keep=1).generations == names[:1]
    reader.close()
    assert not list((tmp_path / "s/leases").iterdir())


def test_a_lease_of_a_dead_process_or_of_a_host_long_silent_does_not_hold(tmp_path):
    known = KnownStore(tmp_path / "s")
    names = [known.publish({1: v}) for v in range(4)]
    reader = known.open()
    (mine,) = (tmp_path / "s/leases").glob("*.json")
    facts = json.loads(mine.read_text())
    assert (
        facts["generations"] == names[-1:]
        and facts["pid"] == os.getpid()
        and socket.gethostname() in facts["host"]
    )
    lease = tmp_path / "s/leases/1-other.json"
    lease.write_text(
        json.dumps({**facts, "generations": [names[0]], "host": "elsewhere", "expires_ms": 1_001})
    )
    assert names[0] in known.admin.prune(keep=1).kept  # the clock says 1,000
    lease.write_text(
        json.dumps({**facts, "generations": [names[0]], "host": "elsewhere", "expires_ms": 1_000})
    )
    dead = {**facts, "generations": [names[0]], "started": "0"}
    (tmp_path / "s/leases/2-dead.json").write_text(json.dumps(dead))
    assert known.admin.prune(keep=1).generations == names[:1]
    assert [p.name for p in (tmp_path / "s/leases").iterdir()] == [mine.name]
    reader.close()


def test_prune_sweeps_the_remains_of_crashes_and_nothing_of_running_jobs(tmp_path):
    known = KnownStore(tmp_path / "s")
    known.publish({1: 1})
    known.publish({1: 2})
    store = tmp_path / "s"
    shutil.copytree(store / "generations/00000001", store / "generations/.deleting-00000009")
    (store / ".CURRENT.0123456789ab.tmp").write_text("half")
    (store / "generations/00000002/shard-00000-of-00002.r1.mdb").write_text("half")
    staging, _ = known.stage({1: 3}, run="running")
    stale, _ = known.stage({1: 3}, run="stale")
    for path in [*stale.iterdir(), stale]:
        os.utime(path, (0, 0))
    report = Store(store, clock=lambda: staging.stat().st_mtime_ns // 1_000_000).prune()
    assert report.remains == [
        ".CURRENT.0123456789ab.tmp", "generations/.deleting-00000009",
        "generations/00000002/shard-00000-of-00002.r1.mdb",
    ]  # fmt: skip
    assert report.staging == ["stale"] and staging.exists() and not stale.exists()
    assert not report.generations and known.admin.verify().ok


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
