"""The Python in README and docs has the types that the packages have; names that a page takes as given are anything."""

from __future__ import annotations

import ast
import builtins
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    p
    for p in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if "```python" in p.read_text("utf-8")
]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def given(code: str) -> list[str]:
    """Names that are read and made nowhere in the code."""
    tree = ast.parse(code)
    read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    made = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    made |= {a.asname or a.name.partition(".")[0] for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))
             for a in n.names}  # fmt: skip
    made |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    made |= {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    return sorted(read - made - set(dir(builtins)))


def test_what_a_snippet_takes_as_given_is_found():
    assert given("import numpy as np\nx = np.zeros(n)\nfor y in x: print(y, z)") == ["n", "z"]


@pytest.mark.slow
def test_every_snippet_of_the_pages_has_the_types_of_the_packages(tmp_path):
    for page in PAGES:
        # the blocks of README follow each other; elsewhere each stands for itself
        parts = ["\n".join(blocks(page))] if page.name == "README.md" else blocks(page)
        for k, code in enumerate(parts):
            head = "from typing import Any\n" + "".join(f"{name}: Any\n" for name in given(code))
            (tmp_path / f"{page.stem.replace('-', '_')}_{k}.py").write_text(head + code, encoding="utf-8")
    files = sorted(str(p) for p in tmp_path.glob("*.py"))
    assert len(files) >= 5
    words = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--no-error-summary", *files]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
    told = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert not told and not done.stderr.strip(), "\n".join(told) + done.stderr
