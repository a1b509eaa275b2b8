"""`--expire-after`: who has had no event for so long is left out, counted, and whole again with the next event."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_worlds import CONFIG, START, World, all_events, assert_close, histories, save_bundle

from beam_jobs.errors import ExitCode, OptionsError, RunOptionsDiffer
from beam_jobs.generation import refresh, summarize
from beam_jobs.generation.gate import Bounds
from cache_store import Status
from cache_store.store import Store
from vista.model import VistaModel

DAY = 86_400_000
NOW = START + 100 * DAY


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return save_bundle(tmp_path_factory.mktemp("bundle") / "model", VistaModel(CONFIG).eval())


@pytest.fixture(scope="module")
def text_bundle(tmp_path_factory):
    return save_bundle(tmp_path_factory.mktemp("bundle") / "model", VistaModel(CONFIG).eval(), "string")


def add(world: World, seed: int, users, day: int, mean: int = 8, days: int = 1) -> World:
    """Events of ``users`` from a day on."""
    rng = np.random.default_rng(seed)
    lengths = rng.geometric(1 / mean, len(users))
    return world.add(users, histories(rng, lengths, start=START + day * DAY, span=days * DAY))


def truth(world: World, cutoff: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All users of the tables, the times of their last events, and who stays."""
    last: dict = {}
    users, events = all_events(world)
    for k, user in enumerate(users.tolist()):
        row = events.columns["time"][events.offsets[k] : events.offsets[k + 1]]
        last[user] = max(last.get(user, 0), int(row.max(initial=0)))
    ids = np.array(list(last), users.dtype)
    times = np.array(list(last.values()))
    return ids, times, times >= cutoff


def assert_is_the_full_one(world: World, record, name: str, cutoff: int) -> None:
    """The store serves those who had an event since, as a full job over everything has them, and nobody else."""
    summarize.run(world.summarize(store=f"all-{name}", run=f"all-{name}-run", now_ms=NOW))
    users, _, stays = truth(world, cutoff)
    with world.store() as found, world.store(f"all-{name}") as wanted:
        a, b = found.lookup(users), wanted.lookup(users)
        assert (a.status == np.where(stays, Status.FRESH, Status.MISSING)).all()
        assert_close(a.tokens[stays], b.tokens[stays])
        np.testing.assert_array_equal(a.event_count[stays], b.event_count[stays])
        listed = [u for bucket in range(found.format.num_shards) for u in found.users(bucket).tolist()]
        assert set(listed) == set(users[stays].tolist())
        m = found.manifest
    counts = record.counts
    assert counts["users"] == counts["written"] + counts["expired"] + counts["dead_letters"]
    assert m.expected == m.records + m.tombstones + m.dead_letters
    assert (m.records, m.tombstones) == (counts["written"], counts["tombstones"])


def test_a_full_generation_leaves_out_who_was_silent_and_tells_how_many(tmp_path, bundle):
    world = World(tmp_path, bundle).create()
    add(world, 1, np.arange(0, 40), day=1)
    add(world, 2, np.arange(30, 60), day=80)
    record = summarize.run(world.summarize(now_ms=NOW, expire_after_ms=30 * DAY, max_events_in_memory=40))
    assert record.exit_code == ExitCode.DONE
    assert record.counts["users"] == 60 and record.counts["expired"] == 30 and record.counts["written"] == 30
    assert any("30 users" in note and "2020-11-22" in note for note in record.notes)
    assert_is_the_full_one(world, record, "full", NOW - 30 * DAY)
    with world.store() as store:
        assert store.manifest.expired_before_ms == NOW - 30 * DAY
        assert Store.open(tmp_path / "store").manifest.text() == store.manifest.text()


@pytest.mark.parametrize("kind", ["int64", "string"])
def test_a_refresh_takes_out_who_fell_silent_and_brings_back_who_returns_whole(
    tmp_path, bundle, text_bundle, kind
):
    world = World(tmp_path, bundle if kind == "int64" else text_bundle, kind).create()
    ids = np.arange(60) * 3 - 60
    users = ids if kind == "int64" else np.array([f"user {i} é" for i in range(60)], object)
    add(world, 1, users[:50], day=1, days=60)
    summarize.run(world.summarize(now_ms=START + 62 * DAY, expire_after_ms=30 * DAY))
    add(world, 2, users[:20], day=70)
    add(world, 3, users[50:55], day=75)
    record = refresh.run(world.refresh(run="r1", now_ms=NOW - 5 * DAY, expire_after_ms=30 * DAY))
    assert record.counts["tombstones"] > 0
    assert_is_the_full_one(world, record, "1", NOW - 35 * DAY)
    add(world, 4, users[30:45], day=97)  # those who were gone, and those who never were
    record = refresh.run(world.refresh(run="r2", now_ms=NOW, expire_after_ms=30 * DAY))
    assert_is_the_full_one(world, record, "2", NOW - 30 * DAY)
    with world.store() as store:
        store.compact()
        assert store.manifest.expired_before_ms == NOW - 30 * DAY and not store.manifest.tombstones
    add(world, 5, users[45:50], day=98)  # a refresh without the option still knows that some were left out
    refresh.run(world.refresh(run="r3", now_ms=NOW))
    assert_is_the_same_for(world, users[45:50])


