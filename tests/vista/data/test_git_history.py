"""A repository's history as a log, and a git that says much before it gives up."""

import pyarrow.parquet as pq
import pytest

from vista.data.logs.git_history import write
from vista.data.logs.reading import WrongOption


def fake_git(tmp_path, monkeypatch, script: str) -> None:
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def test_each_file_of_a_commit_is_a_row_and_a_renamed_one_has_its_new_name(tmp_path, monkeypatch):
    said = r"\001c1\002A@x\0027\000\nM\000a.py\000R100\000old.py\000new.py\000"
    fake_git(tmp_path, monkeypatch, f"printf '{said}'")
    assert write(["."], tmp_path / "log.parquet") == 2
    rows = pq.read_table(tmp_path / "log.parquet").to_pylist()
    assert [(r["user_id"], r["item_id"], r["action"], r["timestamp_ms"], r["request_id"]) for r in rows] == [
        ("a@x", "a.py", "modify", 7_000, "c1"),
        ("a@x", "new.py", "rename", 7_000, "c1"),
    ]


def test_a_git_that_fails_with_more_words_than_a_pipe_holds_is_told_and_not_waited_for(tmp_path, monkeypatch):
    fake_git(tmp_path, monkeypatch, "echo 'fatal: no history' >&2; head -c 300000 /dev/zero >&2; exit 128")
    with pytest.raises(WrongOption, match="fatal: no history"):
        write(["."], tmp_path / "log.parquet")
