"""Arrows between packages and between the rooms of each point one way (docs/architecture.md)."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "tools": {"beam_jobs", "vista", "cache_store"},
    "beam_jobs": {"vista", "cache_store"},
    "vista": set(),
    "cache_store": set(),
}
ROOMS = {
    "cache_store": "errors native format write read change store remote torch flight testing",
    "vista": "errors config jagged ops data data/logs data/tables embedding stage1 stage2 model new_items bundle "
    "training serving",
    "beam_jobs": "errors horizon run ingest generation tables follow",
}  # a room may import those before it


def modules(package: str) -> dict[str, Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


ALL = {name: path for package in PACKAGES for name, path in modules(package).items()}


def imports(path: Path, typed: bool = False, at_once: bool = False) -> set[str]:
    """Modules of ours that a file imports; ``typed``: with those it names for the type checker alone; ``at_once``:
    without those that its functions import."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), set()
    if at_once:
        tree.body = [n for n in tree.body if not isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    types = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    quiet = {id(n) for branch in types for n in ast.walk(branch) if not typed}
    for node in ast.walk(tree):
        if id(node) in quiet:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in ALL else node.module
                for a in node.names
            }
    return found & ALL.keys()


def room_of(name: str, package: str) -> str:
    inside = "/".join(name.split(".")[1:])
    rooms = [r for r in ROOMS[package].split() if inside == r or inside.startswith(r + "/")]
    return max(rooms, key=len, default="")


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_stands_below_them(package):
    for name in modules(package):
        outside = {i.split(".")[0] for i in imports(ALL[name])} - {package}
        assert outside <= PACKAGES[package], f"{name} imports {sorted(outside - PACKAGES[package])}"


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_only_rooms_before_them(package):
    order = ["", *ROOMS[package].split()]
    wrong = [
        f"{name} imports {other}"
        for name in modules(package) if name != package
        for other in imports(ALL[name]) if other.startswith(package + ".")
        and order.index(room_of(other, package)) > order.index(room_of(name, package))
    ]  # fmt: skip
    assert wrong == []


def test_no_module_imports_itself_through_others():
    graph = {
        name: imports(path, typed=name.startswith("vista.")) - {name}
        for name, path in ALL.items() if not path.name == "__init__.py"
    }  # fmt: skip
    list(graphlib.TopologicalSorter(graph).static_order())


def test_what_runs_without_beam_does_not_import_it():
    reached, left = set(), {"beam_jobs.follow.service"}
    while left:
        reached |= left
        left = {o for name in left for o in imports(ALL[name], at_once=True)} - reached
    assert "beam_jobs.generation.refresh" in reached and "beam_jobs.run.runner" not in reached


def test_the_map_states_how_many_rooms_and_arrows_there_are():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    row = re.search(r"^\| now \|.*$", page, re.M)[0].split("|")
    stated = dict(
        zip(
            ("vista", "cache_store", "beam_jobs"),
            zip(row[3].split("/"), row[5].split("/"), strict=True),
            strict=True,
        )
    )
    for package in ROOMS:
        inside = {n: room_of(n, package) for n in modules(package) if room_of(n, package)}
        drawn = {(r, inside[o]) for n, r in inside.items() for o in imports(ALL[n]) if inside.get(o, r) != r}
        assert (str(len(set(inside.values()))), str(len(drawn))) == tuple(map(str.strip, stated[package])), (
            package
        )
