"""Files below one URL, through fsspec: whole small objects, streamed large ones, every failure typed.

Object stores show an object whole or not at all; other filesystems may show half a file. So nothing here trusts a
name: contents are compared with digests, and what marks completeness is written last.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
import xxhash
from fsspec.implementations.local import LocalFileSystem

from cache_store.errors import Damaged, StoreError
from cache_store.format.layout import fsync, write_file
from cache_store.format.receipt import FileFact

CHUNK = 1 << 22
_LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")


class RemoteError(StoreError):
    """The remote side cannot be read or written; what was copied so far is kept and used by the next attempt."""

    exit_code = 4


class RemoteFiles:
    """Objects below a URL.

    Args:
        url: anything fsspec opens: ``s3://bucket/prefix``, ``gs://…``, ``file:///…``, ``memory://…``.
        storage_options: for the filesystem, such as credentials.

    Raises:
        RemoteError: the protocol is unknown or its package is not installed.
    """

    def __init__(self, url: str, storage_options: dict[str, Any] | None = None) -> None:
        self.url = url.rstrip("/")
        self._told = _LOGIN.sub("***", self.url)
        with self._typed(""):
            self.fs, root = fsspec.core.url_to_fs(
                self.url, **{"use_listings_cache": False, **(storage_options or {})}
            )
        self._root = root.rstrip("/")
        self._local = isinstance(self.fs, LocalFileSystem)

    def name(self, path: str) -> str:
        """Full URL of an object, for texts: without a login that it has."""
        return f"{self._told}/{path}"

    def read(self, path: str, limit: int) -> bytes | None:
        """A small object, or None where there is none.

        Raises:
            Damaged: it has more than ``limit`` bytes; no more than these are read.
        """
        with self._typed(path):
            try:
                with self.fs.open(self._at(path), "rb", block_size=64 << 10) as source:
                    parts, size = [], 0
                    while size <= limit and (block := source.read(min(CHUNK, limit + 1 - size))):
                        parts.append(block)
                        size += len(block)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None
        if size > limit:
            raise Damaged(
                f"{self.name(path)}: expected at most {limit} bytes, found more; run `vista push` again where it came "
                f"from"
            )
        return b"".join(parts)

    def write(self, path: str, data: bytes) -> None:
        """Replace a small object as a whole."""
        with self._typed(path):
            self._parents(path)
            if self._local:
                write_file(Path(self._at(path)), data)
            else:
                self.fs.pipe_file(self._at(path), data)

    def size(self, path: str) -> int | None:
        """Bytes of an object, or None where there is none."""
        with self._typed(path):
            try:
                return int(self.fs.info(self._at(path))["size"])
            except (FileNotFoundError, NotADirectoryError):
                return None

    def digest(self, path: str) -> str:
        """XXH3-128 of an object as it reads now."""
        digest = xxhash.xxh3_128()
        with self._typed(path), self.fs.open(self._at(path), "rb") as source:
            while block := source.read(CHUNK):
                digest.update(block)
        return digest.hexdigest()

    def folders(self, path: str) -> list[str]:
        """Names directly below a folder, ascending."""
        with self._typed(path):
            try:
                self.fs.invalidate_cache()
                found = self.fs.ls(self._at(path), detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted({name.rstrip("/").rpartition("/")[2] for name in found})

    def upload(self, source: Path, path: str, fact: FileFact) -> None:
        """Copy a file up and read it back.

        Raises:
            Damaged: the local file is not what its manifest states. RemoteError: the copy does not read back.
        """
        digest, size = xxhash.xxh3_128(), 0
        with open(source, "rb", buffering=0) as file:
            with self._typed(path):
                self._parents(path)
                target = self.fs.open(self._at(path), "wb")
            try:
                while block := file.read(CHUNK):
                    digest.update(block)
                    size += len(block)
                    with self._typed(path):
                        target.write(block)
            finally:
                with self._typed(path):
                    target.close()
        if (size, digest.hexdigest()) != (fact.bytes, fact.digest):
            self.remove(path)
            raise Damaged(
                f"{source}: expected {fact.bytes} bytes of digest {fact.digest}, found {size} of "
                f"{digest.hexdigest()}; nothing was published remotely; run `vista verify`"
            )
        if self._local:
            fsync(Path(self._at(path)))
        if self.size(path) != fact.bytes or self.digest(path) != fact.digest:
            raise RemoteError(
                f"{self.name(path)}: does not read back as written; run the same `vista push` again"
            )

    def download(self, path: str, part: Any, fact: FileFact) -> None:
        """Fill an open local file (``r+b``) with an object, going on after the bytes that it holds already.

        Raises:
            RemoteError: gone or unreadable. Damaged: the object is not what its manifest states.
        """
        for whole in (False, True):
            digest = xxhash.xxh3_128()
            part.seek(0)
            if whole or os.fstat(part.fileno()).st_size > fact.bytes:
                part.truncate(0)
            while block := part.read(CHUNK):
                digest.update(block)
            had = part.tell()
            with self._typed(path):
                source = self.fs.open(self._at(path), "rb")
            with source:
                if had:
                    with self._typed(path):
                        source.seek(had)
                while part.tell() <= fact.bytes:  # one byte more than stated is enough to know
                    with self._typed(path):
                        block = source.read(min(CHUNK, fact.bytes + 1 - part.tell()))
                    if not block:
                        break
                    digest.update(block)
                    part.write(block)
            if part.tell() == fact.bytes and digest.hexdigest() == fact.digest:
                part.flush()
                os.fsync(part.fileno())
                return
            if not had:  # what an earlier attempt left may be to blame: once more, from the first byte
                break
        found = part.tell()
        part.truncate(0)
        raise Damaged(
            f"{self.name(path)}: expected {fact.bytes} bytes of digest {fact.digest}, found {found} of "
            f"{digest.hexdigest()}; nothing was published here; run `vista push` again where it came from"
        )

    def remove(self, path: str) -> None:
        """Delete an object or a folder with all below it; harmless where there is none."""
        with self._typed(path), suppress(FileNotFoundError, NotADirectoryError):
            self.fs.rm(self._at(path), recursive=True)

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _parents(self, path: str) -> None:
        self.fs.makedirs(self._at(path).rpartition("/")[0], exist_ok=True)

    @contextmanager
    def _typed(self, path: str) -> Iterator[None]:
        """Filesystems raise what they like; whatever it is, the text names the object and the remedy."""
        try:
            yield
        except StoreError:
            raise
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RemoteError(
                f"{self.name(path)}: not there ({error}); run `vista push` where it came from"
            ) from error
        except Exception as error:
            said = str(error).replace(self.url, self._told)
            raise RemoteError(
                f"{self.name(path)}: {type(error).__name__}: {said}; the local store is as before; run the same "
                f"command again, it goes on where it stopped"
            ) from error
