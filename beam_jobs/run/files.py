"""Files of a run directory: written whole or not at all, held by one process, and a full disk told as such."""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import xxhash

from beam_jobs.errors import RunInProgress, RunStorageFull
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
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with room_for(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def file_digest(path: str | Path) -> str:
    """XXH3-128 of a file's bytes, 32 hex digits."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Hold:
    """``flock`` on ``run.lock``."""

    def __init__(self, path: Path):
        self._path = path / "run.lock"
        self._fd: int | None = None

    def __enter__(self) -> None:
        with room_for(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise RunInProgress(
                f"{self._path.parent}: another process is working on this run; wait for it (vista status), "
                f"or name another run directory"
            ) from error
        self._fd = fd

    def __exit__(self, *_: object) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
