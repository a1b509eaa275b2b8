"""The commands of docs/tutorial.md, one after the other, as they are printed; only sizes and ports are smaller."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import cli
from tools.drills.serving import Served

ROOT = Path(__file__).parents[2]
SMALLER = {"shop_log.py shop": "shop_log.py shop --customers 40 --events 120", "--seconds 60": "--steps 2"}


def vista(capsys, *words: str) -> str:
    """A verb in this process, so that only the scripts import everything anew; what it prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([*words])
    found = capsys.readouterr()
    assert not stop.value.code, f"vista {' '.join(words)}\n{found.err}"
    return found.out


@pytest.mark.slow
def test_the_tutorial_runs_as_it_is_printed(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8").partition("## A stranger's path")[0]
    commands = re.findall(r"^    (?=vista|python)(.*)$", text, re.MULTILINE)
    assert len(commands) == 11
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    server, told = None, {}
    try:
        for command in commands:
            for printed, smaller in SMALLER.items():
                command = command.replace(printed, smaller)
            if command.startswith("vista serve"):
                server = Served(tmp_path / "shop-home" / "store")
                continue
            if server is not None:
                command = command.replace("grpc://127.0.0.1:8815", server.address)
            first, _, rest = command.partition(" ")
            if first == "vista":
                told[command.split()[1]] = vista(capsys, *rest.split())
                continue
            words = [sys.executable, *rest.split(), *(["--steps", "3"] if "own_ranker" in command else [])]
            done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, f"{command}\n{done.stderr}"
            told[command.split()[1]] = done.stdout
    finally:
        if server is not None:
            server.process.kill()
            server.process.wait(60)
    assert "healthy" in told["status"].splitlines()[0]
    found = json.loads(told["docs/examples/own_ranker.py"])
    assert found["customers found"] == 40 and 0 <= found["AUC with summaries"] <= 1
