"""The command line: every verb explains itself, every error is one paragraph and an exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import cli
from tools.bench import harness
from tools.command_line import PASSED_ON, command
from tools.verbs import VERBS

ROOT = Path(__file__).parents[2]


def vista(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    streams = capsys.readouterr()
    return int(stop.value.code or 0), streams.out, streams.err


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = vista(verb, "--help", capsys=capsys)
    assert code == 0
    assert "Usage" in out and verb in out


def test_an_unknown_verb_is_a_usage_error_without_a_trace(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = vista("summarise", capsys=capsys)
    assert code == 2
    assert "usage" in err and "summarize" in err and "Traceback" not in err


def test_an_unknown_benchmark_names_those_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = vista("bench", "nothing", capsys=capsys)
    assert code == 2
    assert all(name in err for name in harness.names())


def test_bench_list_names_every_benchmark_with_its_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = vista("bench", "list", "--json", capsys=capsys)
    listed = json.loads(out)
    assert code == 0 and sorted(listed) == harness.names()
    assert all(listed.values()), "every benchmark opens with a line that tells what it measures"


def named_commands() -> set[tuple[str, str, str]]:
    """(verb, rest of the command, file) of every `vista VERB ...` in backticks, and in README's and docs' code."""
    sources = [p for f in ("vista", "cache_store", "beam_jobs", "tools") for p in (ROOT / f).rglob("*.py")]
    sources += [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    return {
        (verb, rest, str(path.relative_to(ROOT)))
        for path in sources
        for verb, rest in re.findall(
            r"(?:`|^    )vista(?: --\w+)* ([a-z]+)([^`\n]*)", path.read_text(encoding="utf-8"), re.MULTILINE
        )
    }


def test_commands_named_in_errors_and_docs_exist() -> None:
    """Whatever the code or the docs tell a user to run is a verb, with options that it has."""
    options = {verb: {word for p in command(verb).params
                      for word in (*p.opts, *p.secondary_opts)} | {"--help"} for verb in VERBS}  # fmt: skip
    wrong = []
    for verb, rest, path in named_commands():
        if verb not in options:
            wrong.append((path, verb))
            continue
        if verb in PASSED_ON:  # what follows its name is the drill's own
            continue
        own = rest.split(" -- ")[0].partition("&&")[0].partition("#")[0]
        wrong += [
            (path, verb, o) for o in re.findall(r"(?<![\w-])--[a-z][a-z-]+", own) if o not in options[verb]
        ]
    assert not wrong


def test_help_does_not_import_the_heavy_libraries() -> None:
    code = (
        "import sys, tools.cli; "
        "print([m for m in ('torch', 'apache_beam', 'faiss', 'pyiceberg', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
