"""Files of a run directory: written whole or not at all, held by one process, and a full disk told as such."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from beam_jobs.errors import RunInProgress, RunStorageFull
from cache_store.format.layout import replacing
from vista.data.paths import is_full


@contextlib.contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Raises RunStorageFull where the body finds the disk full."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise RunStorageFull(
            f"{path}: no space left ({error}); free some and run the same command with the same --run-dir again"
        ) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Put ``data`` under ``path``: temporary name, fsync, rename. Readers see all of it or the old file. It is this
    user's alone (mode 600): records tell paths and users.

    Raises:
        RunStorageFull
    """
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, 0o600) as temporary, open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """``flock`` on ``run.lock``; see ``RunDirectory.hold``."""
    path = folder / "run.lock"
    with room_for(path):
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunInProgress(
                f"{folder}: another process is working on this run; wait for it (vista status), "
                f"or name another run directory"
            ) from error
        yield
    finally:
        os.close(fd)
