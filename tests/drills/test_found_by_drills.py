"""What the drills have found, one small test each."""

from __future__ import annotations

import gc
import json
import os
import pickle
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_store import Publication, Status, Store
from cache_store.change import compact, forget, verify
from cache_store.errors import Damaged
from cache_store.format import lines
from cache_store.format import manifest as manifests
from cache_store.format.keys import from_keys
from cache_store.format.layout import DEAD_LETTERS
from cache_store.read import leases, views
from cache_store.testing import Truth

TRUTH = Truth(num_users=20)


def published(path):
    store = TRUTH.create(path)
    TRUTH.publish(store, "run", 1000)
    return store, np.flatnonzero(TRUTH.written(1000) >= 0)


def test_a_user_named_twice_is_forgotten_once(tmp_path):
    store, there = published(tmp_path / "s")
    store.forget(TRUTH.users[there[[0, 0, 1]]])
    assert store.verify().ok
    assert store.manifest.forgotten == 2


def test_a_reader_that_first_reads_states_after_a_forget_finds_them(tmp_path):
    store, there = published(tmp_path / "s")
    with Store.open(tmp_path / "s") as reader, reader.pin() as pinned:
        store.forget(TRUTH.users[there[:1]])
        gone = np.zeros(20, bool)
        gone[there[0]] = True
        for view in (pinned, reader):
            TRUTH.check_states(view.states(TRUTH.users), np.arange(20), 1000, gone)
            assert view.states(TRUTH.users[there[:1]]) == [None]


def test_a_manifest_read_while_forget_seals_it_anew_is_whole(tmp_path, monkeypatch):
    store, there = published(tmp_path / "s")
    read_seal = manifests.read_seal

    def then_forget(folder):
        ready = read_seal(folder)
        monkeypatch.setattr(manifests, "read_seal", read_seal)
        store.forget(TRUTH.users[there[:1]])
        return ready

    monkeypatch.setattr(manifests, "read_seal", then_forget)
    assert manifests.read(store.layout.generation("00000001")).forgotten == 1


@pytest.mark.parametrize("again", [Store.forget, lambda store, _: store.prune()])
def test_a_reader_that_opened_while_a_forget_was_cut_short_moves_on_when_it_is_finished(
    tmp_path, monkeypatch, again
):
    store, there = published(tmp_path / "s")
    gone = np.zeros(20, bool)
    gone[there[0]] = True
    readers, write = [], forget.write_file

    def cut(path, raw):
        if path.name == "READY" and readers:
            raise KeyboardInterrupt  # the manifest is the new one, READY states both
        write(path, raw)
        if path.name == "READY":
            readers.append(Store.open(tmp_path / "s"))  # on the old manifest

    with monkeypatch.context() as patch:
        patch.setattr(forget, "write_file", cut)
        with pytest.raises(KeyboardInterrupt):
            store.forget(TRUTH.users[there[:1]])
    again(store, TRUTH.users[there[:1]])
    with readers[0] as reader:
        TRUTH.check_states(reader.states(TRUTH.users), np.arange(20), 1000, gone)
        reader.refresh()
        assert reader.lookup(TRUTH.users[there[:1]]).status[0] == Status.MISSING


def test_a_damaged_record_spoils_no_batch_even_where_warnings_are_errors(tmp_path):
    store, there = published(tmp_path / "s")
    file, row = store.places(TRUTH.users[there[:1]])[0]
    raw = bytearray(file.read_bytes())
    start = row + 16 + 64
    raw[start : row + 16 + TRUTH.schema.record_bytes] = b"\x7f" * (TRUTH.schema.record_bytes - 64)
    file.write_bytes(raw)
    with warnings.catch_warnings(), Store.open(tmp_path / "s") as reader:
        warnings.simplefilter("error")
        status = reader.lookup(TRUTH.users[there]).status
    assert status[0] == Status.CORRUPT and (status[1:] == Status.FRESH).all()


@pytest.mark.parametrize(
    ("key", "kind"), [(b"", "string"), (b"\xff", "string"), (b"k" * 512, "string"), (b"k", "int64")]
)
def test_a_key_that_no_user_has_is_damage_and_not_a_wrong_argument(key, kind):
    with pytest.raises(Damaged, match="vista verify"):
        from_keys([key], kind)


def _lease(path):
    """What this process has told ``prune`` that it has in use."""
    (file,) = path.glob(f"leases/{os.getpid()}-*.json")
    return json.loads(file.read_text())


@pytest.mark.parametrize("how", ["as of", "pinned"])
def test_an_altered_index_is_found_also_below_a_view_that_is_not_the_live_one(tmp_path, how):
    store, _ = published(tmp_path / "s")
    now = np.zeros(1, np.int64)
    with Store.open(tmp_path / "s", clock=lambda: int(now[0])) as reader, reader.pin() as pinned:
        TRUTH.publish(store, "next", 2000)
        reader.refresh()

        def look():
            if how == "pinned":
                return pinned.lookup(TRUTH.users)
            return reader.lookup(TRUTH.users, as_of=1500)

        assert look().generation == "00000001"
        for index in (tmp_path / "s/generations/00000001").glob("shard*.idx"):
            with open(index, "r+b") as file:
                file.seek(index.stat().st_size - 8)
                file.write(b"altered!")
        with pytest.raises(Damaged, match=r"00000001.*\.idx.*vista verify"):
            for _ in range(TRUTH.num_shards):
                now[0] += 1000
                look()


