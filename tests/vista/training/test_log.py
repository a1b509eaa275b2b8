"""What a run tells of itself: its pace, and whether its loss still falls."""

import io

import numpy as np
from rich.console import Console

from vista.training.log import Curve, Pace


def test_a_run_tells_its_steps_a_second_and_the_time_left_now_and_then_where_there_is_no_terminal():
    now, told = [0.0], io.StringIO()
    with Pace(
        100, 0.5, None, every=30.0, clock=lambda: now[0], console=Console(file=told, width=200)
    ) as pace:
        for step in range(101, 141):
            now[0] += 2.0
            pace.update(step, 0.5 + (step - 100) / 400, 1.25)
    assert told.getvalue().splitlines() == [
        "train: step 115  loss 1.250  0.5 steps/s  6 min left",
        "train: step 130  loss 1.250  0.5 steps/s  6 min left",
    ]
    with Pace(0, 0.0, False, every=0.0, console=Console(file=told)) as pace:
        pace.update(1, 0.1, 1.0)
    assert len(told.getvalue().splitlines()) == 2


def test_a_loss_that_still_falls_is_told_and_one_at_rest_is_not(tmp_path):
    rng = np.random.default_rng(0)
    for name, slope, told in (("falls", 0.01, True), ("rests", 0.0, False)):
        with Curve(tmp_path / name, 0) as curve:
            for step in range(80):
                curve.add(step, 0.0, {"loss": 3 - slope * step + rng.normal(0, 0.05)})
        assert (curve.falling() is not None) == told
    assert Curve(tmp_path / "none", 0).falling() is None
