"""What runs leave behind: which run directories may go, and users out of those that stay.

A directory is touched only while nobody holds it. ``prune`` takes those that were not written to for a while:
unfinished runs, and finished ones but for the newest :data:`KEPT_RUNS`. So ``runs/`` is bounded, whatever happens.
Beside them, what a killed writer was about to put in its place below a home: a bundle, an index, settings, a report.
It is known by its name, its writer's death by a lock that nobody holds, and by its age.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from beam_jobs.errors import JobError, RunInProgress
from beam_jobs.run.files import write_atomically
from beam_jobs.run.record import RunDirectory, RunRecord
from cache_store.change.prune import remove
from cache_store.format.layout import abandoned
from vista.small_text import small_json

KEPT_RUNS = 32
"""Finished runs that stay, however old."""

_PLACES = {
    "": r"index|vista\.toml|report\.html|\.tables-seen\.json|model(\.items\.(parquet|npz))?",
    "model/": r"\d+(\.items\.(parquet|npz))?",
    "runs/follow/": r".+\.json",
    "runs/follow/dead-letters/": r"set-aside-.+\.jsonl",
    "warehouse/": r"catalog\.db",
    "warehouse/vista/*/metadata/": r".+\.(avro|metadata\.json)",
}
"""What is put in its place, by folder of a home; all else that looks alike is its user's."""

FORGOTTEN = "(forgotten)"
"""What stands in a record for a user who was named there."""


def run_directories(folder: str | Path) -> Iterator[Path]:
    """Directories of runs directly below a folder, in order of name."""
    for path in sorted(Path(folder).glob("*/run.json")):
        yield path.parent


def prune_runs(folder: str | Path, before_ms: int, dry_run: bool = False) -> list[str]:
    """Names of the run directories that were deleted; see the module.

    Args:
        before_ms: those that were written to later are left.
        dry_run: change nothing.
    """
    ages = {path: _touched_ms(path) for path in run_directories(folder)}
    finished = [path for path in ages if _finished(path)]
    kept = set(sorted(finished, key=ages.__getitem__)[-KEPT_RUNS:])
    gone = []
    for path, touched in ages.items():
        if path in kept or touched > before_ms:
            continue
        try:
            with RunDirectory(path).hold():
                if not dry_run:
                    shutil.rmtree(path)
        except RunInProgress:
            continue
        gone.append(path.name)
    return gone


def prune_unplaced(home: str | Path, before_ms: int, dry_run: bool = False) -> list[str]:
    """Names of what killed writers left unplaced in a home and beside its bundles, and that was deleted.

    Args: as of :func:`prune_runs`.
    """
    gone = []
    for folder, names in _PLACES.items():
        for path in sorted(Path(home).glob(f"{folder}.*")):
            place = abandoned(path)
            if place is None or not re.fullmatch(names, place):
                continue
            newest = max(p.lstat().st_mtime_ns for p in (path, *path.rglob("*"))) // 1_000_000
            if newest <= before_ms:
                gone.append(path.name)
                if not dry_run:
                    remove(path)
    return gone


def _touched_ms(path: Path) -> int:
    written = [p for p in path.iterdir() if p.name != "run.lock"]  # asking whether it is held is no use of it
    return max((p.stat().st_mtime_ns for p in written), default=0) // 1_000_000


def _finished(path: Path) -> bool:
    try:
        return RunRecord.load(path).exit_code is not None
    except JobError:
        return False


@dataclass
class Cleaned:
    """What :func:`without_users` did.

    Attributes:
        spills: runs whose working files went.
        records: runs whose record named one of the users.
        under_way: runs that somebody works on: their working files are left, and go when the run ends.
    """

    spills: list[str] = field(default_factory=list)
    records: list[str] = field(default_factory=list)
    under_way: list[str] = field(default_factory=list)


def without_users(folder: str | Path, users: Sequence[int | str]) -> Cleaned:
    """Take working files (rows of logs on their way), texts of failures, and the users' names out of run directories.

    A run whose working files went starts over when it is continued, as what it was built for has changed anyway.
    """
    done = Cleaned()
    names = {str(user) for user in users}
    for path in run_directories(folder):
        try:
            with RunDirectory(path).hold():
                for left in ("spill", "failures"):
                    if (path / left).exists():
                        shutil.rmtree(path / left)
                        done.spills += [path.name] if left == "spill" else []
                if _renamed(path / "run.json", names):
                    done.records.append(path.name)
        except RunInProgress:
            done.under_way.append(path.name)
    return done


def _renamed(path: Path, users: set[str]) -> bool:
    """Replace users that a record names; whether there were any."""
    try:
        record: dict[str, Any] = small_json(path)
        named = record["identity"].get("users")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False
    if not isinstance(named, list):
        return False
    left = [FORGOTTEN if str(user) in users else user for user in named]
    if left == named:
        return False
    record["identity"]["users"] = left
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
    return True
