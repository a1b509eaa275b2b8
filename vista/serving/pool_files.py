"""Files of a pool: made whole under random names, of one's own user alone, with their space reserved."""

from __future__ import annotations

import errno
import fcntl
import glob
import mmap
import os
import secrets
import shutil
import stat
import time
from contextlib import suppress
from pathlib import Path

from vista.errors import VistaError

Opened = tuple[mmap.mmap, os.stat_result]


class PoolError(VistaError):
    """A pool file is missing, of another version or another user, has no room, or is for another model's shapes."""


def make(path: Path, begin: bytes, size: int) -> None:
    """A file of ``size`` bytes that begins with ``begin`` and else holds zeros; replaces one of one's own.

    Raises:
        PoolError: no room for it, or a file of another user is there.
    """
    there = _lstat(path)
    if there is not None and (there.st_uid != os.geteuid() or stat.S_ISDIR(there.st_mode)):
        raise PoolError(
            f"{path}: expected nothing or a pool of this user, found another's; name another path"
        )
    _give_back(path)
    building = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(building, flags, 0o600)
    except OSError as error:
        raise PoolError(f"{path}: cannot be made ({error.strerror}); name a folder of this user") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)  # for :func:`_give_back`: this process lives
        with open(fd, "wb") as file:
            file.write(begin)
            file.flush()
            # Reserved, not only promised: writing to memory that is not there would end the process.
            os.posix_fallocate(fd, 0, size)
        os.replace(building, path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM):
            raise PoolError(f"{path}: cannot be made ({error.strerror}); name another path") from error
        free = shutil.disk_usage(path.parent).free
        raise PoolError(
            f"{path}: expected room for {size} bytes, found {free} free; take fewer cells, or a larger memory file "
            f"system (`mount -o remount,size=… {path.parent}`)"
        ) from error
    finally:
        building.unlink(missing_ok=True)


def _give_back(path: Path) -> None:
    """Remove what processes that were killed while they made this pool left: it holds all of its space."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 16}"):
        with suppress(OSError, PoolError):
            fd, facts = _open_own(left, os.O_RDONLY)
            with open(fd, "rb", buffering=0):
                # who has just opened his has not locked it yet
                if facts.st_size or time.time() - facts.st_mtime > 60:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    left.unlink()


def map_own(path: Path) -> Opened:
    """A file of one's own user, mapped to be read and written, and what it is.

    Raises:
        PoolError: none there, of another user, or open to others.
    """
    fd, facts = _open_own(path, os.O_RDWR)
    with open(fd, "r+b", buffering=0):
        try:
            return mmap.mmap(fd, 0), facts
        except (OSError, ValueError) as error:
            raise PoolError(
                f"{path}: cannot be mapped ({error}); start the retrieving process again"
            ) from error


def read_own(path: Path, limit: int) -> bytes:
    """At most ``limit`` bytes of a file of one's own user.

    Raises:
        PoolError
    """
    fd, _ = _open_own(path, os.O_RDONLY)
    with open(fd, "rb", buffering=0) as file:
        return file.read(limit)


def identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of what is at a path, or None."""
    facts = _lstat(path)
    return None if facts is None else (facts.st_dev, facts.st_ino)


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def _open_own(path: Path, flags: int) -> tuple[int, os.stat_result]:
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise PoolError(
            f"{path}: expected a pool made by a retrieving process, found {error.strerror}; start that process first "
            f"(`vista recommend`)"
        ) from error
    facts = os.fstat(fd)
    mine = stat.S_ISREG(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & 0o077
    if not mine:
        os.close(fd)
        raise PoolError(
            f"{path}: expected a file of user {os.geteuid()} with mode 600, found one of {facts.st_uid} with mode "
            f"{stat.S_IMODE(facts.st_mode):o}; run both processes as one user, start the retrieving one again"
        )
    return fd, facts
