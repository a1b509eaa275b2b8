"""Does it pay on my data: the four contexts on own tables, and words that say what they say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tools.bench.harness import Figure
from tools.studies import pays
from tools.studies.protocol import from_columns
from tools.studies.quality import Runs
from vista.errors import DataError


def figures(full: tuple, record: tuple, raw: tuple) -> dict[str, Figure]:
    sides = {"full": full, "record": record, "raw": raw}
    return {
        f"gain_all_requests_{name}": Figure(v, "mrr", low, high) for name, (v, low, high) in sides.items()
    }


@pytest.mark.parametrize(
    ("full", "record", "raw", "words"),
    [
        ((0.001, -0.01, 0.01), (0.002, -0.01, 0.01), (0.0, -0.01, 0.01), "nothing to gain"),
        ((0.09, 0.07, 0.11), (0.08, 0.06, 0.1), (0.03, 0.01, 0.05), "raw events of the same bytes gain +0.030"),
        ((0.09, 0.07, 0.11), (0.05, 0.03, 0.07), (0.08, 0.06, 0.1), "so store those"),
        ((0.09, 0.07, 0.11), (0.01, -0.01, 0.03), (0.0, -0.01, 0.01), "does not show that it gets it"),
    ],
)  # fmt: skip
def test_the_verdict_says_what_there_is_to_gain_and_who_gets_it(full, record, raw, words):
    assert words in pays.verdict(figures(full, record, raw), 8_000)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    rng = np.random.default_rng(0)
    users, each = 8, 200
    user = np.repeat(np.arange(users), each)
    zeros = np.zeros(users * each, np.int64)
    columns = {"item": user * 20 + rng.integers(0, 20, users * each), "action": zeros + 1, "surface": zeros,
               "time": np.tile(np.arange(each) * 60_000, users), "request": zeros}  # fmt: skip
    data = from_columns("own", user, columns, ("a",), 0.2)
    return Runs(data, tmp_path_factory.mktemp("pays"), 2, 16, 64, 60, 32)


def test_four_contexts_answer_by_last_touch_and_by_length_on_one_screen(runs, tmp_path):
    runs.variants = pays.arms(runs, tmp_path, 64)
    assert runs.variants["raw"].options["events"] == 64  # the record is larger than all there is
    for name in pays.ARMS:
        runs.run(runs.variants[name], 0)
    result = pays._result(runs, 1, 1.0)
    masks = pays.slices(runs)
    lengths = [mask for name, mask in masks.items() if name.startswith("histories")]
    assert np.stack(lengths).sum(0).min() == 1 == np.stack(lengths).sum(0).max()
    for name in pays.ARMS[1:]:
        gain = result.figures[f"gain_all_requests_{name}"]
        assert gain.low <= gain.value <= gain.high
    report = {"figures": {k: f.as_dict() for k, f in result.figures.items()}, "params": result.params}
    title, columns, rows = pays.screen(report)
    assert "8 users" in title and len(rows) <= 9 and all(len(row) == len(columns) for row in rows)
    assert any("smaller than the record" in note for note in result.notes)
    assert not any("more items than" in note for note in result.notes), "nobody touched more than 20"
    record = runs.variants["record"]
    runs.variants["record"] = dataclasses.replace(record, options=record.options | {"items": 19})
    assert any(
        "100% of the users asked touched more items than the 19 that" in n
        for n in pays._result(runs, 1, 1.0).notes
    )
    runs.variants["record"] = record


def test_a_budget_too_small_is_refused_with_one_that_would_do(runs, tmp_path):
    runs.variants = pays.arms(runs, tmp_path, 64)
    with pytest.raises(DataError, match=r"minutes; give it \d+ .*-p minutes="):
        pays.steps_for(runs, 0.001, 3)


def test_seeds_are_given_up_before_steps_where_the_budget_is_short(runs, tmp_path, monkeypatch):
    runs.variants = pays.arms(runs, tmp_path, 64)
    clock = iter(np.arange(1_000) * 1.0)  # a second between any two looks at it
    monkeypatch.setattr(pays.time, "perf_counter", lambda: float(next(clock)))
    step = len(pays.ARMS) / pays.MEASURED
    once = len(pays.ARMS) * len(runs.questions.batches)
    for least, seeds, expected in ((1.5, 3, 1), (2.5, 3, 2), (9.0, 3, 3)):
        budget = pays.LEAST * step * least + 2 * once
        steps, made = pays.steps_for(runs, budget, seeds)
        assert made == expected and steps >= pays.LEAST
        clock = iter(np.arange(1_000) * 1.0)
