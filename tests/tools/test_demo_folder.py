"""A demo deletes only what a demo made: its marker lists every file, and an altered or added one stops it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from tools import cli, demo_folder


def made(out):
    """A folder as a demo leaves it."""
    (out / "logs").mkdir(parents=True)
    (out / "logs" / "events.parquet").write_bytes(b"rows")
    (out / "store" / "leases").mkdir(parents=True)
    (out / "store" / "CURRENT").write_text("1")
    demo_folder.mark(out)
    return out


def killed(out):
    """A folder as a demo leaves it that was killed while it wrote, once in its marker's place."""
    doing = (
        "import os, sys; from pathlib import Path; from tools import demo_folder; out = Path(sys.argv[1])\n"
    )
    doing += "with demo_folder.making(out):\n (out / 'logs').mkdir(); (out / 'store').mkdir()\n"
    doing += " (out / 'logs/half.parquet').write_bytes(b'ro'); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", doing, str(out)]).returncode == -9
    (out / f".{demo_folder.MARKER}.{'0a' * 16}.tmp").touch()
    return out


def refused(out, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", "--out", str(out)])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_what_a_demo_made_is_cleared_by_the_next(tmp_path):
    out = made(tmp_path / "out")
    assert demo_folder.foreign(out) == []
    demo_folder.clear(out)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("spoil", [
    lambda out: (out / "thesis.txt").write_text("mine"),
    lambda out: (out / "logs" / "2024.parquet").write_text("mine"),
    lambda out: (out / "store" / "leases" / "notes.txt").write_text("mine"),
    lambda out: (out / "logs" / "events.parquet").write_text("mine"),
    lambda out: (out / "mine").mkdir(),
    lambda out: (out / "logs" / "link").symlink_to("/etc"),
    lambda out: (out / ".vista-demo").unlink(),
    lambda out: (out / ".vista-demo").write_text("[]"),
    lambda out: (out / ".vista-demo").write_text('{"format": "vista-demo 1", "files": {"../x": [1, ""]}}'),
])  # fmt: skip
def test_a_folder_with_anything_else_in_it_is_refused_and_untouched(tmp_path, capsys, spoil):
    out = made(tmp_path / "out")
    spoil(out)
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    err = refused(out, capsys)
    assert "no demo made" in err and sorted(str(p) for p in tmp_path.rglob("*")) == before


def test_a_marker_carried_into_another_folder_proves_nothing(tmp_path, capsys):
    out, mine = made(tmp_path / "out"), tmp_path / "mine"
    (mine / "logs").mkdir(parents=True)
    (mine / "logs" / "events.parquet").write_bytes(b"my own rows")
    (mine / ".vista-demo").write_bytes((out / ".vista-demo").read_bytes())
    refused(mine, capsys)
    assert (mine / "logs" / "events.parquet").read_bytes() == b"my own rows"


def test_what_a_killed_demo_made_is_cleared_by_the_same_command(tmp_path):
    out = killed(tmp_path / "out")
    assert demo_folder.foreign(out) == []
    demo_folder.clear(out)
    assert list(out.iterdir()) == []
    with demo_folder.making(
        killed(tmp_path / "again")
    ):  # cleared or not, what is in it at the end is its own
        pass
    assert demo_folder.foreign(tmp_path / "again") == []


def test_a_file_that_came_after_a_demo_was_killed_is_not_the_demos(tmp_path, capsys):
    out = killed(tmp_path / "out")
    (out / "logs/mine.parquet").write_bytes(b"mine")
    last, came = ((out / f"logs/{name}.parquet").stat().st_ctime_ns for name in ("half", "mine"))
    assert last < came
    beat = (last + came) // 2 - demo_folder.AFTER_NS
    os.utime(out / demo_folder.MARKER, ns=(beat, beat))
    assert demo_folder.foreign(out) == ["logs/mine.parquet"]
    assert "mine.parquet" in refused(out, capsys) and (out / "logs/half.parquet").exists()


def test_a_folder_that_a_demo_is_filling_or_a_copy_of_a_killed_ones_is_refused(tmp_path, capsys):
    with demo_folder.making(tmp_path / "out"):
        (tmp_path / "out/logs").mkdir()
        (tmp_path / "out/logs/a").touch()
        refused(tmp_path / "out", capsys)
    assert demo_folder.foreign(tmp_path / "out") == []
    shutil.copytree(killed(tmp_path / "killed"), tmp_path / "copy")
    refused(tmp_path / "copy", capsys)


def test_a_link_to_a_folder_is_not_followed(tmp_path, capsys):
    out = made(tmp_path / "out")
    (tmp_path / "link").symlink_to(out)
    refused(tmp_path / "link", capsys)


def test_without_a_folder_named_the_next_free_one_is_taken(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo-out").mkdir()
    (tmp_path / "demo-out" / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit):
        cli.main(["demo", "--dry-run", "--json"])
    assert json.loads(capsys.readouterr().out)["out"] == "demo-out-2"


def test_commands_that_are_printed_run_as_they_stand(tmp_path, monkeypatch):
    import shlex

    from tools import invocation

    words = shlex.split(invocation.command("--help"))
    assert subprocess.run(words, capture_output=True).returncode == 0
    assert shlex.split(invocation.command("status", "--home", "a b'c"))[-1] == "a b'c"
