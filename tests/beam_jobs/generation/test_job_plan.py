"""A plan tells the truth about what a job then does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from small_worlds import START, all_events, histories

from beam_jobs.errors import OptionsError
from beam_jobs.generation import refresh, summarize
from beam_jobs.generation.bucket_task import BYTES_PER_EVENT
from beam_jobs.generation.plan import plan


def test_a_plan_of_summarize_counts_what_the_run_then_does(world):
    told = plan(world.summarize(), workers=2)
    done = summarize.run(world.summarize())
    assert told.job == "summarize"
    assert told.events == done.counts["events"]
    assert told.users == done.counts["users"]
    assert told.shards == done.counts["buckets"]
    with world.store() as store:
        assert told.record_bytes == store.manifest.schema.record_bytes
        assert told.written_bytes / 4 < store.manifest.bytes < told.written_bytes * 4
    assert told.minutes > 0 and told.events_per_second > 0 and told.user_seconds > 0
    assert plan(world.summarize(), workers=1).minutes > 0


def test_memory_grows_with_the_knob_alone(world):
    small, large = (
        plan(dataclasses.replace(world.summarize(), max_events_in_memory=n)).worker_memory_bytes
        for n in (10**5, 10**6)
    )
    assert large - small == 900_000 * BYTES_PER_EVENT


def test_a_plan_of_refresh_counts_the_added_events_alone(world):
    summarize.run(world.summarize())
    assert plan(world.refresh()).events == 0
    rng = np.random.default_rng(0)
    world.add(np.arange(5, dtype=np.int64) + 2**50, histories(rng, np.full(5, 9), start=START + 10**8))
    told = plan(world.refresh())
    done = refresh.run(world.refresh())
    assert (told.job, told.events, told.users) == ("refresh", 45, 5)
    assert (done.counts["events"], done.counts["users"]) == (45, 5)


def test_a_refresh_that_cannot_go_on_is_planned_in_full(world):
    told = plan(world.refresh())
    assert told.job == "summarize"
    assert "there is no store" in told.notes[0]


def test_users_are_counted_whatever_the_tail_and_however_many_files(world, monkeypatch):
    rng = np.random.default_rng(1)
    users = np.arange(2_000, dtype=np.int64)
    world.add(users, histories(rng, np.minimum(rng.zipf(1.5, 2_000), 3_000)))
    world.add(users[:500], histories(rng, np.ones(500, np.int64), start=START + 10**9))
    told = plan(world.summarize())
    there = len(all_events(world)[0])
    assert told.users == there and told.notes == ()
    # Of very large tables some buckets are counted: the hash makes the others like them.
    monkeypatch.setattr("beam_jobs.generation.plan.COUNTED_ROWS", 1)
    told = plan(world.summarize())
    assert abs(told.users - there) < 0.1 * there and "1 of 3 buckets" in told.notes[0]


def test_a_plan_tells_when_files_are_due_for_merging(small_world):
    for n in range(9):
        small_world.add(np.arange(9), histories(np.random.default_rng(n), np.full(9, 1), START + n * 10**8))
    assert "`vista compact tables` is due" in plan(small_world.summarize()).notes[0]


def test_fewer_than_one_worker_cannot_be_planned(world):
    with pytest.raises(OptionsError, match="--workers"):
        plan(world.summarize(), workers=0)


def test_a_plan_counts_who_would_be_left_out(small_world):
    day, now = 86_400_000, START + 100 * 86_400_000
    rng = np.random.default_rng(3)
    small_world.add(np.arange(6, 15), histories(rng, np.full(9, 4), start=START + 95 * day, span=day))
    asked = {"now_ms": now, "expire_after_ms": 30 * day}
    told = plan(small_world.summarize(**asked))
    done = summarize.run(small_world.summarize(**asked))
    assert (told.users, told.expired) == (15, 6) == (done.counts["users"], done.counts["expired"])
    later = {**asked, "now_ms": now + 26 * day}
    small_world.add(np.arange(6, 7), histories(rng, np.full(1, 4), start=now + 20 * day, span=day))
    told = plan(small_world.refresh(**later))
    assert (told.job, told.users, told.expired) == ("refresh", 1, 9)  # one of them has come back
    assert refresh.run(small_world.refresh(**later, gate=None)).counts["expired"] == 8
