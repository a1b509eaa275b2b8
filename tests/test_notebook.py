"""docs/tour.ipynb does what it shows. ``python -m tests.test_notebook`` writes its outputs anew."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs/tour.ipynb"


def outputs(cells: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Run code cells one after the other, as a kernel does; what each prints and what its last line is worth."""
    names: dict[str, Any] = {"__name__": "__main__"}
    found = []
    for number, cell in enumerate(cells, 1):
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        printed, here = io.StringIO(), []
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, f"cell {number}", "exec"), names)
            value = None
            if last is not None:
                value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
        if printed.getvalue():
            here.append({"output_type": "stream", "name": "stdout", "text": [printed.getvalue()]})
        if value is not None:
            data = {"text/plain": [repr(value)]}
            if hasattr(value, "_repr_html_"):
                data["text/html"] = [value._repr_html_()]
            here.append(
                {"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": data}
            )
        found.append(here)
    return found


def run(folder: Path) -> tuple[dict[str, Any], list[list[dict[str, Any]]]]:
    """The notebook, and the outputs of its code cells run in a process of its own in ``folder``."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "tests.test_notebook", "--run"]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(NOTEBOOK.read_text("utf-8")), json.loads(done.stdout)


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_has_shown(tmp_path):
    notebook, found = run(tmp_path)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(code) == len(found) > 8
    for cell, here in zip(code, found, strict=True):  # numbers are the seed's and the record's of its day
        assert masked(cell["outputs"]) == masked(here), "".join(cell["source"])
    assert [cell["outputs"] for cell in code[:2]] == found[:2]


def masked(shown: list[dict[str, Any]]) -> str:
    return re.sub(r"[\d. ]+", "#", json.dumps(shown, sort_keys=True))


if __name__ == "__main__":
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    if sys.argv[1:] == ["--run"]:
        told = outputs([cell for cell in cells if cell["cell_type"] == "code"])
        print(json.dumps(told).replace(f"{os.getcwd()}/", ""))
    else:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            notebook, made = run(Path(folder))
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for number, (cell, here) in enumerate(zip(code, made, strict=True), 1):
            cell |= {"execution_count": number, "outputs": here}
        NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")
