"""The benchmark of the device path, tried where there is no device."""

from __future__ import annotations

import json

import pytest
import torch
import typer

from tools.bench import gpu, harness
from tools.bench.gpu import covered
from tools.bench.harness import Figure


def test_every_line_of_the_gpu_benchmark_runs_on_the_cpu_and_claims_nothing_of_a_gpu(tmp_path):
    report = harness.run("gpu", quick=True, device="cpu", out=str(tmp_path))
    figures = report["figures"]
    assert all(f["met"] for name, f in figures.items() if name.endswith("_error"))
    assert all(f["met"] is None for name, f in figures.items() if not name.endswith("_error"))
    assert {"stage1_of_matmul", "lookup_int8_of_pinned_copy", "cascade_against_two_forwards",
            "context_graph_against_launches"} <= set(figures)  # fmt: skip
    assert "training_busy" not in figures and any("training_busy: not measured" in n for n in report["notes"])
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["figures"] == figures and "no GPU" in written["params"]["name"]
    page = (tmp_path / "gpu.md").read_text()
    assert page.count("\n| ") == len(figures) + 1 and "no figure is about a GPU" in page


@pytest.mark.parametrize("poisoned", [False, True], ids=["fails", "fails-and-poisons-the-device"])
def test_a_part_that_fails_costs_no_other_part_its_figures(poisoned, tmp_path, monkeypatch):
    def broken(result, on, quick):
        result.figures["before"] = Figure(1.0, "s")
        raise RuntimeError("an illegal memory access was encountered")

    parts = {"ceilings": gpu.PARTS["ceilings"], "stage1": broken, "loading": gpu.PARTS["loading"]}
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(gpu, "usable", lambda on: not poisoned)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        harness.run("gpu", quick=True, device="cpu", out=str(tmp_path))
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert {"memory_copy", "before", "loader_slate"} <= set(written["figures"])
    assert any(note.startswith("stage1: RuntimeError") for note in written["notes"])
    assert any("process of their own" in note for note in written["notes"]) == poisoned


def test_what_is_not_begun_in_time_is_told_and_no_success(tmp_path):
    with pytest.raises(TimeoutError, match="ceilings: not begun"):
        harness.run("gpu", quick=True, device="cpu", out=str(tmp_path), only="ceilings,loading", seconds=0.0)
    assert "loading: not begun" in (tmp_path / "gpu.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_benchmark_says_how_to_try_the_script():
    with pytest.raises(typer.BadParameter, match="device=cpu --quick"):
        harness.run("gpu", quick=True)


def test_spans_cover_what_any_of_them_covers_once():
    assert covered([]) == 0
    assert covered([(5, 7), (0, 2), (1, 3), (1, 2), (5, 6)]) == 5
