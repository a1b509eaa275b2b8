"""Slates: nothing of their own future, nothing lost, negatives that were not engaged with."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vista.data.events import Events
from vista.errors import ConfigError
from vista.training.batches import collate, visits
from vista.training.examples import ExampleConfig, PopularItems, build_slates, events_before, requests


def histories(seed: int, users: int, most: int = 40, items: int = 12, named: float = 0.7) -> Events:
    """Random histories in contract order: shared timestamps, requests of several events, some without an
    id."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, most, users)
    n = int(lengths.sum())
    request = rng.integers(1, 15, n)
    events = Events.of(
        lengths,
        item=rng.integers(0, items, n),
        action=rng.integers(1, 8, n),
        surface=rng.integers(0, 3, n),
        # Events of one request spread over a few milliseconds, as click follows view.
        time=request * 10 + rng.integers(0, 4, n) * rng.integers(0, 2, n),
        request=np.where(rng.random(n) < named, request, 0),
    )
    return events.sorted()


def popular(items: int = 12) -> PopularItems:
    return PopularItems(
        np.arange(items * 3) % items + 0, np.arange(items * 3) // items, np.arange(items * 3) + 1
    )


def shown(events: Events, seed: int) -> Events:
    """Impressions of the same users: every named event, plus items that were not engaged with."""
    rng = np.random.default_rng(seed)
    parts = []
    for u in range(events.users):
        rows = events.user(u)
        rows = rows.slices(np.array([0]), np.array([len(rows)]))
        keep = rows.request != 0
        extra = rng.integers(0, 20, keep.sum())
        parts.append(
            Events.of(
                [2 * keep.sum()],
                item=np.concatenate([rows.item[keep], extra + 100]),
                action=np.concatenate([rows.action[keep], np.zeros(keep.sum())]),
                surface=np.concatenate([rows.surface[keep]] * 2),
                time=np.concatenate([rows.time[keep]] * 2) - rng.integers(0, 3),
                request=np.concatenate([rows.request[keep]] * 2),
            )
        )
    return Events.concat(parts).sorted()


@given(
    st.integers(0, 10_000),
    st.integers(0, 40),
    st.integers(0, 6),
    st.integers(0, 9),
    st.booleans(),
    st.integers(1, 9),
)
def test_law_10_no_slate_sees_its_own_future_nor_its_own_request(
    seed, lag_ms, lag_events, jitter, seen, per_visit
):
    events = histories(seed, users=5)
    config = ExampleConfig(
        lag_ms=lag_ms,
        lag_events=lag_events,
        lag_jitter_events=jitter,
        lag_jitter_ms=jitter % 3 * 20,
        slates_per_visit=per_visit,
        max_history=7,
        recent_pool=6,
        keep_unengaged=1.0,
    )
    impressions = shown(events, seed) if seen else None
    slates = build_slates(events, config, np.random.default_rng(seed), popular(), impressions)
    source = impressions if impressions is not None else events
    grouped = requests(source)
    began = {(u, t): r for u, t, r in zip(grouped.user, grouped.time, grouped.request, strict=True)}
    for k in range(len(slates)):
        own = events.user(int(slates.user[k]))
        t, h, c = slates.time[k], slates.history[k], slates.cut[k]
        assert (own.time[:h] < t).all() and (own.time[h:] >= t).all()
        assert (own.time[:c] < t - lag_ms).all()
        assert c <= max(h - lag_events, 0)
        mine = began.get((slates.user[k], t), 0)
        if mine:
            assert not (own.request[:h] == mine).any()
    # ... and what reaches the model are exactly those rows.
    group = visits(events, np.arange(events.users), slates, config, recent=4)
    assert sum(len(v.slates) for v in group) == len(slates)
    if not group:
        return
    batch = collate(group, recent=4, pool=6)
    assert (batch.now_ms == slates.time).all()
    for k in range(len(batch)):
        window = batch.events.user(int(batch.user_of[k]))
        own = events.user(int(slates.user[k]))
        h, c = slates.history[k], slates.cut[k]
        summary = window.rows(0, int(batch.cut[k]))
        kept = len(summary)
        assert kept >= min(c, 7) and (summary.item == own.item[c - kept : c]).all()
        assert batch.last_event_ms[k] == (own.time[c - 1] if kept else slates.time[k])
        recent = batch.recent.user(k)
        assert len(recent) == min(h, 4)
        assert set(recent.item) <= set(own.item[max(h - 6, 0) : h])
        if h:
            assert recent.item[-1] == own.item[h - 1]


