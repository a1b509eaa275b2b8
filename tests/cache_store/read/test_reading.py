"""What goes in comes out: by key, in the caller's order, whatever the chain, the codec's layout and the process."""

from __future__ import annotations

import multiprocessing
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_stores import PAGED, PAGED_TEXT, SMALL, TEXT, KnownStore

from cache_store import Status, Store
from cache_store.errors import (
    FingerprintMismatch,
    KeyKind,
    MissingUsers,
    NothingPublished,
    SchemaError,
    StoreClosed,
    StoreError,
)
from cache_store.read.views import Views

SCHEMAS = pytest.mark.parametrize(
    "schema", [SMALL, PAGED, TEXT, PAGED_TEXT], ids=["small", "paged", "text", "paged-text"]
)


@SCHEMAS
def test_a_chain_reads_as_the_newest_word_on_every_user(tmp_path, schema, kernel):
    known = KnownStore(tmp_path / "s", schema, num_shards=3)
    known.publish({u: 1 for u in range(0, 60, 2)})
    known.publish({4: 2, 6: None, 7: 2}, "delta")
    name = known.publish({6: 3, 7: None, 9: 3, 11: None}, "delta")
    users = [9, 4, 6, 7, 7, 0, 1, 58, 9, 4, 11]
    with known.open() as store:
        known.check(store.lookup(known.ids(users)), users, known.truth[name])
        states = store.states(known.ids(users))
        truth = known.truth[name]
        assert states == [f"state {u} {truth[u]}".encode() if u in truth else None for u in users]
        everyone = np.concatenate([store.users(k) for k in range(3)]).tolist()
        assert sorted(everyone) == sorted(known.ids(sorted(truth)).tolist())
        raw = store.lookup_raw(known.ids(users))
        records = raw.rows[:, 16 : 16 + schema.record_bytes].copy().view(schema.dtype)[:, 0]
        tokens = np.empty((len(users), schema.tokens, schema.width), np.float32)
        schema.decode(records, tokens)
        np.testing.assert_array_equal(tokens, store.lookup(known.ids(users)).tokens)


@settings(max_examples=15)
@given(
    steps=st.lists(
        st.dictionaries(st.integers(0, 30), st.one_of(st.none(), st.integers(1, 9)), max_size=12),
        min_size=1,
        max_size=4,
    ),
    asked=st.lists(st.integers(-2, 33), max_size=40),
)
def test_any_chain_equals_a_dictionary(tmp_path_factory, kernel, steps, asked):
    known = KnownStore(tmp_path_factory.mktemp("chain") / "s", SMALL, num_shards=2)
    name = known.publish({u: v for u, v in steps[0].items() if v is not None}, states=False)
    for step in steps[1:]:
        name = known.publish(step, "delta", states=False)
    with known.open() as store:
        known.check(store.lookup(known.ids(asked)), asked, known.truth[name])
        store.compact()
        known.check(store.lookup(known.ids(asked)), asked, known.truth[name])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_batch_larger_than_the_pieces_of_its_threads_keeps_its_order(tmp_path, threads, kernel):
    known = KnownStore(tmp_path / "s", PAGED, num_shards=2)
    full = known.publish({u: 1 for u in range(1200)})
    delta = known.publish({u: 2 for u in range(0, 1200, 3)}, "delta")
    users = np.random.default_rng(0).permutation(1250)[:1000].tolist()
    with known.open(threads=threads) as store:
        assert len(users) * store.row_bytes > 3 << 20
        known.check(store.lookup(users), users, known.truth[delta])
        known.check(store.lookup(users, as_of=-1), users, {})
        raw, one = store.lookup_raw(users), known.open(threads=1).lookup_raw(users)
        assert (raw.rows == one.rows).all() and (raw.status == one.status).all()
    assert known.truth[full] != known.truth[delta]


