"""The publish gate: outside its bounds nothing goes live, the generation is kept, and a person can take it live."""

from __future__ import annotations

import dataclasses
import json

import pytest

from beam_jobs.errors import OptionsError
from beam_jobs.generation import gate, refresh, summarize
from beam_jobs.generation.gate import Bounds
from cache_store.store import Store


def checks(record) -> dict[str, bool]:
    return {check["name"]: check["ok"] for check in record.facts["gate"]}


def test_inside_its_bounds_a_generation_goes_live_and_the_record_has_every_check(small_world):
    record = summarize.run(small_world.summarize(gate=Bounds(canaries=(3,))))
    assert record.exit_code == 0 and all(checks(record).values())
    assert {"not_finite", "outside", "empty", "dead_letters", "canaries"} <= set(checks(record))
    assert small_world.store().lines() == {"main": record.generation}


@pytest.mark.parametrize(("limits", "named"), [
    (Bounds(canaries=(3, 999)), "canaries"), (Bounds(min_rms=1e9), "outside"), (Bounds(max_empty=-1), "empty"),
    (Bounds(quality={"ranking.auc": 0.9}), "ranking.auc"), (Bounds(max_not_finite=-1), "not_finite"),
])  # fmt: skip
def test_outside_its_bounds_nothing_goes_live_and_it_is_kept(small_world, limits, named):
    first = summarize.run(small_world.summarize())
    refused = summarize.run(small_world.summarize(run="second", gate=limits))
    assert refused.exit_code == 4 and checks(refused)[named] is False
    assert any(named in note and "vista promote" in note for note in refused.notes)
    store = small_world.store()
    assert store.lines() == {"main": first.generation, "main-refused": refused.generation}
    store.prune(keep=1, staging_ms=0)
    assert store.promote("main-refused") == refused.generation
    assert store.lines()["main"] == refused.generation


def test_a_refused_first_generation_leaves_the_line_without_any(small_world):
    refused = summarize.run(small_world.summarize(gate=Bounds(min_rms=1e9)))
    assert refused.exit_code == 4
    assert Store(small_world.path / "store").lines() == {"main-refused": refused.generation}


def test_users_who_are_gone_and_drift_are_measured_against_what_is_live(small_world):
    summarize.run(small_world.summarize())
    again = summarize.run(small_world.summarize(run="again", gate=Bounds(max_gone=0.0, max_drift=1e-6)))
    assert again.exit_code == 0 and checks(again)["gone"] and checks(again)["drift"]
    delta = refresh.run(small_world.refresh(gate=Bounds()))
    assert delta.exit_code == 0


def test_a_run_killed_after_it_went_live_finishes_and_does_not_judge_itself_again(small_world):
    options = small_world.summarize(gate=Bounds())
    record = summarize.run(options)
    path = small_world.path / "run" / "run.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "exit_code": None, "finished_ms": None, "generation": None}))
    again = summarize.run(dataclasses.replace(options, gate=Bounds(min_rms=1e9)))
    assert again.exit_code == 0 and again.generation == record.generation
    assert small_world.store().lines() == {"main": record.generation}


def test_bounds_are_read_from_one_file_and_a_wrong_line_is_told(tmp_path):
    file = tmp_path / "gate.toml"
    file.write_text('max_drift = 0.5\ncanaries = [1, 2]\n[quality]\n"ranking.auc" = 0.55\n')
    found = gate.bounds(file)
    assert (found.max_drift, found.canaries, found.quality) == (0.5, (1, 2), {"ranking.auc": 0.55})
    assert gate.bounds(None) == Bounds()
    for text in (
        "drift = 1",
        "max_drift = 'x'",
        "canaries = 7",
        "[quality]\na = 'b'",
        "x = [",
        "worse_than_chance = 1",
    ):
        file.write_text(text)
        with pytest.raises(OptionsError, match="gate.toml"):
            gate.bounds(file)


def test_a_model_shown_to_be_worse_than_chance_is_refused_and_a_lucky_few_requests_are_not(
    monkeypatch, tmp_path
):
    figures = {"ranking.auc": 0.45, "ranking.gain.high": -0.01}
    monkeypatch.setattr(gate, "_figures", lambda bundle: figures)
    assert [c.ok for c in gate._quality(tmp_path, Bounds())] == [False]
    assert gate._quality(tmp_path, Bounds(worse_than_chance=True)) == []
    figures["ranking.gain.high"] = 0.02
    assert [c.ok for c in gate._quality(tmp_path, Bounds())] == [True]
