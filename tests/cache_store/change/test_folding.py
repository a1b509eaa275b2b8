"""Deltas folded into one generation: the same answers, whatever is published meanwhile."""

from __future__ import annotations

import errno
import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_stores import PAGED, SMALL, TEXT, KnownStore

from cache_store import Store
from cache_store.change import compact
from cache_store.errors import (
    PublishConflict,
)
from cache_store.testing import Truth


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
@given(
    st.lists(st.integers(1, 2_000), min_size=100, max_size=400),
    st.integers(5, 8),
    st.sampled_from([0.02, math.inf]),
)
def test_what_is_due_copies_records_a_few_times_and_keeps_the_chain_short_and_small(
    arriving, max_depth, room
):
    chain, copied = [100_000], 0
    for size in arriving:
        newest = compact.due(chain, max_depth, room)
        if newest != 0:
            many = len(chain) if newest is None else newest
            copied += sum(chain[:many])
            chain[:many] = [100_000] if many == len(chain) else [sum(chain[:many])]
        chain.insert(0, size)
        assert len(chain) <= max_depth + 1 and sum(chain[1:-1]) <= room * chain[-1]
    if room == math.inf:
        assert copied <= 12 * sum(arriving) + 100_000  # folding all of it each time: 10 to 1,700 times
