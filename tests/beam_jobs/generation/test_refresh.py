"""Refresh, end to end: law 2 over every kind of change, and what happens when it cannot go on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_worlds import (
    CONFIG,
    FLOAT32,
    START,
    World,
    all_events,
    assert_close,
    broken_model,
    histories,
    save_bundle,
)

from beam_jobs.errors import BucketFailed, ExitCode, OptionsError, RunOptionsDiffer
from beam_jobs.generation import refresh, summarize
from beam_jobs.run.runner import local_args
from cache_store.errors import PublishConflict
from cache_store.store import Store
from vista.data.events import Events
from vista.model import VistaModel

LATER = START + 10**7


def assert_equals_full(world: World, store: str = "store", **more) -> None:
    """Law 2: the store holds what a full job over all events of the tables gives."""
    name = f"full-{len(list(world.path.iterdir()))}"
    summarize.run(world.summarize(store=name, run=f"{name}-run", **more))
    users, _ = all_events(world)
    with world.store(name) as wanted, world.store(store) as found:
        a, b = found.lookup(users), wanted.lookup(users)
        np.testing.assert_array_equal(a.status, b.status)
        assert_close(a.tokens, b.tokens)
        np.testing.assert_array_equal(a.event_count, b.event_count)
        np.testing.assert_array_equal(a.last_event_ms, b.last_event_ms)
        assert found.manifest.watermark_ms >= wanted.manifest.watermark_ms


def add(world: World, seed: int, users, mean: int = 6, start: int = LATER) -> World:
    rng = np.random.default_rng(seed)
    return world.add(users, histories(rng, rng.geometric(1 / mean, len(users)), start=start))


def test_law_2_new_events_late_events_copies_and_new_users_give_what_a_full_job_gives(world):
    summarize.run(world.summarize())
    users, events = all_events(world)
    add(world, 1, users[:20])
    add(world, 2, users[10:25], start=START)
    copies = events.select(np.arange(30, 40))
    world.add(users[30:40], copies)
    add(world, 3, np.arange(10, dtype=np.int64) + 2**50, mean=40)
    record = refresh.run(world.refresh())
    assert record.exit_code == ExitCode.DONE
    assert record.counts["users"] == record.counts["written"] == 25 + 10 + 10
    assert record.counts["new"] == 10 and record.counts["late"] > 0 and record.counts["resumed"] > 0
    with world.store() as store:
        assert (store.manifest.kind, store.manifest.parent) == ("delta", "00000001")
        assert store.manifest.records == 45
    assert_equals_full(world)


@settings(max_examples=4)
@given(
    kind=st.sampled_from(["int64", "string"]),
    window=st.sampled_from([30, 600]),
    rounds=st.lists(
        st.tuples(st.integers(0, 2**20), st.integers(1, 12), st.integers(0, 3), st.booleans()),
        min_size=1,
        max_size=3,
    ),
)
def test_law_2_holds_after_any_rounds_of_refresh(tmp_path_factory, kind, window, rounds):
    path = tmp_path_factory.mktemp("rounds")
    world = World(path, save_bundle(path / "model", VistaModel(CONFIG), user_kind=kind), kind=kind).create(2)
    pool = np.arange(30, dtype=np.int64) * 977 - 9
    if kind == "string":
        pool = np.array([f"user-{u}" for u in pool], object)
    add(world, 0, pool[:20], mean=30, start=START)
    options = {"max_events_in_memory": window}
    summarize.run(world.summarize(**options))
    for i, (seed, n, hours, large) in enumerate(rounds):
        rng = np.random.default_rng(seed)
        users = np.sort(rng.choice(pool, n, replace=False))
        add(world, seed, users, mean=60 if large else 3, start=START + hours * 4_000_000)
        refresh.run(world.refresh(run=f"refresh-{i}", **options))
    assert_equals_full(world, **options)


def test_a_refresh_is_the_same_in_every_mode(small_world):
    summarize.run(small_world.summarize())
    users, _ = all_events(small_world)
    add(small_world, 1, users[::2])
    add(small_world, 2, users[::3], start=START)
    digests = set()
    for mode, workers in (("in_memory", 1), ("multi_threading", 3), ("multi_processing", 2)):
        copy = World(small_world.path, small_world.bundle)
        name = f"store-{mode}"
        summarize.run(copy.summarize(store=name, run=f"run-{mode}", snapshot=first_snapshot(copy)))
        record = refresh.run(copy.refresh(store=name, run=f"refresh-{mode}"), local_args(mode, workers))
        assert record.counts["resumed"] > 0
        digests.add(record.digests["content"])
    assert len(digests) == 1


def first_snapshot(world: World) -> int:
    return world.tables.history.history()[0].snapshot_id


def test_without_new_files_nothing_is_published(world):
    summarize.run(world.summarize())
    record = refresh.run(world.refresh())
    assert (record.counts["users"], record.exit_code, record.generation) == (0, 0, "00000001")
    assert "nothing to do" in record.notes[0]
    assert len(Store(world.path / "store").generations()) == 1


def test_a_refresh_that_was_killed_at_its_renames_continues_to_the_same_digest(small_world, killed_at):
    world = small_world
    summarize.run(world.summarize())
    users, _ = all_events(world)
    add(world, 1, users[:4])
    outcomes = killed_at("refresh", world.refresh(), step=3)
    assert len(outcomes) > 5
    assert len({outcome["digest"] for outcome in outcomes}) == 1
    assert all(outcome["generations"] == 2 and outcome["leftovers"] == [] for outcome in outcomes), outcomes


def damage_state(world: World, user: int) -> None:
    """Flip one byte in the stored state of a user, as a bad disk would."""
    with world.store() as store:
        state = store.states(np.array([user]))[0]
        folder = store.layout.generation(store.manifest.generation)
    for path in folder.glob("state-*.mdb"):
        data = bytearray(path.read_bytes())
        at = data.find(state[8:])
        if at >= 0:
            data[at + len(state) // 2] ^= 0xFF
            path.chmod(0o644)
            path.write_bytes(data)
            return
    raise AssertionError("state not found")


def test_a_user_whose_stored_state_is_damaged_is_recomputed_from_its_history(world):
    summarize.run(world.summarize())
    users, events = all_events(world)
    user = int(users[np.argmax(events.lengths)])
    damage_state(world, user)
    add(world, 1, users[:30])
    add(world, 2, np.array([user]))
    record = refresh.run(world.refresh())
    assert record.counts["states_unreadable"] == 1
    assert record.exit_code == ExitCode.DONE
    assert_equals_full(world)


def test_law_8_a_user_that_fails_in_a_refresh_is_a_dead_letter_and_is_tried_again_by_the_next(tmp_path):
    world = World(tmp_path, save_bundle(tmp_path / "model", broken_model(10**9))).create()
    users = np.arange(20, dtype=np.int64)
    rng = np.random.default_rng(0)
    world.add(users, histories(rng, rng.geometric(1 / 30, len(users))))
    summarize.run(world.summarize())
    before = world.store().lookup(users[7:8]).tokens
    times = LATER + np.arange(3)
    world.add(users[7:8], Events.of([3], item=np.array([1, 10**9, 2]), time=times))
    add(world, 1, users[:5])
    record = refresh.run(world.refresh())
    assert record.exit_code == ExitCode.DEAD_LETTERS
    assert record.counts["users"] == record.counts["written"] + record.counts["dead_letters"] == 6
    letters = pq.read_table(Path(record.path) / "dead-letters.parquet")
    assert letters["user"].to_pylist() == ["7"]
    with world.store() as store:
        np.testing.assert_array_equal(store.lookup(users[7:8]).tokens, before)  # the parent's record serves
    # Nothing new, but the dead letter is owed: it is computed from its whole history, and fails again.
    again = refresh.run(world.refresh(run="again"))
    assert (again.counts["users"], again.counts["dead_letters"], again.counts["recomputed"]) == (1, 1, 1)
    assert world.store().manifest.generation == again.generation == "00000003"


def test_asked_for_users_are_recomputed_and_what_is_new_for_others_is_not_lost(world):
    summarize.run(world.summarize())
    users, _ = all_events(world)
    add(world, 1, users[:10])
    record = refresh.run(world.refresh(run="some", users=(int(users[3]), int(users[50]), 12345)))
    assert record.counts["written"] == record.counts["users"] == 2
    refresh.run(world.refresh(run="rest"))
    assert_equals_full(world)


def test_summaries_older_than_an_age_are_recomputed(world):
    summarize.run(world.summarize())
    users, _ = all_events(world)
    record = refresh.run(world.refresh(run="young", max_age_ms=1_000))
    assert record.counts["users"] == 0
    later = world.refresh(run="old", max_age_ms=1_000)
    record = refresh.run(dataclasses.replace(later, now_ms=later.now_ms + 1_001))
    assert record.counts["recomputed"] == record.counts["written"] == len(users)
    assert world.store().lookup(users).summarized_ms.min() == later.now_ms + 1_001


def test_an_earlier_snapshot_may_be_gone_on_from_and_a_later_one_is_refused(world):
    summarize.run(world.summarize())
    users, _ = all_events(world)
    first = world.tables.snapshot()
    add(world, 1, users[:5])
    second = world.tables.snapshot()
    refresh.run(world.refresh(run="refresh-1"))
    add(world, 2, users[3:9])
    with pytest.raises(OptionsError, match="left out"):
        add(world, 3, users[:1])
        refresh.run(world.refresh(run="refresh-2", since=world.tables.snapshot()))
    record = refresh.run(world.refresh(run="refresh-3", since=first))
    assert record.counts["users"] == 9 and second != first
    assert_equals_full(world)


@pytest.mark.parametrize("why", ["no store", "another model", "other codecs"])
def test_where_a_refresh_cannot_go_on_it_runs_in_full_and_says_why(world, tmp_path, why):
    options = world.refresh()
    if why != "no store":
        summarize.run(world.summarize())
    if why == "another model":
        other = save_bundle(tmp_path / "other", VistaModel(dataclasses.replace(CONFIG, seed=1)))
        options = dataclasses.replace(options, bundle=str(other))
    if why == "other codecs":
        options = dataclasses.replace(options, codecs={**FLOAT32, "seeds": "int8"})
    record = refresh.run(options)
    assert record.notes[0].startswith("full instead of delta: ")
    with world.store() as store:
        assert store.manifest.kind == "full"
        assert store.manifest.generation == record.generation
        assert (store.lookup(all_events(world)[0]).status == 0).all()


def test_a_refresh_loses_to_a_faster_publisher_and_changes_nothing(world):
    summarize.run(world.summarize())
    users, _ = all_events(world)
    add(world, 1, users[:10])
    options = world.refresh(attempts=1)
    # It is cut short after it chose its parent; meanwhile another job publishes.
    added = world.tables.bucket_files(since=first_snapshot(world))
    victim = Path(added[max(added)][0].path.removeprefix("file://"))
    whole = victim.read_bytes()
    victim.write_bytes(b"")
    with pytest.raises(BucketFailed):
        refresh.run(options)
    victim.write_bytes(whole)
    faster = summarize.run(world.summarize(run="faster"))
    with pytest.raises(PublishConflict, match="another publisher was faster"):
        refresh.run(options)
    assert world.store().manifest.generation == faster.generation
    with pytest.raises(RunOptionsDiffer):
        refresh.run(dataclasses.replace(options, max_age_ms=5))


def test_only_buckets_with_changes_hold_records_in_the_delta(world):
    summarize.run(world.summarize())
    users, _ = all_events(world)
    add(world, 1, users[:1])
    refresh.run(world.refresh())
    with world.store() as store:
        assert sorted(s.records for s in store.manifest.shards) == [0, 0, 1]


def test_following_publishes_a_delta_for_each_new_snapshot_and_compacts_a_deep_chain(small_world):
    world = small_world
    users, _ = all_events(world)
    looks = iter([[], users[:3], [], users[2:5], users[:1], np.array([999])])

    def wait(seconds: float) -> bool:
        assert seconds == 60
        new = next(looks, None)
        if new is not None and len(new):
            add(world, int(new[0]) + 1, new, start=LATER + int(new[-1]))
        return new is not None

    options = world.refresh(run="follow", max_depth=2)
    records = list(refresh.follow(options, every_s=60, wait=wait))
    assert [r.counts["users"] for r in records] == [12, 3, 3, 1, 1]
    assert [Path(r.path).name for r in records] == [f"{i:06d}" for i in range(1, 6)]
    assert records[0].notes[0].startswith("full instead of delta")
    assert records[3].notes == ["folded generations up to 00000003 into 00000004"]
    with world.store() as store:
        assert store.manifest.depth == 2
    assert_equals_full(world)


def test_following_first_continues_a_refresh_that_was_cut_short(small_world):
    world = small_world
    summarize.run(world.summarize())
    users, _ = all_events(world)
    add(world, 1, users[:3])
    options = world.refresh(run="follow")
    added = world.tables.bucket_files(since=first_snapshot(world))
    victim = Path(added[max(added)][0].path.removeprefix("file://"))
    whole = victim.read_bytes()
    victim.write_bytes(b"")
    with pytest.raises(BucketFailed):
        list(refresh.follow(options, every_s=1, wait=lambda _: False))
    victim.write_bytes(whole)
    records = list(refresh.follow(options, every_s=1, wait=lambda _: False))
    assert [Path(r.path).name for r in records] == ["000001"]
    assert_equals_full(world)


def test_a_refresh_keeps_the_codecs_of_the_live_generation_unless_told_otherwise(small_world):
    world = small_world
    summarize.run(world.summarize(codecs={"seeds": "int8", "slots": "float32"}))
    add(world, 1, all_events(world)[0][:3])
    record = refresh.run(world.refresh(codecs={}))
    assert record.notes == [] and record.counts["resumed"] == 3
    with world.store() as store:
        assert [group.codec for group in store.manifest.schema.groups] == ["int8", "float32"]


def test_the_record_of_a_refresh_names_nobody_and_still_tells_other_users_apart(small_world):
    options = small_world.refresh(users=(3, 7))
    assert options.identity()["users"] == small_world.refresh(users=(7, 3)).identity()["users"]
    summarize.run(small_world.summarize())
    refresh.run(options)
    assert '"users": [' not in (Path(options.run_dir) / "run.json").read_text()
    with pytest.raises(RunOptionsDiffer, match="users: the run has '2 users, "):
        refresh.run(small_world.refresh(users=(3, 8)))