def test_a_given_buffer_is_filled_and_a_wrong_one_refused(tmp_path):
    known = KnownStore(tmp_path / "s")
    known.publish({1: 1, 2: 1})
    with known.open() as store:
        out = np.full((3, 2, 4), 7, np.float32)
        assert store.lookup([2, 9, 2], out=out).tokens is out
        known.check(store.lookup([2, 9, 2], out=out), [2, 9, 2], {1: 1, 2: 1})
        rows = np.full((2, store.row_bytes), 7, np.uint8)
        assert store.lookup_raw([9, 1], out=rows).rows is rows and not rows[0].any() and rows[1].any()
        for wrong in (np.zeros((2, 2, 4), np.float32), np.zeros((3, 2, 4)), np.zeros((3, 4, 2), np.float32)):
            with pytest.raises(SchemaError, match="out: expected"):
                store.lookup([1, 2, 3], out=wrong)
        with pytest.raises(SchemaError):
            store.lookup([1, 2, 3], out=np.zeros((3, 2, 8), np.float32)[:, :, ::2])


def test_the_missing_policy_decides_what_an_absent_user_gets(tmp_path):
    known = KnownStore(tmp_path / "s")
    known.publish({1: 1})
    cold = np.arange(8, dtype=np.float32).reshape(2, 4)
    with known.open(missing=cold) as store:
        found = store.lookup([5, 1])
        np.testing.assert_array_equal(found.tokens[0], cold)
        assert found.status.tolist() == [Status.MISSING, Status.FRESH]
    with known.open(missing="raise") as store:
        store.lookup([1])
        with pytest.raises(MissingUsers, match="vista refresh") as caught:
            store.lookup([5, 1, 6])
        assert caught.value.users == [5, 6]
    with pytest.raises(StoreError, match="missing"):
        known.open(missing="nothing")
    with pytest.raises(SchemaError, match="broadcasts"):
        known.open(missing=np.zeros((3, 4), np.float32))


def test_age_is_judged_on_read_by_the_given_clock(tmp_path):
    known = KnownStore(tmp_path / "s")
    known.publish({1: 1})  # summarised at 500
    for now, status in ((600, Status.FRESH), (601, Status.STALE)):
        with Store.open(tmp_path / "s", max_age_ms=100, clock=lambda now=now: now) as store:
            found = store.lookup([1, 2])
            assert found.status.tolist() == [status, Status.MISSING]
            assert found.tokens[0].any() and found.summarized_ms[0] == 500
            assert store.manifest.published_ms == 900


def test_a_delta_of_another_model_is_refused(tmp_path):
    known = KnownStore(tmp_path / "s")
    known.publish({1: 1})
    known.fingerprint = "model-b"
    with pytest.raises(FingerprintMismatch, match="model-b.*model-a"):
        known.publish({1: 2}, "delta")


def test_ids_of_the_wrong_kind_are_refused(tmp_path):
    KnownStore(tmp_path / "ints").publish({1: 1})
    KnownStore(tmp_path / "texts", TEXT).publish({1: 1})
    for path, wrong in (
        ("ints", ["a"]), ("texts", [1]), ("ints", [1.5]), ("ints", np.zeros((1, 1), np.int64)), ("texts", ["a", 3]),
        ("texts", [""]), ("texts", ["x" * 512]), ("ints", np.array([1], np.uint64)),
    ):  # fmt: skip
        with pytest.raises(KeyKind, match="user id"):
            Store.open(tmp_path / path).lookup(wrong)
    assert len(Store.open(tmp_path / "ints").lookup([]).status) == 0
    assert len(Store.open(tmp_path / "texts").lookup([]).status) == 0


def test_a_store_without_a_live_generation_says_what_to_run(tmp_path):
    KnownStore(tmp_path / "s")
    with pytest.raises(NothingPublished, match="vista summarize"):
        Store.open(tmp_path / "s")
    with pytest.raises(NothingPublished):
        Store.open(tmp_path / "s", line="shadow")


def test_a_closed_store_says_so(tmp_path):
    known = KnownStore(tmp_path / "s")
    known.publish({1: 1})
    with known.open() as store:
        pass
    for read in (lambda: store.lookup([1]), store.refresh, lambda: store.states([1])):
        with pytest.raises(StoreClosed):
            read()


