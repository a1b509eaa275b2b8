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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cache_store.errors import Damaged

PAGE = 4096
_FIXED = 0x10
_WHO = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)
_FAILED = ctypes.c_void_p(-1).value
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def major_faults() -> int:
    """Pages that this thread has had to wait for the disk for, so far."""
    return resource.getrusage(_WHO).ru_majflt


class FileRange:
    """Files mapped end to end; each begins at a multiple of the page size.

    Attributes:
        address: of the first byte, in this process.
        data: uint8 [total], read-only; the gap after each file reads as zeros.
        starts: int64 [files], byte at which each file begins.

    The addresses are released when the last array that views them is gone.
    """

    def __init__(self, files: Sequence[Path], sizes: Sequence[int]) -> None:
        granule = max(PAGE, mmap.ALLOCATIONGRANULARITY)
        rounded = [-(-size // granule) * granule for size in sizes]
        self.starts = np.cumsum([0, *rounded])[:-1].astype(np.int64)
        # One more granule at the end, so that a gather of whole pages never leaves the range.
        self._total = sum(rounded) + granule
        address = _libc.mmap(None, self._total, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        if address == _FAILED:
            raise OSError(ctypes.get_errno(), f"cannot reserve {self._total} bytes of addresses")
        self.address: int = address
        for path, size, start in zip(files, sizes, self.starts.tolist(), strict=True):
            self._map(path, size, start)
        owner = _Owner(self.address, self._total)
        self.data = np.asarray(owner)

    def will_need(self, starts: np.ndarray, size: int) -> None:
        """Ask the operating system to read ``size`` bytes at each start (int64 [n]) ahead, without waiting."""
        madvise, page = _libc.madvise, mmap.ALLOCATIONGRANULARITY
        first = starts // page * page
        lengths = starts + size - first
        for at, length in zip((self.address + first).tolist(), lengths.tolist(), strict=True):
            madvise(at, length, mmap.MADV_WILLNEED)

    def _map(self, path: Path, size: int, start: int) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            self._release()
            raise Damaged(
                f"{path}: missing; run `vista verify`, then `vista rollback` or rebuild the shard"
            ) from error
        except OSError:
            self._release()
            raise
        try:
            found = os.fstat(fd).st_size
            if found != size:
                self._release()
                raise Damaged(
                    f"{path}: expected {size} bytes, found {found}; run `vista verify`, then `vista rollback` or "
                    f"rebuild the shard"
                )
            if size == 0:
                return
            where = self.address + start
            if _libc.mmap(where, size, mmap.PROT_READ, mmap.MAP_SHARED | _FIXED, fd, 0) != where:
                code = ctypes.get_errno()
                self._release()
                raise OSError(code, os.strerror(code), str(path))
            # Records are read at random; read-ahead would fetch their neighbours.
            _libc.madvise(where, size, mmap.MADV_RANDOM)
        finally:
            os.close(fd)

    def _release(self) -> None:
        _libc.munmap(self.address, self._total)


class _Owner:
    """Lets NumPy view the range and keeps it mapped for as long as any view lives."""

    def __init__(self, address: int, size: int) -> None:
        self._address, self._size = address, size
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, True), "version": 3}

    def __del__(self, munmap: Any = _libc.munmap) -> None:
        munmap(self._address, self._size)
