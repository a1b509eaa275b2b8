"""Thirty turns of the soak, a minute or so; the hour is run by command (docs/faults.md)."""

import pytest

from tools.drills import soak

BOUNDS = {"files": 400, "metadata_files": 200, "snapshots": 12, "run_files": 400, "reader_open_files": 40,
          "reader_mappings": 700, "follower_open_files": 60}  # fmt: skip
"""Of any turn, twice what the hour shows: what leaks passes them."""


@pytest.mark.slow
def test_a_home_that_is_fed_followed_and_pruned_serves_right_values_and_keeps_no_leftovers():
    done = soak.run(turns=30, seed=2, readers=6, turn_s=0.0, told=lambda _: None)
    assert done.turns == 30 and done.lookups > 0 and done.forgotten >= 3
    assert done.deaths["reader"] >= 2 and done.deaths["follower"] >= 1
    most = {name: max(done.measured[name]) for name in BOUNDS}
    assert all(most[name] <= BOUNDS[name] for name in BOUNDS), most
    late = done.measured["bytes"][-5:]
    assert max(late) < 4_000_000, late
