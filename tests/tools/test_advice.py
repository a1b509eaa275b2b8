"""Every command and option that a text of ours names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tools.command_line import command
from tools.verbs import VERBS

ROOT = Path(__file__).parents[2]
SOURCES = [
    f for package in ("cache_store", "vista", "beam_jobs", "tools") for f in (ROOT / package).rglob("*.py")
]
NO_VERB = {"home", "cache", "drill"}  # "a vista home", "vista-cache"; each drill has options of its own
OF_OTHERS = {"--runner", "--shm-size", "--preload", "--spark"}  # Beam, Docker, gunicorn
OWN_PARSERS = ("bench", "studies", "drills")
ADVICE = re.compile(r"(?<![\w./-])`?vista ([a-z]+)\b((?:(?!vista )[^`.;:()]|\.\w)*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z](?![\w-])")


def texts(path: Path) -> list[tuple[int, str]]:
    """String constants of a file with their lines; f-strings as one text, with a blank for each value."""
    tree = ast.parse(path.read_text("utf-8"))
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [str(v.value) if isinstance(v, ast.Constant) else "X" for v in node.values]
            found.append((node.lineno, "".join(parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            found.append((node.lineno, node.value))
    return found


def options(verb: str) -> set[str]:
    return {word for p in command(verb).params for word in (*p.opts, *p.secondary_opts)} | {"--help"}


ALL = {verb: options(verb) for verb in VERBS}
ANY = set().union(*ALL.values(), {"--debug", "--version"})


@pytest.mark.parametrize("package", ["cache_store", "vista", "beam_jobs", "tools"])
def test_every_command_and_option_that_a_text_names_exists(package):
    wrong = []
    for path in (p for p in SOURCES if p.is_relative_to(ROOT / package)):
        for line, text in texts(path):
            where = f"{path.relative_to(ROOT)}:{line}"
            for verb, rest in ADVICE.findall(text):
                if verb in NO_VERB:
                    continue
                named = OPTION.findall(rest.partition(" -- ")[0])
                if verb not in VERBS:
                    wrong.append(f"{where}: vista {verb}")
                wrong += [f"{where}: vista {verb} {o}" for o in named if verb in VERBS and o not in ALL[verb]]
            prose = " " in text and not text.startswith("-")  # else it is a word for another program
            if prose and not {*path.relative_to(ROOT).parts} & {*OWN_PARSERS}:
                wrong += [
                    f"{where}: {o}" for o in OPTION.findall(text) if o not in ANY and o not in OF_OTHERS
                ]
    assert wrong == []