def _child(store, known, connection):
    """Reads in a process of its own; what it found and where it stands."""
    users = list(range(12))
    known.check(store.lookup(users), users, known.truth[store.manifest.generation])
    before = store.manifest.generation
    connection.send((os.getpid(), before, store.refresh()))
    connection.close()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_store_opened_before_a_process_was_made_reads_in_it(tmp_path, method):
    known = KnownStore(tmp_path / "s")
    first = known.publish({u: 1 for u in range(10)})
    store = known.open() if method == "fork" else Store.open(known.path)
    known.admin = Store(known.path)  # a clock made by a lambda does not pickle
    second = known.publish({3: 2}, "delta")
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(store, known, theirs))
    process.start()
    theirs.close()  # so that a child that dies is an end of file, not a wait
    pid, before, after = ours.recv()
    process.join()
    assert process.exitcode == 0 and pid != os.getpid()
    assert (before, after) == (first, second)  # the child moved, the parent did not
    assert store.manifest.generation == first
    assert list(known.path.glob("leases/*.json"))  # the child's exit left the parent's lease alone


def test_a_store_used_after_fork_while_another_thread_held_its_lock_still_reads(tmp_path):
    known = KnownStore(tmp_path / "s")
    known.publish({u: 1 for u in range(10)})
    store = known.open()
    store.lookup([1])
    with store._views._lock:  # as a refreshing thread holds it at the moment of a fork
        pid = os.fork()
        if pid == 0:
            try:
                known.check(store.lookup([1, 2]), [1, 2], known.truth["00000001"])
                store.refresh()
                os._exit(0)
            finally:
                os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_store_whose_threads_have_worked_reads_large_batches_after_a_fork(tmp_path, kernel):
    known = KnownStore(tmp_path / "s", PAGED)
    known.publish({u: 1 for u in range(1000)})
    users = list(range(1000))
    with known.open(threads=2) as store:
        known.check(store.lookup(users), users, known.truth["00000001"])
        pid = os.fork()
        if pid == 0:
            try:
                known.check(store.lookup(users), users, known.truth["00000001"])
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_store_opened_without_a_lease_leaves_no_file(tmp_path):
    known = KnownStore(tmp_path / "s")
    known.publish({1: 1})
    with known.open(lease=False) as store:
        known.check(store.lookup([1]), [1], {1: 1})
        assert not list(known.path.glob("leases/*.json"))
    with pytest.raises(ValueError, match="threads: expected at least 1, found 0"):
        known.open(threads=0)


def test_pickle_keeps_options_and_generation(tmp_path):
    known = KnownStore(tmp_path / "s")
    first = known.publish({1: 1, 2: 1})
    store = Store.open(known.path, fingerprint="model-a", missing=np.ones((2, 4), np.float32), max_age_ms=1)
    known.publish({1: 2, 2: 2})
    copy = pickle.loads(pickle.dumps(store))
    assert copy.manifest.generation == first
    found = copy.lookup([1, 5])
    assert (found.tokens[1] == 1).all() and found.status.tolist() == [Status.STALE, Status.MISSING]
    assert copy.refresh() != first


def test_a_pinned_store_stays_while_its_owner_moves(tmp_path):
    known = KnownStore(tmp_path / "s")
    first = known.publish({1: 1})
    with known.open() as store, store.pin() as pinned:
        second = known.publish({1: 2})
        assert store.refresh() == second and pinned.refresh() == first
        known.check(pinned.lookup([1]), [1], {1: 1})
        known.check(store.lookup([1]), [1], {1: 2})
        assert first in known.admin.prune(keep=1).kept


def test_a_reader_that_opens_while_the_line_moves_opens_what_it_moved_to(tmp_path, monkeypatch):
    store = KnownStore(tmp_path / "s")
    store.publish({1: 1})
    hold, moved = Views._hold, []

    def overtaken(self, *names):
        if names and not moved:
            moved.append(store.publish({1: 2}))
        return hold(self, *names)

    monkeypatch.setattr(Views, "_hold", overtaken)
    with store.open() as reader:
        assert reader.manifest.generation == moved[0]