@given(st.integers(0, 10_000))
def test_a_slate_holds_what_its_request_engaged_with_and_negatives_it_did_not(seed):
    events = histories(seed, users=4, items=30)
    config = ExampleConfig(min_history=0, max_positives=3, negatives=5)
    slates = build_slates(events, config, np.random.default_rng(seed), popular(30))
    grouped = requests(events)
    assert len(slates) == len(grouped.user)
    for k in range(len(slates)):
        a, b = slates.offsets[k], slates.offsets[k + 1]
        rows = grouped.rows[grouped.offsets[k] : grouped.offsets[k + 1]]
        action = {}
        for r in rows:
            action[events.item[r]] = action.get(events.item[r], 0) | events.action[r]
        positive = slates.action[a:b] != 0
        assert positive.sum() == min(len(action), 3)
        assert all(action[i] == m for i, m in zip(slates.item[a:b], slates.action[a:b], strict=True) if m)
        assert not set(slates.item[a:b][~positive]) & set(action)
        assert len(set(slates.item[a:b])) == b - a
        assert (slates.shown[a:b] == positive).all()


@given(st.integers(0, 10_000), st.integers(1, 60))
def test_slates_after_a_pause_are_those_that_begin_a_visit(seed, pause):
    events = histories(seed, users=4)
    every = ExampleConfig(min_history=0, negatives=2)
    asked = dataclasses.replace(every, min_pause_ms=pause)
    whole = build_slates(events, every, np.random.default_rng(seed), popular())
    slates = build_slates(events, asked, np.random.default_rng(seed), popular())

    def pauses(user: int, time: int) -> bool:
        before = events.user(user).time
        before = before[before < time]
        return not len(before) or time - before[-1] >= pause

    starts = [(u, t) for u, t in zip(whole.user, whole.time, strict=True) if pauses(int(u), int(t))]
    assert list(zip(slates.user, slates.time, strict=True)) == starts


def test_sampled_negatives_follow_popularity_within_the_surface():
    items = PopularItems(np.array([1, 2, 3, 4]), np.array([0, 0, 1, 1]), np.array([1, 3, 5, 0]))
    rng = np.random.default_rng(0)
    drawn = items.draw(np.zeros(20_000, int), rng)
    assert set(drawn) == {1, 2} and abs((drawn == 2).mean() - 0.75) < 0.02
    assert set(items.draw(np.ones(100, int), rng)) == {3}
    assert set(items.draw(np.full(200, 9), rng)) == {1, 2, 3}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=20))
def test_the_rate_of_a_draw_is_its_log_probability_less_the_average_of_its_surface(rows):
    rows = sorted({(item, surface): count for item, surface, count in rows}.items())
    item, surface = (np.array([key[i] for key, _ in rows]) * 3 for i in (0, 1))
    count = np.array([c for _, c in rows])
    for power in (1.0, 0.5, 0.0):
        items = PopularItems(item, surface, count, power)
        for s in set(surface[count > 0]):
            there = (surface == s) & (count > 0)
            mass = count[there] ** power
            q = mass / mass.sum()
            average = (q * np.log(q)).sum()
            found = items.log_rate(item[there], np.full(there.sum(), s))
            np.testing.assert_allclose(found, np.log(q) - average, rtol=1e-5, atol=1e-6)
            never = items.log_rate(np.array([1_000]), np.array([s]))  # as if seen there once
            np.testing.assert_allclose(never, np.log(1 / mass.sum()) - average, rtol=1e-5, atol=1e-6)
    if (count > 0).any():
        assert items.log_rate(item, np.full(len(item), 99)).tolist() == [0.0] * len(item)


