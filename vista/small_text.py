"""Small files of a home: read to a bound and not waited for, since anybody may have put them there; replaced whole."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

MOST_BYTES = 64 << 20


def small_text(path: str | os.PathLike[str], most: int = MOST_BYTES) -> str:
    """Text (UTF-8) of a regular file.

    Raises:
        OSError: it cannot be read, has more than ``most`` bytes, or is a pipe, a device or a folder.
        UnicodeDecodeError
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            code, found = errno.EINVAL, "expected a regular file, found something else of that name"
            raise OSError(code, found, str(path))
        if facts.st_size > most:
            raise OSError(errno.EFBIG, f"expected at most {most} bytes, found {facts.st_size}", str(path))
        return file.read(most).decode("utf-8")


def small_json(path: Path) -> Any:
    """What a regular file holds as JSON.

    Raises:
        OSError: as :func:`small_text`. ValueError: no JSON, or nested without end.
    """
    try:
        return json.loads(small_text(path))
    except RecursionError as error:
        raise ValueError("nested too deep") from error


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of another in one step, when the body is done without an error."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            _alive(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def building(path: Path) -> Iterator[Path]:
    """An empty folder beside ``path`` to fill and to rename; what is left under its name goes with the body's end."""
    folder = path.with_name(f".{path.name}.{uuid.uuid4().hex}.building")
    folder.mkdir(parents=True)
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _alive(fd)
        yield folder
    finally:
        os.close(fd)
        shutil.rmtree(folder, ignore_errors=True)


def _alive(fd: int) -> None:
    """Say by a lock that the writer lives: `vista prune` takes what dead ones left."""
    with suppress(OSError):  # a filesystem without locks
        fcntl.flock(fd, fcntl.LOCK_EX)
