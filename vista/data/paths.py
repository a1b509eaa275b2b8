"""Files by URI: local paths, any filesystem that fsspec knows, else any that PyArrow knows (``s3://``, ``gs://``)."""

from __future__ import annotations

import errno
import glob as local_glob
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
from fsspec.core import url_to_fs
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem

from vista.errors import DataError


def is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> str:
    """The path behind ``file://`` or of a bare local name."""
    return uri.removeprefix("file://")


def as_uri(path: str | Path) -> str:
    """Absolute URI of a local path; other URIs unchanged."""
    text = str(path)
    return "file://" + os.path.abspath(local_path(text)) if is_local(text) else text


def open_input(uri: str) -> Any:
    """Random-access binary file; a memory map where local."""
    if is_local(uri):
        return pa.memory_map(local_path(uri))
    fs, path = filesystem(uri)
    return fs.open(path, "rb")


def open_output(uri: str) -> Any:
    """New binary file; parent folders are made. Object stores show it only once it is closed."""
    fs, path = filesystem(uri)
    fs.makedirs(os.path.dirname(path), exist_ok=True)
    return fs.open(path, "wb")


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """(filesystem, path in it).

    Raises:
        DataError: neither library has a filesystem for the scheme.
    """
    if is_local(uri):
        return LocalFileSystem(), local_path(uri)  # as it is: names may hold what URLs give a meaning
    try:
        return url_to_fs(uri)
    except (ImportError, ValueError) as missing:
        try:
            found, path = pafs.FileSystem.from_uri(uri)
        except (OSError, ValueError, pa.ArrowException):
            raise DataError(
                f"{uri}: no filesystem for this scheme ({missing}); install it and run vista ingest again"
            ) from missing
        return ArrowFSWrapper(found), path


def move(source: str, target: str) -> None:
    """Put ``source`` in the place of ``target``: one atomic rename where local, a server-side move elsewhere."""
    if is_local(source):
        with open(local_path(source), "rb") as file:
            os.fsync(file.fileno())
        os.replace(local_path(source), local_path(target))
        return
    fs, path = filesystem(source)
    fs.mv(path, filesystem(target)[1])


def exists(uri: str) -> bool:
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


def remove(uris: Iterable[str]) -> None:
    """Delete files; those already gone are fine."""
    for uri in uris:
        fs, path = filesystem(uri)
        try:
            fs.rm_file(path)
        except FileNotFoundError:
            pass


def is_full(error: BaseException) -> bool:
    """Whether an error means that a disk is full: no fault of what was read."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def size(uri: str) -> int:
    """Bytes of a file."""
    return (
        os.path.getsize(local_path(uri))
        if is_local(uri)
        else int(filesystem(uri)[0].size(filesystem(uri)[1]))
    )


TEXT_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson")
COMPRESSED = (".gz", ".bz2", ".zst")


def text_ending(path: str) -> str:
    """One of :data:`TEXT_ENDINGS`, also before one of :data:`COMPRESSED`; empty for what is no text log by its name."""
    stem, last = os.path.splitext(path.lower())
    found = os.path.splitext(stem)[1] if last in COMPRESSED else last
    return found if found in TEXT_ENDINGS else ""


def expand(patterns: Iterable[str]) -> list[str]:
    """Files named by paths, folders (every Parquet file and text log below) or globs, sorted, each once.

    Raises:
        DataError: a pattern that names no file.
    """
    found: set[str] = set()
    for pattern in patterns:
        if is_local(pattern):
            path = local_path(pattern)
            if os.path.isdir(path):
                names = [
                    n for n in local_glob.glob(os.path.join(path, "**", "*"), recursive=True) if _is_log(n)
                ]
            else:
                names = local_glob.glob(path, recursive=True) or [path]
            names = [os.path.abspath(n) for n in names if os.path.isfile(n)]
        else:
            fs, path = filesystem(pattern)
            if not local_glob.has_magic(path) and fs.isdir(path):
                names = [n for n in fs.find(path) if _is_log(n)]
            else:
                names = [n for n in fs.glob(path) if fs.isfile(n)]
            names = [fs.unstrip_protocol(n) for n in names]
        if not names:
            raise DataError(
                f"{pattern}: expected at least one file, found none; check the path or the glob, then run "
                f"vista ingest again"
            )
        found.update(names)
    return sorted(found)


def _is_log(path: str) -> bool:
    return path.endswith(".parquet") or bool(text_ending(path))
