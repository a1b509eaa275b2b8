"""A small part of ``vista drill logs``: every row of a log is kept or set aside, or the file is refused."""

from __future__ import annotations

from tools.drills.logs import run


def test_every_row_of_any_log_is_accounted_for():
    found = run(logs=120, seed=1, whole_every=0)
    assert not found["faults"] and found["logs"] >= 120 and found["outcomes"]["kept and set aside"] > 20
