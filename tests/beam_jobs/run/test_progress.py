"""What a person sees of a step whose rows nobody knows yet."""

from __future__ import annotations

import sys

from beam_jobs.run.progress import files_bar


class Terminal:
    """Keeps what a terminal would show."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.shown = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.shown += text
        return len(text)

    def flush(self) -> None:
        pass


def test_files_on_their_way_are_counted_on_a_terminal_and_nowhere_else(tmp_path, monkeypatch):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    files[0].write_text("x")
    for told, show, terminal in ((True, True, Terminal()), (False, False, Terminal())):
        monkeypatch.setattr(sys, "stderr", terminal)
        with files_bar("ingest: text", files, show):
            files[1].write_text("y")
        assert ("of 2 files" in terminal.shown) == told
