"""One immutable LMDB file with its index: sorted appends under a temporary name, checks, fsync, rename.

Everything that makes shards uses this: the shard writer, compaction, forget, and the state files.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from cache_store.errors import Damaged, Incomplete, OutOfOrder
from cache_store.format import index, pages
from cache_store.format.layout import digest_file, fsync, replacing, storage_errors, temporary
from cache_store.format.receipt import FileFact

COMMIT_BYTES = 1 << 26
"""Bytes between commits; bounds the writer's memory. Counted in records, so batch sizes do not change the file."""

_MAP_BYTES = 1 << 42
_MARGIN = 1 << 20


@contextlib.contextmanager
def taken_away(path: Path) -> Iterator[None]:
    """Turn the loss of a file under construction into the typed error: ``forget`` takes them out of staging."""
    try:
        yield
    except (FileNotFoundError, lmdb.Error) as error:
        if isinstance(error, lmdb.Error) and "No such file" not in str(error):
            raise
        raise Incomplete(
            f"{path}: was taken away while it was built, as `vista forget` does; build the shard again"
        ) from error


class SortedFile:
    """Writer of ``STEM.mdb`` and ``STEM.idx`` in a folder.

    Args:
        folder: must exist.
        stem: as from ``layout.shard_name``.
        lengths: True where values differ in size other than by being tombstones.
        second: True for string ids.
        empty_is: value size that marks a tombstone (its index offset is 0), or -1.

    Raises:
        Incomplete: the folder was taken away; ``forget`` does that. StorageFull, ReadOnlyStorage
    """

    def __init__(self, folder: Path, stem: str, *, lengths: bool, second: bool, empty_is: int = -1) -> None:
        self.path = folder / f"{stem}.mdb"
        self.index_path = folder / f"{stem}.idx"
        self._temp = temporary(self.path)
        self._lengths, self._second, self._empty_is = lengths, second, empty_is
        self._hashes: list[np.ndarray] = []
        self._seconds: list[np.ndarray] = []
        self._last = b""
        self._pending = 0
        self.count = 0
        with taken_away(self.path), storage_errors(str(self.path)):
            self._env: lmdb.Environment | None = lmdb.open(
                str(self._temp), subdir=False, map_size=_MAP_BYTES, lock=False, sync=False, metasync=False,
                max_readers=1, meminit=True,
            )  # fmt: skip
            self._txn = self._env.begin(write=True)

    def append(
        self, keys: Sequence[bytes], values: Sequence[Any], hashes: np.ndarray, second: np.ndarray
    ) -> None:
        """Append key-value pairs; keys ascend strictly, also from call to call.

        Raises:
            OutOfOrder, StorageFull, ReadOnlyStorage
        """
        put, last = self._txn.put, self._last
        with storage_errors(str(self.path)):
            for key, value in zip(keys, values, strict=True):
                # LMDB itself only answers False to a key out of order; a lost record must be an error.
                if key <= last or not put(key, value, append=True):
                    raise OutOfOrder(
                        f"{self.path}: key {key!r} after {last!r}; add users in strictly ascending order"
                    )
                last = key
                self._pending += len(value) + 48
                if self._pending >= COMMIT_BYTES:
                    self._commit()
                    assert self._env is not None  # it is closed by what ends the file
                    self._txn = self._env.begin(write=True)
                    put, self._pending = self._txn.put, 0
        self._last = last
        self.count += len(keys)
        self._hashes.append(hashes)
        self._seconds.append(second)

    def _commit(self) -> None:
        try:
            self._txn.commit()
        except lmdb.Error as error:
            # LMDB calls it an I/O error when the disk takes only a part of a write because it is full.
            room = os.statvfs(self.path.parent)
            if "Input/output error" in str(error) and room.f_bavail * room.f_frsize < self._pending + _MARGIN:
                raise OSError(errno.ENOSPC, "No space left on device", str(self._temp)) from error
            raise

    def finish(self) -> dict[str, FileFact]:
        """Commit, check, write the index, fsync and rename both files. Facts by file name.

        The caller fsyncs the folder.

        Raises:
            Damaged: what was read back is not what was written. StorageFull, ReadOnlyStorage
            Incomplete: the unfinished file was taken away; ``forget`` does that.
        """
        with taken_away(self.path), storage_errors(str(self.path)):
            return self._finish()

    def _finish(self) -> dict[str, FileFact]:
        self._commit()
        assert self._env is not None
        self._env.close()
        self._env = None
        fsync(self._temp)
        size = self._temp.stat().st_size
        data = np.memmap(self._temp, np.uint8, "r")
        entries = pages.walk(data, str(self.path))
        self._check(data, entries)
        tomb = entries.length == self._empty_is
        words = index.build(
            np.concatenate([np.zeros(0, np.uint64), *self._hashes]),
            np.concatenate([np.zeros(0, np.uint64), *self._seconds]) if self._second else None,
            data[entries.offset[:, None] + np.arange(8)].view("<u8")[:, 0],
            np.where(tomb, 0, entries.offset),
            entries.length if self._lengths else None,
            size,
        )
        del data
        with replacing(self.index_path) as index_temp:
            with open(index_temp, "wb") as file:
                file.write(words.data)
                file.flush()
                os.fsync(file.fileno())
            facts = {p.name: _fact(t) for p, t in ((self.path, self._temp), (self.index_path, index_temp))}
        os.replace(self._temp, self.path)
        return facts

    def _check(self, data: np.ndarray, entries: pages.LeafEntries) -> None:
        """Compare our reading of the pages with LMDB's own, entry by entry."""
        if len(entries.keys) != self.count:
            raise Damaged(
                f"{self.path}: wrote {self.count} entries, found {len(entries.keys)}; write the shard again"
            )
        flat = memoryview(data)
        env = lmdb.open(str(self._temp), subdir=False, readonly=True, lock=False, max_readers=1)
        try:
            with env.begin(buffers=True) as txn, txn.cursor() as cursor:
                places = zip(entries.keys, entries.offset.tolist(), entries.length.tolist(), strict=True)
                for (key, value), (our_key, offset, length) in zip(cursor, places, strict=True):
                    head = min(length, 64)
                    ours = (our_key, length, flat[offset : offset + head])
                    if (bytes(key), len(value), value[:head]) != ours:
                        raise Damaged(
                            f"{self.path}: LMDB disagrees about key {bytes(key)!r}; write the shard again"
                        )
        finally:
            env.close()

    def abandon(self) -> None:
        """Drop what was written; harmless after :meth:`finish`."""
        if self._env is not None:
            with contextlib.suppress(lmdb.Error):
                self._txn.abort()
            self._env.close()
            self._env = None
        self._temp.unlink(missing_ok=True)


def _fact(path: Path) -> FileFact:
    return FileFact(path.stat().st_size, digest_file(path))