def test_a_pinned_store_renews_its_lease_however_long_it_reads_alone(tmp_path):
    published(tmp_path / "s")
    now = np.zeros(1, np.int64)
    with Store.open(tmp_path / "s", clock=lambda: int(now[0])) as reader, reader.pin() as pinned:
        before = _lease(tmp_path / "s")
        now[0] += leases.TTL_MS // 2
        pinned.lookup(TRUTH.users)
        after = _lease(tmp_path / "s")
        assert after["expires_ms"] > before["expires_ms"] and after["generations"] == ["00000001"]


def test_a_child_that_leaves_the_pin_it_was_forked_in_lets_go_of_nothing_of_its_parents(tmp_path):
    store, _ = published(tmp_path / "s")
    with Store.open(tmp_path / "s") as reader:
        pin = reader.pin()
        pinned = pin.__enter__()
        TRUTH.publish(store, "next", 2000)
        reader.refresh()
        assert _lease(tmp_path / "s")["generations"] == ["00000001", "00000002"]
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                assert pinned.lookup(TRUTH.users).generation == "00000001"
                assert _lease(tmp_path / "s")["generations"] == ["00000001", "00000002"]  # its own
                pin.__exit__(None, None, None)
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert _lease(tmp_path / "s")["generations"] == ["00000001", "00000002"]
        pin.__exit__(None, None, None)


def test_a_pinned_store_goes_through_pickle_as_it_reads(tmp_path):
    store, _ = published(tmp_path / "s")
    with Store.open(tmp_path / "s") as reader, reader.pin() as pinned:
        second = TRUTH.publish(store, "next", 2000)
        reader.refresh()
        with pickle.loads(pickle.dumps(pinned)) as copy, pickle.loads(pickle.dumps(reader)) as other:
            assert copy.lookup(TRUTH.users).generation == "00000001"
            assert other.lookup(TRUTH.users).generation == second == copy.refresh()


def test_a_forget_while_shards_are_folded_loses_no_dead_letter(tmp_path, monkeypatch):
    store, there = published(tmp_path / "s")
    receipts = TRUTH.build(store, "next", 1001, 1000)
    letters = pa.table({"user": ["123456"], "why": ["a test"]})
    pq.write_table(letters, store.layout.run("next") / DEAD_LETTERS)
    written = sum(r.records + r.tombstones for r in receipts)
    wanted = Publication(
        kind="delta", parent="00000001", fingerprint=receipts[0].fingerprint, watermark_ms=1001,
        expected=written + 1, dead_letters=1,
    )  # fmt: skip
    store.publish(store.staging("next"), receipts, wanted)
    fold_shard = compact.fold_shard

    def after_a_forget(chain, shard, staging, *rest):
        if shard == 0:
            Store(tmp_path / "s").forget(TRUTH.users[there[:1]])
        return fold_shard(chain, shard, staging, *rest)

    monkeypatch.setattr(compact, "fold_shard", after_a_forget)
    folder = store.layout.generation(store.compact())
    assert pq.read_table(folder / DEAD_LETTERS).equals(letters)
    assert store.lookup(TRUTH.users[there[:1]]).status[0] == Status.MISSING and store.verify().ok


@pytest.mark.parametrize("change", [lambda s: s.forget(TRUTH.users[:5]), lambda s: s.prune(keep=1)])
def test_what_a_forget_or_a_prune_takes_away_while_the_store_is_verified_is_no_problem(
    tmp_path, monkeypatch, change
):
    store, _ = published(tmp_path / "s")
    for version in (2000, 3000):
        TRUTH.publish(store, f"run-{version}", version)
    judge, changed = verify._file, []

    def after_a_change(*facts):
        if not changed:
            changed.append(change(store))
        return judge(*facts)

    monkeypatch.setattr(verify, "_file", after_a_change)
    report = store.verify()
    assert changed and report.problems == []
    assert report.generations == store.layout.generation_names()
    assert report.records == sum(m.records for m in store.generations())


@pytest.mark.parametrize("first", ["pointer", "change"])
def test_what_is_published_and_pruned_while_pointers_are_verified_is_no_problem(tmp_path, monkeypatch, first):
    store, _ = published(tmp_path / "s")
    for version in (2000, 3000):
        TRUTH.publish(store, f"run-{version}", version)
    read, changed = lines.live, []

    def with_a_change(layout, line):
        if changed:
            return read(layout, line)
        changed.append(True)
        before = read(layout, line)
        TRUTH.publish(store, "run-4000", 4000)
        store.prune(keep=1)
        return before if first == "pointer" else read(layout, line)

    monkeypatch.setattr(lines, "live", with_a_change)
    assert store.verify().problems == [] and changed


def test_as_of_reads_of_many_generations_keep_no_more_mapped_than_they_may(tmp_path, monkeypatch):
    store, _ = published(tmp_path / "s")
    for version in range(2000, 7000, 1000):
        TRUTH.publish(store, f"run-{version}", version)
    monkeypatch.setattr(views, "AS_OF_OPEN", 2)
    with Store.open(tmp_path / "s") as reader:
        for version in (1000, 2000, 3000, 4000, 5000):
            assert reader.lookup(TRUTH.users, as_of=version).generation == f"{version // 1000:08d}"
        gc.collect()
        with open("/proc/self/maps") as maps:
            mapped = {line.partition("generations/")[2][:8] for line in maps if str(tmp_path) in line}
        assert mapped == {"00000004", "00000005", "00000006"}
