"""Runs of a home, newest first: what each did, what it cost, how it ended. Read without Beam."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vista.small_text import small_json

PUBLISHERS = ("summarize", "refresh")
DONE, LETTERS, FAILED, RUNNING = "done", "dead letters", "failed", "running"
STOPPED, DAMAGED, PRIVATE = "stopped", "damaged", "private"


@dataclass(frozen=True)
class PastRun:
    """One run directory.

    Attributes:
        outcome: ``done``, ``dead letters``, ``failed``, ``running``, ``stopped`` (killed, or by Ctrl-C), or
            ``damaged`` (its record cannot be read), or ``private`` (another user's, who alone may read it).
        why: of a failure, its text; else notes.
        facts: ``run.json`` as it stands.
    """

    path: Path
    job: str
    outcome: str
    started_ms: int
    finished_ms: int | None = None
    why: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def bad(self) -> bool:
        return self.outcome in (FAILED, STOPPED, DAMAGED)

    @property
    def verb(self) -> tuple[str, ...]:
        """Words of the command line that began it."""
        of_store = "line" in (self.facts.get("identity") or {})
        return (self.job, "store" if of_store else "tables") if self.job == "compact" else (self.job,)

    @property
    def counts(self) -> dict[str, int]:
        return self.facts.get("counts") or {}

    @property
    def seconds(self) -> float | None:
        return None if self.finished_ms is None else (self.finished_ms - self.started_ms) / 1000

    def as_dict(self) -> dict[str, Any]:
        """What ``vista runs --json`` tells of a run."""
        return {
            "run": str(self.path),
            "job": self.job,
            "outcome": self.outcome,
            "why": self.why,
            "started_ms": self.started_ms,
            "finished_ms": self.finished_ms,
            "seconds": self.seconds,
            "generation": self.facts.get("generation"),
            "exit_code": self.facts.get("exit_code"),
            "counts": self.counts,
            "timings": self.facts.get("timings") or {},
            "peak_memory_bytes": self.facts.get("peak_memory_bytes") or 0,
        }


def runs(folder: Path, last: int | None = None) -> list[PastRun]:
    """Runs below a folder, also those of ``refresh --follow`` one level deeper; newest first."""
    held, records = _held(), [*folder.glob("*/run.json"), *folder.glob("*/*/run.json")]
    found = [_read(path.parent, held) for path in records]
    return sorted(found, key=lambda run: (run.started_ms, run.path.name), reverse=True)[:last]


def read(path: Path) -> PastRun:
    """One run directory."""
    return _read(path, _held())


def _read(path: Path, held: set[tuple[int, int]]) -> PastRun:
    try:
        facts = small_json(path / "run.json")
        job, started = str(facts["job"]), int(facts["started_ms"])
        finished = facts.get("finished_ms")
        code = facts.get("exit_code")
        counts = facts.get("counts") or {}
        identity = facts.get("identity") or {}
        if not isinstance(counts, dict) or not isinstance(finished, (int, type(None))):
            raise TypeError("counts or finished_ms")
        if not isinstance(identity, dict):
            raise TypeError("identity")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        outcome, told = DAMAGED, f"run.json: {error!r}"
        if isinstance(error, PermissionError):
            outcome, told = PRIVATE, "its record is for the user who ran it alone"
        return PastRun(path, path.name.partition("-")[0], outcome, _changed_ms(path), why=told)
    failure = _failure(path)
    if code is None:
        outcome = RUNNING if _lock(path) in held else FAILED if failure else STOPPED
    else:
        outcome = DONE if code == 0 else LETTERS if code == 3 else FAILED
    notes = facts.get("notes") or []
    why = (failure or str(facts.get("error") or "")) if outcome in (FAILED, STOPPED) else ""
    return PastRun(path, job, outcome, started, finished, why or "; ".join(map(str, notes)), facts)


def _failure(path: Path) -> str:
    """The first error of a bucket that has not finished."""
    for file in sorted((path / "failures").glob("[!.]*.json")):
        try:
            fact = small_json(file)
            return f"{file.stem}: {fact['error']}: {fact['text']}"
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return ""


def _lock(path: Path) -> tuple[int, int] | None:
    try:
        facts = os.stat(path / "run.lock")
        return facts.st_dev, facts.st_ino
    except OSError:
        return None


def _held() -> set[tuple[int, int]]:
    """(device, inode) of every file that a process of this host holds by ``flock``; looked up, never tried."""
    found: set[tuple[int, int]] = set()
    try:
        rows = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return found
    for row in rows:
        words = row.split()
        if len(words) > 5 and words[1] == "FLOCK":
            major, minor, inode = words[5].split(":")
            found.add((os.makedev(int(major, 16), int(minor, 16)), int(inode)))
    return found


def _changed_ms(path: Path) -> int:
    try:
        return int(path.stat().st_mtime * 1000)
    except OSError:
        return 0
