"""Benchmarks run on today's code; those that take seconds and that no other test runs."""

from __future__ import annotations

import json

import pytest

from tools import cli


@pytest.mark.parametrize(
    "words",
    ["feature", "job -p events=20_000", "refresh", "scale", "write"],
    ids=lambda words: words.split()[0],
)
def test_a_benchmark_runs_and_its_checks_hold(words, capsys):
    name, *sizes = words.split()
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", name, "--quick", "--json", *sizes])
    streams = capsys.readouterr()
    assert not stop.value.code, streams.err
    figures = json.loads(streams.out)["figures"]
    assert figures and (name != "refresh" or figures["law_2_difference"]["met"])
