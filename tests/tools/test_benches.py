"""Benchmarks run on today's code; those that take seconds and that no other test runs."""

from __future__ import annotations

import json

import pytest

from tools import cli


@pytest.mark.parametrize("name", ["feature", "flat", "job", "refresh", "scale", "write"])
def test_a_benchmark_runs_and_its_checks_hold(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", name, "--quick", "--json"])
    streams = capsys.readouterr()
    assert not stop.value.code, streams.err
    figures = json.loads(streams.out)["figures"]
    assert figures and (name != "refresh" or figures["law_2_difference"]["met"])
