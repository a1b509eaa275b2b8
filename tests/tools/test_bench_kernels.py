"""The kernels by the compiler of a card, without one."""

from __future__ import annotations

import pytest

from tools.bench import harness


def test_the_heaviest_kernels_compile_for_an_h100_within_its_registers_and_shared_memory(
    tmp_path, monkeypatch
):
    pytest.importorskip("triton", reason="pip install 'vista-cache[gpu]' for the kernels")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "compiled"))
    report = harness.run("kernels", quick=True, out=str(tmp_path / "kernels.md"))
    figures = {name: f for name, f in report["figures"].items() if name != "wall"}
    assert len(figures) == 9 and all(f["met"] for f in figures.values()), figures
    table = (tmp_path / "kernels.md").read_text()
    assert table.count("\n| backward_") == 2 and "| forward_float32_64 |" in table
