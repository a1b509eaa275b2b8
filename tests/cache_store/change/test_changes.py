"""``Store.changes``: whoever applies what it yields to the records of one generation has those of another."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_stores import PAGED, TEXT, KnownStore

from cache_store.errors import Damaged, GenerationUnknown, NothingPublished
from cache_store.format.record import PAGE_HEADER


def records(store, users) -> dict:
    """Record bytes by user, of those who have one."""
    found = store.lookup_raw(users)
    there = np.flatnonzero(found.status < 2)
    size = store.manifest.schema.record_bytes
    return {users[i]: found.rows[i, PAGE_HEADER : PAGE_HEADER + size].tobytes() for i in there}


def applied(before: dict, blocks) -> dict:
    after = dict(before)
    for block in blocks:
        for user, row, gone in zip(block.users.tolist(), block.rows, block.gone.tolist(), strict=True):
            if gone:
                assert user in after and not row.any()
                del after[user]
            else:
                assert after.get(user) != row.tobytes()  # nothing is told that did not change
                after[user] = row.tobytes()
    return after


STEP = st.one_of(
    st.tuples(st.just("delta"), st.dictionaries(st.integers(0, 9), st.one_of(st.none(), st.integers(0, 3)))),
    st.tuples(st.just("full"), st.dictionaries(st.integers(0, 9), st.integers(0, 3))),
    st.tuples(st.just("fold"), st.just(2)),
    st.tuples(st.just("fold"), st.none()),
    st.tuples(st.just("rollback"), st.none()),
)


@pytest.mark.parametrize("schema", [PAGED, TEXT], ids=["paged", "text"])
@settings(deadline=None, max_examples=8)
@given(st.lists(STEP, max_size=4))
def test_changes_lead_from_any_generation_to_the_live_one(tmp_path_factory, schema, steps):
    known = KnownStore(tmp_path_factory.mktemp("changes") / "s", schema)
    users = known.ids(range(10)).tolist()
    states = {}
    known.publish({u: 0 for u in range(6)})
    with known.open() as store:
        states[store.manifest.generation] = records(store, users)
        for step, value in steps:
            if step in ("delta", "full"):
                known.truth.setdefault(store.manifest.generation, {})
                known.publish(value, kind=step)
            elif step == "fold":
                store.compact(value)
            else:
                with suppress(NothingPublished):
                    store.rollback()
            live = store.refresh()
            states[live] = records(store, users)
            for since, before in states.items():
                assert applied(before, store.changes(since)) == states[live]
            assert applied({}, store.changes()) == states[live]


def test_what_cannot_be_told_is_an_error_and_not_a_shorter_answer(tmp_path):
    known = KnownStore(tmp_path / "s", PAGED)
    first = known.publish({u: 0 for u in range(6)})
    known.publish({1: 1, 2: None}, kind="delta")
    with known.open() as store, pytest.raises(GenerationUnknown, match="00000009"):
        list(store.changes("00000009"))
    path, offset = known.open().places([1])[0]
    data = bytearray(path.read_bytes())
    data[offset + 200] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    with known.open() as store, pytest.raises(Damaged, match="user 1"):
        list(store.changes(first))


def test_a_fold_is_no_change_and_the_forgotten_are_not_told(tmp_path):
    known = KnownStore(tmp_path / "s")
    known.publish({u: 0 for u in range(6)})
    last = known.publish({1: 1}, kind="delta")
    with known.open() as store:
        store.compact()
        assert list(store.changes(last)) == []
        store.forget([3])
        assert list(store.changes(last)) == []
        assert sorted(u for block in store.changes() for u in block.users.tolist()) == [0, 1, 2, 4, 5]
