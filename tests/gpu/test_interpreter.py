"""The kernels without a GPU: Triton's interpreter runs them on the CPU, in a process of its own.

The interpreter is chosen when Triton is imported, so the tests run in a child; ``tests/vista`` tests of the plain forms
run there too, with the kernels in their place.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytest.importorskip("triton", reason="pip install 'vista-cache[gpu]' for the kernels")


def interpreted(*arguments: str) -> str:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        *arguments,
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, cwd=HERE.parents[1]
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout


def test_kernels_equal_their_definitions_under_the_interpreter():
    assert "passed" in interpreted(str(HERE / "test_kernels.py"))


def test_decoding_of_records_equals_numpys_under_the_interpreter():
    assert "passed" in interpreted(str(HERE / "test_decode.py"))


def test_the_branches_for_a_card_run_on_one_that_is_pretended(monkeypatch):
    monkeypatch.setenv("VISTA_CARD", "pretended")
    chosen = "card or folded or feature or graph_repeats or graphs_are_those_of_the_cpu and fast"
    assert "passed" in interpreted(
        *(str(HERE / f"test_{n}.py") for n in ("card", "decode", "device")), "-k", chosen
    )


def test_the_packed_form_of_qla_holds_with_the_kernels_in_its_place():
    chosen = "packed_form and (one-step or carried or tails) or target_row or own_chunk or bfloat16"
    (path,) = (HERE.parent / "vista").rglob("test_qla.py")
    assert "passed" in interpreted(str(path), "-k", chosen)
