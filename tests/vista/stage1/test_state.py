from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vista.data.events import COLUMNS, Events
from vista.stage1.resuming import joined
from vista.stage1.state import StateError, UserState

INT64 = st.integers(-(2**63), 2**63 - 1)


def made(seed: int = 0, length: int = 5) -> UserState:
    random = np.random.default_rng(seed)
    columns = {name: random.integers(0, 1000, length) for name in COLUMNS}
    return UserState(
        signature="ab" * 16,
        count=8,
        boundary=(-5, 1, -(2**63), 2**63 - 1, 4),
        parts={
            "seeds.memory": random.normal(size=(2, 2, 3, 3)).astype(np.float32),
            "items.key": np.array([-(2**63), 3, 2**63 - 1]),
            "items.mass": random.integers(0, 1 << 31, (3, 3)),
            "empty": np.zeros((3, 0), np.int64),
        },
        tail=Events.of([length], **columns),
    )


def same(a: UserState, b: UserState) -> bool:
    arrays = a.parts.keys() == b.parts.keys() and all(
        x.dtype == b.parts[name].dtype and np.array_equal(x, b.parts[name]) for name, x in a.parts.items()
    )
    tails = all(np.array_equal(a.tail.columns[n], b.tail.columns[n]) for n in COLUMNS)
    return arrays and tails and (a.signature, a.count, a.boundary) == (b.signature, b.count, b.boundary)


def test_bytes_give_the_state_back_exactly():
    for state in (made(), made(1, 0), UserState("s")):
        assert same(UserState.from_bytes(state.to_bytes()), state)


@given(st.lists(INT64, max_size=6))
def test_any_int64_in_the_tail_survives(values):
    column = np.array(values, np.int64)
    state = UserState("s", tail=Events.of([len(values)], item=column, time=column, request=column))
    assert same(UserState.from_bytes(state.to_bytes()), state)


@given(st.data())
def test_a_damaged_state_is_refused_whatever_byte_is_hit(data):
    raw = bytearray(made().to_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(StateError, match="vista summarize"):
        UserState.from_bytes(bytes(raw))


def test_a_truncated_state_and_another_version_are_refused():
    import msgpack
    import xxhash

    raw = made().to_bytes()
    for size in (0, 5, len(raw) - 1):
        with pytest.raises(StateError):
            UserState.from_bytes(raw[:size])
    for fields in ({"v": 3}, {"v": 2}, {"v": 1}, 7):
        body = msgpack.packb(fields)
        with pytest.raises(StateError):
            UserState.from_bytes(xxhash.xxh3_64_digest(body) + body)


def test_a_short_history_is_a_few_hundred_bytes():
    n = 20
    time = 1_700_000_000_000 + np.arange(n) * 1000
    tail = Events.of([n], item=np.arange(n) + 10**6, time=time, request=np.arange(n))
    assert len(UserState("ab" * 16, tail=tail).to_bytes()) < 350


def test_of_events_at_the_time_of_the_boundary_earlier_ones_are_late_and_the_folded_one_is_left_out():
    boundary = (1_000, 5, 50, 1, 0)

    def given(request, item):
        event = Events.of([1], item=[item], time=[1_000], request=[request], action=[1])
        events, late = joined(event, [UserState("ab" * 16, 4, boundary)])
        return len(events), late.tolist()

    assert given(5, 50) == (0, [False])  # the one that was folded in last
    assert given(5, 51) == (1, [False]) and given(6, 1) == (1, [False])
    assert given(5, 49)[1] == [True] and given(4, 99)[1] == [True]