@given(st.integers(0, 2**16))
def test_drawn_candidates_carry_the_rate_of_their_draw_and_logged_ones_none(seed):
    events, items = histories(seed, 4), popular()
    slates = build_slates(events, ExampleConfig(max_positives=99), np.random.default_rng(seed), items)
    group = np.repeat(np.arange(len(slates)), np.diff(slates.offsets))
    for k in range(len(slates)):
        own = events.user(int(slates.user[k]))
        rows = group == k
        surfaces = set(own.surface[np.isin(own.item, slates.item[rows & slates.shown])].tolist())
        allowed = np.stack(
            [items.log_rate(slates.item[rows], np.full(rows.sum(), s)) for s in sorted(surfaces)]
        )
        assert (allowed == slates.log_rate[rows]).any(0).all()
    logged = build_slates(
        events, ExampleConfig(keep_unengaged=1), np.random.default_rng(seed), impressions=shown(events, seed)
    )
    assert not logged.log_rate.any() and logged.log_rate.shape == logged.item.shape


def test_impression_slates_without_engagement_are_thinned_and_the_others_all_stay():
    n = 2_000
    impressions = Events.of(
        [n],
        item=np.arange(n),
        action=np.arange(n) % 2,
        surface=np.zeros(n),
        time=np.arange(n) + 10,
        request=np.arange(n) + 1,
    )
    events = Events.of([1], item=[5], time=[0])
    slates = build_slates(
        events, ExampleConfig(keep_unengaged=0.1), np.random.default_rng(0), impressions=impressions
    )
    engaged = slates.action != 0
    assert engaged.sum() == n // 2
    assert 60 < (~engaged).sum() < 140
    assert slates.shown.all()


def test_a_request_logged_later_than_its_engagement_still_does_not_see_itself():
    events = Events.of([2], item=[1, 2], time=[100, 200], request=[7, 8])
    impressions = Events.of([2], item=[2, 3], action=[1, 0], time=[205, 205], request=[8, 8])
    slates = build_slates(
        events, ExampleConfig(lag_jitter_events=0), np.random.default_rng(0), impressions=impressions
    )
    assert slates.time.tolist() == [200] and slates.history.tolist() == [1]


@given(st.integers(0, 1000))
def test_events_before_equals_a_count(seed):
    events = histories(seed, users=3)
    rng = np.random.default_rng(seed)
    user, time = rng.integers(0, 3, 20), rng.integers(-5, 170, 20)
    expected = [(events.user(int(u)).time < t).sum() for u, t in zip(user, time, strict=True)]
    assert events_before(events, user, time).tolist() == expected


def test_the_same_seed_gives_the_same_slates():
    events = histories(3, users=5)
    a, b = (build_slates(events, ExampleConfig(), np.random.default_rng(1), popular()) for _ in range(2))
    assert all((getattr(a, n) == getattr(b, n)).all() for n in a.__dataclass_fields__)


def test_empty_histories_give_no_slates():
    slates = build_slates(Events.empty(3), ExampleConfig(), np.random.default_rng(0), popular())
    assert len(slates) == 0 and slates.offsets.tolist() == [0]
    assert visits(Events.empty(3), np.arange(3), slates, ExampleConfig(), 4) == []


def test_knobs_out_of_range_are_refused_by_name():
    with pytest.raises(ConfigError, match="examples.max_history"):
        ExampleConfig(max_history=0)
    with pytest.raises(ConfigError, match="examples.keep_unengaged"):
        ExampleConfig(keep_unengaged=1.5)
