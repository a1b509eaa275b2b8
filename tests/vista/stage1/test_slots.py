from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vista.config import ModelConfig, SlotConfig, TokenConfig
from vista.data.events import Events
from vista.errors import DataError
from vista.stage1.slots import SlotMemory, recency

DAY = 86_400_000
CONFIG = ModelConfig(
    width=16,
    tokens=TokenConfig(items=0),
    slots=SlotConfig(
        rows=2, buckets=37, clusters=5, half_lives_days=(float("inf"), 10.0), half_lives_events=(8.0,)
    ),
)


def histories(lengths: list[int], seed: int, days: int = 400) -> Events:
    random = np.random.default_rng(seed)
    n = int(np.sum(lengths))
    return Events.of(
        lengths,
        item=random.integers(0, 60, n),
        time=random.integers(-days * DAY, days * DAY, n) // DAY * DAY,  # many equal times, some before 1970
        request=random.integers(0, 9, n),
    ).sorted()


def by_definition(memory: SlotMemory, history: Events) -> np.ndarray:
    """Masses of one history, event by event in float64."""
    mass = np.zeros((memory.total, memory.horizons))
    n = len(history)
    keys = memory.keys(torch.from_numpy(history.item)).numpy()
    for i in range(n):
        days = (int(history.time[-1]) - int(history.time[i])) / DAY
        for key in keys[i]:
            mass[key] += [1.0, 2.0 ** (-days / 10.0), 2.0 ** (-(n - 1 - i) / 8.0)]
    return mass


@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(0, 99))
def test_masses_are_the_decayed_counts_of_the_definition(lengths, seed):
    memory, events = SlotMemory(CONFIG), histories(lengths, seed)
    state = memory.update(memory.empty(len(lengths)), events)
    assert state.mass.dtype == np.float32
    for u in range(len(lengths)):
        np.testing.assert_allclose(state.mass[u], by_definition(memory, events.user(u)), rtol=1e-5, atol=1e-7)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.integers(0, 99), st.floats(0, 1))
def test_any_split_updated_or_merged_gives_the_same_masses(lengths, seed, share):
    memory, events = SlotMemory(CONFIG), histories(lengths, seed)
    whole = memory.update(memory.empty(len(lengths)), events)
    cut = events.offsets[:-1] + (events.lengths * share).astype(np.int64)
    older = events.slices(events.offsets[:-1], cut)
    newer = events.slices(cut, events.offsets[1:])
    first = memory.update(memory.empty(len(lengths)), older)
    second = memory.update(memory.empty(len(lengths)), newer)
    for state in (memory.update(first, newer), memory.merge(first, second)):
        np.testing.assert_allclose(state.mass, whole.mass, rtol=1e-5, atol=1e-7)
        assert (state.count == whole.count).all()
        assert (state.last_ms == whole.last_ms)[whole.count > 0].all()


def test_time_horizons_do_not_depend_on_order_within_a_timestamp():
    memory, events = SlotMemory(CONFIG), histories([40], 3, days=3)
    index = np.lexsort([np.random.default_rng(0).random(40), events.time])
    other = Events.of([40], **{name: column[index] for name, column in events.columns.items()})
    a, b = (memory.update(memory.empty(1), e).mass[..., :2] for e in (events, other))
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_candidate_reads_its_own_buckets_aged_to_now():
    memory, events = SlotMemory(CONFIG), histories([25, 0, 9], 4)
    memory.set_clusters(np.arange(60), np.arange(60) % 5)
    state = memory.update(memory.empty(3), events)
    slots = torch.from_numpy(memory.serve(state))
    assert slots.shape == (3, memory.tokens, 16)
    item, user_of = torch.tensor([3, 7, 3, 59]), torch.tensor([0, 2, 1, 0])
    found = memory.read(slots, torch.tensor([20 * DAY, 0, 10 * DAY]), user_of, item)
    assert found.shape == (4, memory.features)
    for b in range(4):
        u = int(user_of[b])
        mass = torch.from_numpy(state.mass[u])[memory.keys(item[b])]
        age = torch.tensor([1.0, {0: 0.25, 1: 1.0, 2: 0.5}[u], 1.0])  # half-life of 10 days
        torch.testing.assert_close(found[b].view(3, 3), mass * age)


def test_decades_of_milliseconds_lose_no_precision():
    memory = SlotMemory(CONFIG)
    base = 2_000_000_000_000
    for offset in (0, base, -base):
        events = Events.of([3], item=np.array([1, 1, 1]), time=np.array([0, DAY, 30 * 365 * DAY]) + offset)
        mass = memory.update(memory.empty(1), events).mass[0, memory.keys(torch.tensor(1))[0]]
        np.testing.assert_allclose(mass, [3.0, 1.0, 1.0 + 2 ** (-1 / 8) + 2 ** (-2 / 8)], rtol=1e-6)


def test_an_unknown_item_has_a_cluster_of_its_own_choosing_and_keeps_it():
    memory = SlotMemory(CONFIG)
    before = memory.keys(torch.tensor([1000, 1]))
    memory.set_clusters(np.array([1]), np.array([4]))
    after = memory.keys(torch.tensor([1000, 1]))
    assert torch.equal(before[0], after[0])
    assert after[1, 2] == 2 * 37 + 4
    assert torch.equal(before[:, :2], after[:, :2])


def test_numpy_and_torch_agree_on_every_key():
    memory = SlotMemory(CONFIG)
    item = np.concatenate([np.arange(-50, 50), np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 500)])
    memory.set_clusters(item[::2], np.arange(len(item[::2])) % 5)
    assert (np.stack(memory._keys_numpy(item), -1) == memory.keys(torch.from_numpy(item)).numpy()).all()


def test_clusters_travel_with_the_weights():
    memory, other = SlotMemory(CONFIG), SlotMemory(CONFIG)
    memory.set_clusters(np.arange(60), np.arange(60) % 5)
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.keys(torch.arange(80)), memory.keys(torch.arange(80)))


def test_a_cluster_out_of_range_is_refused():
    with pytest.raises(DataError, match="0 to 4"):
        SlotMemory(CONFIG).set_clusters(np.array([1]), np.array([5]))


@given(st.floats(0, 30), st.floats(0.01, 1_000))
def test_recency_falls_from_one_to_zero_in_twelve_half_lives_whatever_the_count(lives, count):
    found = recency(torch.tensor([[count, count * 2.0**-lives], [0.0, 0.0]], dtype=torch.float64))
    assert found[0, 0] == pytest.approx(max(0.0, 1 - lives / 12), abs=1e-6)
    assert found[1, 0] == 0.0
