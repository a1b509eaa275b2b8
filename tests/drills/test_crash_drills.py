"""Killed at any step, with readers looking on, the store shows one generation or the next, and recovers by itself.

Thousands of kills: ``python -m tools.drills.drill --kills 5000 --seed 1``.
"""

from __future__ import annotations

import pytest

from tools.drills import drill, race, storm


@pytest.mark.parametrize("seed", [1, 2])
def test_no_kill_shows_a_missing_shard_a_mixed_generation_or_a_wrong_value(seed):
    report = drill.run(110, seed, readers=1)
    print(drill.table(report))
    assert report.total == report.recovered == 110
    assert set(report.kills) >= {"full", "delta", "forget", "prune", "pull"}
    assert sum(len(steps) for steps in report.steps.values()) >= 70
    assert report.seen.lookups > 200 and report.verified >= 2


def test_no_power_cut_that_loses_unsynced_files_does_either():
    report = drill.run(60, 3, power=True)
    print(drill.table(report))
    assert report.total == report.recovered == 60
    assert sum(report.lost.values()) > 0


def test_of_two_publishers_at_once_none_is_lost_silently_and_nobody_comes_back_who_is_forgotten_meanwhile():
    report = race.run(80, 1, readers=1)
    print(report.as_dict())
    assert {pair for pair in report.races} == {f"{a} and {b}" for a, b in race.PAIRS}
    assert report.kills["first"] >= 20 and report.kills["second"] >= 8 and report.after_flip >= 3
    assert report.waited >= 20 and set(report.endings) == {"both", "one", "same", "forgot"}


def test_a_reader_never_sees_half_a_generation_while_generations_pour_in():
    report = storm.run(40, 4, readers=8, threads=2, min_lookups=10)
    print(report.as_dict())
    assert (
        sum(report.published.values()) >= 40 and report.pruned > 3
    )  # 10 or so; fewer where readers are slow
    assert report.slowest >= 10 and report.seen.moves > 20 and report.threads > 0
