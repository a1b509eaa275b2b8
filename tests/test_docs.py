"""What is written about the code is true of it: links, paths, names, reading orders, snippets, versions."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cache_store", "vista", "beam_jobs", "tools")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
NAME = r"[`*]*[a-z_]\w*[`*]*"


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(page: Path) -> str:
    """A page without its code: no link is meant there."""
    return re.sub(
        r"```.*?```|^(?: {4,}).*$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S | re.M
    )


def anchors(page: Path) -> set[str]:
    """What may follow ``#`` in a link to the page."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


def docstrings(path: Path) -> list[tuple[ast.AST, str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return [(n, text) for n in ast.walk(tree) if isinstance(n, kinds) if (text := ast.get_docstring(n))]


def test_every_link_of_a_page_leads_somewhere():
    lost = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            if re.match(r"[a-z]+:", target) or (
                there.exists() and (not anchor or there.suffix != ".md" or anchor in anchors(there))
            ):
                continue
            lost.append(f"{name_of(page)}: {target}")
    assert lost == []


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    found = {(ROOT / "docs" / t).resolve() for t in re.findall(r"\]\(([^)#\s]+)", index)}
    missing = {p for p in PAGES if p.parent != ROOT and p.name != "README.md"} - found
    assert not missing, sorted(map(name_of, missing))


def test_every_file_that_a_text_names_is_there():
    lost = []
    for path in [*PAGES, *MODULES, *sorted((ROOT / "tests").rglob("*.py"))]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            text = "\n".join([d for _, d in docstrings(path)] + re.findall(r"#.*", text))
        named = re.findall(
            rf"(?<![\w/.])((?:{'|'.join(PACKAGES)}|tests|docs)/[\w./-]*\w\.(?:py|md|c))\b", text
        )
        lost += [f"{name_of(path)}: {n}" for n in named if not (ROOT / n).exists()]
    assert lost == []


def resolves(target: str) -> bool:
    parts = target.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
            break
        except ModuleNotFoundError:
            continue
    for attribute in parts[cut:]:
        if attribute in getattr(found, "__annotations__", {}):
            return True  # a field without a default
        if not hasattr(found, attribute):
            return False
        found = getattr(found, attribute)
    return True


def test_every_reference_of_a_docstring_is_a_name_of_ours():
    pattern = rf":\w+:`~?((?:{'|'.join(PACKAGES)})\.[\w.]+)`"
    named = {(name_of(p), t) for p in MODULES for _, text in docstrings(p) for t in re.findall(pattern, text)}
    assert len(named) > 10 and sorted(pair for pair in named if not resolves(pair[1])) == []


def test_a_package_names_every_module_it_has_in_its_reading_order():
    untold = {}
    for folder in sorted({p.parent for p in MODULES} - {ROOT / "tools/verbs"}):  # VERBS lists those
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
        told = {name.strip("/").split(".")[0] for name in re.findall(r"``([\w/.]+)``", text)}
        inside = {p.stem for p in folder.glob("*.py")} | {p.parent.name for p in folder.glob("*/__init__.py")}
        if missing := {name for name in inside if not name.startswith("_")} - told:
            untold[name_of(folder)] = sorted(missing)
    assert not untold, untold


def test_a_docstring_says_one_value_a_line():
    crowded = []
    for path in MODULES:
        for node, text in docstrings(path):
            section = re.search(r"^(?:Args|Attributes):\n(.*?)(?:\n\n|\Z)", text, re.S | re.M)
            if section and not isinstance(node, ast.Module):
                names = {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
                names |= {n.target.id for n in node.body if isinstance(n, ast.AnnAssign)}
                for second in re.findall(rf"[.\])] +({NAME}(?:, {NAME})*): \w", section[1]):
                    if set(second.split(", ")) <= names:
                        crowded.append(f"{name_of(path)}: {node.name}: {second}")
    assert crowded == []


def snippets() -> list[tuple[str, str]]:
    return [
        (f"{name_of(page)}:{text[: found.start()].count(chr(10)) + 1}", found[1])
        for page in PAGES
        for text in [page.read_text(encoding="utf-8")]
        for found in re.finditer(r"```python\n(.*?)```", text, re.S)
    ]


@pytest.mark.parametrize("where, code", snippets(), ids=[w for w, _ in snippets()])
def test_a_snippet_compiles_and_imports_what_exists(where, code):
    """tests/tools/test_demo.py also runs those of the README, tests/tools/test_example_ranker.py the example."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in PACKAGES:
                    importlib.import_module(alias.name)


def test_each_law_has_one_file_of_tests_with_its_number():
    laws = re.findall(r"^(\d+)\. ", (ROOT / "docs/architecture.md").read_text(encoding="utf-8"), re.M)
    files = {p.name.split("_")[2]: p for p in sorted((ROOT / "tests/laws").glob("test_law_*.py"))}
    assert sorted(files) == sorted(f"{int(n):02d}" for n in laws)
    for number, path in files.items():
        assert f"def test_law_{int(number)}_" in path.read_text(encoding="utf-8")


def test_versions_agree():
    import beam_jobs
    import cache_store
    import vista

    assert beam_jobs.__version__ == vista.__version__ == cache_store.__version__
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert newest and newest[1] == cache_store.__version__


def test_the_changelog_lists_every_format_that_the_code_writes():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    pattern = r'^[A-Z_]*(?:FORMAT|MAGIC|FORMAT_LINE)\w* = b?"(vista-[a-z]+ \d+)"'
    written = {f for path in MODULES for f in re.findall(pattern, path.read_text(encoding="utf-8"), re.M)}
    assert len(written) >= 5 and not {f for f in written if f"`{f}`" not in changelog}


@pytest.mark.slow
def test_api_pages_are_made_from_the_docstrings(tmp_path):
    command = [sys.executable, "-m", "pdoc", "--docformat", "google", "-o", str(tmp_path), "cache_store"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "cache_store.html").read_text(encoding="utf-8")
    assert "lookup" in page and "Traceback" not in done.stderr


TWICE = {
    "FingerprintMismatch": "the store and the model refuse it each on its own: neither package knows the other",
    "MissingExtra": "either package is installed without the other",
}
"""Class names that mean the same thing in two packages, with the reason why there are two."""


def test_a_class_name_means_one_thing_in_all_packages():
    found: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(f"{name_of(path)}:{node.lineno}")
    assert {name: places for name, places in found.items() if len(places) > 1 and name not in TWICE} == {}
    assert {name for name in TWICE if len(found.get(name, ())) < 2} == set()
