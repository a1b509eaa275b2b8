"""A few turns of the soak; the hour is run by command (docs/faults.md)."""

from tools.drills import soak


def test_a_home_that_is_fed_and_pruned_serves_right_values_and_keeps_no_leftovers():
    done = soak.run(turns=2, seed=2, readers=1, told=lambda _: None)
    assert done.turns == 2 and done.lookups > 0
    assert done.measured["avro"][-1] < 60 and done.measured["runs"][-1] <= 40
