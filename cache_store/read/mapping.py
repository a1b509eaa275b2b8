"""Many immutable files as one array of bytes.

The shards of a generation are mapped read-only one after the other into a single range of addresses, so that a
batch of users is one gather whatever the number of shards. The mapping is the operating system's page cache: it
costs no memory of its own, is shared by all processes, and survives a fork. As with any mapping, a file that is
truncated while it is mapped ends the process with SIGBUS; nothing in this package ever writes to a published file.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cache_store.errors import Damaged, LimitReached, StoreError
from cache_store.format.checked import refusal
from cache_store.format.record import PAGE

_REMEDY = "run `vista verify`, then `vista rollback` or rebuild the shard"
_FIXED = 0x10
_WHO = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)
_FAILED = ctypes.c_void_p(-1).value
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def major_faults() -> int:
    """Pages that this thread has had to wait for the disk for, so far."""
    return resource.getrusage(_WHO).ru_majflt


def check_size(path: Path | str, size: int, facts: os.stat_result) -> None:
    """Compare a file with what its manifest states.

    Raises:
        Damaged: another size, or no regular file.
    """
    if not stat.S_ISREG(facts.st_mode) or facts.st_size != size:
        found = f"{facts.st_size}" if stat.S_ISREG(facts.st_mode) else "something that is no regular file"
        raise Damaged(f"{path}: expected {size} bytes, found {found}; {_REMEDY}")


class FileRange:
    """Files mapped end to end; each begins at a multiple of the page size.

    Attributes:
        address: of the first byte, in this process.
        data: uint8 [total], read-only; the gap after each file reads as zeros.
        starts: int64 [files], byte at which each file begins.

    The addresses are released when the last array that views them is gone.

    Raises:
        Damaged: a file is missing or has not the stated size; asked of all before anything is mapped.
        NotPermitted, LimitReached
    """

    def __init__(self, files: Sequence[Path], sizes: Sequence[int]) -> None:
        for path, size in zip(files, sizes, strict=True):
            with _typed(path):
                check_size(path, size, os.stat(path))
        granule = max(PAGE, mmap.ALLOCATIONGRANULARITY)
        rounded = [-(-size // granule) * granule for size in sizes]
        self.starts = np.cumsum([0, *rounded])[:-1].astype(np.int64)
        # One more granule at the end, so that a gather of whole pages never leaves the range.
        total = sum(rounded) + granule
        address = _libc.mmap(None, total, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        if address == _FAILED:
            raise _limit(f"{len(files)} files of {total} bytes from {files[0].parent}", ctypes.get_errno())
        self.address: int = address
        owner = _Owner(address, total)
        for path, size, start in zip(files, sizes, self.starts.tolist(), strict=True):
            if not self._map(path, size, start):
                code = ctypes.get_errno()
                owner.release()  # where no mapping is left, not even the error could be told
                raise _limit(f"{len(files)} files from {path.parent}", code)
        self.data = np.asarray(owner)

    def will_need(self, starts: np.ndarray, size: int) -> None:
        """Ask the operating system to read ``size`` bytes at each start (int64 [n]) ahead, without waiting."""
        madvise, page = _libc.madvise, mmap.ALLOCATIONGRANULARITY
        inside = starts[(starts >= 0) & (starts <= len(self.data) - size)]
        first = inside // page * page
        lengths = inside + size - first
        for at, length in zip((self.address + first).tolist(), lengths.tolist(), strict=True):
            madvise(at, length, mmap.MADV_WILLNEED)

    def _map(self, path: Path, size: int, start: int) -> bool:
        """Whether the system had a mapping left for it."""
        with _typed(path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            check_size(path, size, os.fstat(fd))
            if size == 0:
                return True
            where = self.address + start
            if _libc.mmap(where, size, mmap.PROT_READ, mmap.MAP_SHARED | _FIXED, fd, 0) != where:
                return False
            # Records are read at random; read-ahead would fetch their neighbours.
            _libc.madvise(where, size, mmap.MADV_RANDOM)
            return True
        finally:
            os.close(fd)


@contextmanager
def _typed(path: Path) -> Iterator[None]:
    """Errors of looking at and opening a file that a manifest names."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Damaged(f"{path}: missing; {_REMEDY}") from error
    except StoreError:
        raise
    except OSError as error:
        raise refusal(path, error) or Damaged(
            f"{path}: cannot be opened ({error.strerror}); {_REMEDY}"
        ) from error


def _limit(what: str, code: int) -> LimitReached:
    return LimitReached(
        code,
        f"mapping {what}: {os.strerror(code)}; this process has {mappings()} mappings, the system allows "
        f"{most_mappings()}. A generation takes two a shard, with states four: fold the chain with `vista compact`, "
        f"read as of fewer times at once, use fewer shards, or raise `sysctl vm.max_map_count`",
    )


def mappings() -> int:
    """Mappings of this process now; 0 where the system does not say."""
    try:
        with open("/proc/self/maps", "rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 14), b""))
    except OSError:
        return 0


def most_mappings() -> int:
    """Mappings that a process may have; 65,530 where the system does not say."""
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return 65_530


class _Owner:
    """Lets NumPy view the range and keeps it mapped for as long as any view lives."""

    def __init__(self, address: int, size: int) -> None:
        self._address, self._size = address, size
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, True), "version": 3}

    def release(self, munmap: Any = _libc.munmap) -> None:
        if self._size:
            munmap(self._address, self._size)
        self._size = 0

    __del__ = release
