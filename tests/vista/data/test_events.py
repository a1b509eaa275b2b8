"""The jagged batch: selection, order and joining act per user."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vista.data.events import COLUMNS, ORDER, Events

LENGTHS = st.lists(st.integers(0, 7), max_size=6)


def batch(lengths: list[int], seed: int = 0) -> Events:
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    return Events.of(lengths, **{name: rng.integers(0, 4, n) for name in COLUMNS})


def rows(events: Events, u: int) -> list[tuple[int, ...]]:
    one = events.user(u)
    return list(zip(*(getattr(one, name).tolist() for name in COLUMNS), strict=True))


@given(LENGTHS, st.data())
def test_select_gathers_whole_histories_in_the_asked_order(lengths: list[int], data: st.DataObject) -> None:
    events = batch(lengths)
    pick = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=8)) if lengths else []
    chosen = events.select(np.array(pick, np.int64))
    assert [rows(chosen, i) for i in range(chosen.users)] == [rows(events, u) for u in pick]


@given(LENGTHS, st.integers(0, 5))
def test_sorting_is_per_user_and_does_not_depend_on_arrival(lengths: list[int], seed: int) -> None:
    events = batch(lengths)
    rng = np.random.default_rng(seed)
    index = np.concatenate(
        [
            np.zeros(0, np.int64),
            *(events.offsets[u] + rng.permutation(lengths[u]) for u in range(len(lengths))),
        ]
    ).astype(np.int64)
    shuffled = Events(events.offsets, **{n: c[index] for n, c in events.columns.items()})
    one, two = events.sorted(), shuffled.sorted()
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    for u in range(one.users):
        keys = list(zip(*(getattr(one.user(u), name) for name in ORDER), strict=True))
        assert keys == sorted(keys)


@given(LENGTHS, st.integers(0, 7))
def test_appending_what_was_split_gives_the_whole(lengths: list[int], at: int) -> None:
    events = batch(lengths)
    cut = events.offsets[:-1] + np.minimum(at, events.lengths)
    joined = Events.append(events.slices(events.offsets[:-1], cut), events.slices(cut, events.offsets[1:]))
    assert [rows(joined, u) for u in range(joined.users)] == [rows(events, u) for u in range(events.users)]


def test_columns_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="surface"):
        Events(np.array([0, 2]), **{n: np.zeros(1 if n == "surface" else 2, t) for n, t in COLUMNS.items()})
