"""A few turns of the soak; the hour is run by command (docs/faults.md)."""

from tools.drills import soak


def test_a_home_that_is_fed_followed_and_pruned_serves_right_values_and_keeps_no_leftovers():
    done = soak.run(turns=5, seed=2, readers=2, turn_s=0.0, told=lambda _: None)
    assert done.turns == 5 and done.lookups > 0 and done.forgotten == 1
    assert done.measured["snapshots"][-1] <= 4 and done.measured["metadata_files"][-1] < 120