def assert_is_the_same_for(world: World, users) -> None:
    summarize.run(world.summarize(store="all-again", run="all-again-run", now_ms=NOW))
    with world.store() as found, world.store("all-again") as wanted:
        a, b = found.lookup(users), wanted.lookup(users)
        np.testing.assert_array_equal(a.event_count, b.event_count)
        assert_close(a.tokens, b.tokens)


@settings(max_examples=5)
@given(
    window=st.sampled_from([25, 600]),
    rounds=st.lists(
        st.tuples(st.integers(0, 2**20), st.integers(1, 12), st.integers(1, 95), st.integers(5, 80)),
        min_size=1, max_size=3,
    ),
)  # fmt: skip
def test_any_refreshes_with_expiry_give_what_a_full_job_gives(tmp_path_factory, bundle, window, rounds):
    world = World(tmp_path_factory.mktemp("world"), bundle).create(2)
    add(world, 0, np.arange(25), day=1, days=95)
    summarize.run(world.summarize(now_ms=NOW, expire_after_ms=60 * DAY, max_events_in_memory=window))
    for k, (seed, n, day, days) in enumerate(rounds):
        users = np.unique(np.random.default_rng(seed).integers(0, 40, n))
        add(world, seed, users, day=day, mean=12)
        # never more days than before: who is gone for good is not looked for
        record = refresh.run(
            world.refresh(run=f"r{k}", now_ms=NOW, expire_after_ms=days * DAY, max_events_in_memory=window)
        )
        users, times, _ = truth(world, 0)
        with world.store() as store:
            found = store.lookup(users)
            served = found.status == Status.FRESH
            assert (times[served] >= NOW - days * DAY).all()
            touched = served & (found.last_event_ms == times)
            assert touched[served].all()  # nobody is served with part of a history
        counts = record.counts
        assert counts["users"] == counts["written"] + counts.get("expired", 0) + counts["dead_letters"]


def test_a_refresh_in_which_nothing_is_new_still_takes_out_who_is_silent_now(tmp_path, bundle):
    world = World(tmp_path, bundle).create()
    add(world, 1, np.arange(10), day=1)
    add(world, 2, np.arange(10, 20), day=80)
    summarize.run(world.summarize(now_ms=NOW))
    record = refresh.run(world.refresh(now_ms=NOW, expire_after_ms=50 * DAY))
    assert record.counts["tombstones"] == record.counts["expired"] == record.counts["users"] == 10
    assert_is_the_full_one(world, record, "x", NOW - 50 * DAY)
    again = refresh.run(world.refresh(run="again", now_ms=NOW, expire_after_ms=50 * DAY))
    assert again.generation == record.generation and any("nothing to do" in note for note in again.notes)


def test_the_gate_stops_a_refresh_that_takes_out_more_than_its_bound(tmp_path, bundle):
    world = World(tmp_path, bundle).create()
    add(world, 1, np.arange(10), day=1)
    add(world, 2, np.arange(10, 20), day=80)
    first = summarize.run(world.summarize(now_ms=NOW))
    bounds = Bounds(max_gone=0.1, min_rms=0.0)
    record = refresh.run(world.refresh(now_ms=NOW, expire_after_ms=50 * DAY, gate=bounds))
    assert record.exit_code == ExitCode.NOT_PUBLISHED
    assert any("left out 10 users" in note for note in record.notes)
    assert any("gone: expected" in note for note in record.notes)
    with world.store() as store:
        assert store.manifest.generation == first.generation


def test_where_everybody_would_be_left_out_nothing_is_published(tmp_path, bundle):
    world = World(tmp_path, bundle).create()
    add(world, 1, np.arange(10), day=1)
    with pytest.raises(OptionsError, match="all 10 users"):
        summarize.run(world.summarize(now_ms=NOW, expire_after_ms=DAY))
    with pytest.raises(OptionsError, match="expire-after"):
        world.summarize(expire_after_ms=0)
    summarize.run(world.summarize(run="other", now_ms=NOW))
    with pytest.raises(RunOptionsDiffer):
        summarize.run(world.summarize(run="other", now_ms=NOW, expire_after_ms=DAY))
