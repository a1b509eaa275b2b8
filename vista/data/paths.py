"""Files by URI: local paths, any filesystem that fsspec knows, else any that PyArrow knows (``s3://``, ``gs://``)."""

from __future__ import annotations

import codecs
import errno
import glob as local_glob
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
from fsspec.core import url_to_fs
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem

from vista.errors import DataError

_LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def without_login(text: str) -> str:
    """A text in which no address shows the login that it has."""
    return _LOGIN.sub("***", text)


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


@contextmanager
def open_text(uri: str, encoding: str = "") -> Iterator[Any]:
    """A text log's bytes as UTF-8: unpacked as its name ends, recoded where the encoding is named or a mark tells
    UTF-16 or UTF-32. Bytes that the encoding does not have stay as they are.

    Raises:
        UNREADABLE: also while it is read.
    """
    ending = os.path.splitext(uri.lower())[1]
    with ExitStack() as opened:
        stream: Any = opened.enter_context(open_input(uri))
        if ending == ".zip":
            archive = opened.enter_context(zipfile.ZipFile(stream))
            names = [n for n in archive.namelist() if not n.endswith("/") and not n.startswith("__MACOSX/")]
            if len(names) != 1:
                raise ValueError(f"an archive of {len(names)} files {names[:5]}: unpack it")
            if archive.getinfo(names[0]).flag_bits & 1:
                raise ValueError("an archive with a password: unpack it")
            stream = opened.enter_context(archive.open(names[0]))
        elif ending == ".xz":
            stream = opened.enter_context(lzma.open(stream))
        else:
            stream = opened.enter_context(pa.input_stream(stream, compression=COMPRESSED.get(ending)))
        head = stream.read(4)
        marks = [name for mark, name in _MARKED if head.startswith(mark)]
        found = encoding or (marks[0] if marks else "")
        plain = not found or codecs.lookup(found).name == "utf-8"
        yield Rejoined(head, stream) if plain else _Recoded(Rejoined(head, stream), found)


class Stream:
    """What PyArrow asks of a stream beside ``read``."""

    closed = False

    def close(self) -> None:
        self.closed = True


class Rejoined(Stream):
    """A stream of which the first bytes were read already."""

    def __init__(self, head: bytes, rest: Any):
        self._head, self._rest = head, rest

    def read(self, size: int = -1) -> bytes:
        part, self._head = (self._head, b"") if size < 0 else (self._head[:size], self._head[size:])
        if len(part) == size:
            return part
        return bytes(part + (self._rest.read() if size < 0 else self._rest.read(size - len(part))))


class _Recoded:
    """A stream as UTF-8."""

    def __init__(self, rest: Any, encoding: str):
        self._rest, self._ready = rest, b""
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogateescape")

    def read(self, size: int = -1) -> bytes:
        more = b" "
        while more and (size < 0 or not self._ready):
            more = self._rest.read(size)
            self._ready += self._decoder.decode(more, final=not more).encode("utf-8", "surrogateescape")
        out, self._ready = (self._ready, b"") if size < 0 else (self._ready[:size], self._ready[size:])
        return out


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
    """Put one local file in the place of another, in one step."""
    with open(local_path(source), "rb") as file:
        os.fsync(file.fileno())
    os.replace(local_path(source), local_path(target))


def exists(uri: str) -> bool:
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


def remove(uris: Iterable[str]) -> None:
    """Delete files; those already gone are fine."""
    for uri in uris:
        fs, path = filesystem(uri)
        with suppress(FileNotFoundError):
            fs.rm_file(path)


def is_full(error: BaseException) -> bool:
    """Whether an error means that a disk is full: no fault of what was read."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def size(uri: str) -> int:
    """Bytes of a file."""
    if is_local(uri):
        return os.path.getsize(local_path(uri))
    fs, path = filesystem(uri)
    return int(fs.size(path))


TEXT_ENDINGS = (".csv", ".tsv", ".inter", ".jsonl", ".ndjson", ".json", ".txt", ".dat", ".data")
JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
NAMED_ENDINGS = (".txt", ".dat", ".data", ".json")
"""Text that is a log where it is named itself, or its folder holds no other logs; beside those it may be anything."""
TABLE_ENDINGS = (".parquet", ".pq", ".parq", ".feather", ".arrow", ".ipc", ".orc")
ARRAY_ENDINGS = (".npy", ".npz")
_MAGIC = {b"PAR1": ".parquet", b"ARROW1": ".arrow", b"ORC": ".orc"}
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".xz": "xz", ".zip": "zip"}
UNREADABLE = (
    OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RecursionError
)  # fmt: skip
"""Errors of text that is broken, or packed in a way that is not known."""
_MARKED = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def text_ending(path: str) -> str:
    """One of :data:`TEXT_ENDINGS`, also before one of :data:`COMPRESSED`; empty for what is no text log by its name, or
    by its first bytes where its name has no ending."""
    stem, last = os.path.splitext(path.lower())
    found = os.path.splitext(stem)[1] if last in COMPRESSED else last or _ending_by_content(path)
    return found if found in TEXT_ENDINGS else ""


def table_ending(path: str) -> str:
    """One of :data:`TABLE_ENDINGS`, else empty; as :func:`text_ending`."""
    found = os.path.splitext(path.lower())[1] or _ending_by_content(path)
    return found if found in TABLE_ENDINGS else ""


def _ending_by_content(path: str) -> str:
    """The ending that a file without one might have (Hadoop's ``part-00000``, Hive's ``000000_0``), else empty."""
    try:
        fs, name = filesystem(path)
        with fs.open(name, "rb") as file:
            head = file.read(512)
    except OSError:
        return ""
    for mark, ending in _MAGIC.items():
        if head.startswith(mark):
            return ending
    if not head or b"\0" in head:
        return ""
    return ".json" if head.lstrip()[:1] in (b"{", b"[") else ".txt"


def array_ending(path: str) -> str:
    """One of :data:`ARRAY_ENDINGS`, else empty."""
    found = os.path.splitext(path.lower())[1]
    return found if found in ARRAY_ENDINGS else ""


def expand(patterns: Iterable[str], left_out: list[str] | None = None) -> list[str]:
    """Files named by paths, folders (every log below) or globs (files, and the logs below their folders).

    What each pattern names is in order of name, numbers by size (``part-10`` behind ``part-9``); patterns stay in the
    order given, each file once. Names below a folder that begin with ``_`` or ``.`` are no logs (``_temporary``,
    ``_delta_log``); a name that exists is never taken for a glob. Tables, stores, bundles and runs of ours below a
    folder are passed over, so that a home may lie among the logs.

    Args:
        left_out: takes the files below folders that are no logs by their endings, and our own folders.

    Raises:
        DataError: a pattern that names no file.
    """
    found: dict[str, None] = {}
    passed: list[str] = []
    for pattern in patterns:
        names: list[str] = []
        others: list[str] = []
        for name, is_folder in _named(pattern):
            named = not is_folder and name == os.path.abspath(local_path(pattern))
            if is_local(name) and not named and is_ours(name):
                passed.append(name)
                continue
            below = _files_below(name, passed) if is_folder else [name]
            logs = [n for n in below if not is_folder or is_log(n)]
            if not logs:  # any text but a README
                logs = [n for n in below if text_ending(n) and re.search(r"\.|\d", os.path.basename(n))]
            names += logs
            if left_out is not None:
                left_out += sorted(set(below) - set(logs))
            others += below
        if not names:
            few = f"only {', '.join(sorted(others)[:5])}" if others else "none"
            raise DataError(
                f"{pattern}: expected at least one log, found {few}; check the path or the glob, then run "
                f"vista ingest again"
            )
        found.update(dict.fromkeys(sorted(names, key=natural)))
    if left_out is not None:
        left_out += passed
    return list(found)


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts names as people do: runs of digits by their number."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), part) if part.isdecimal() else (0, 0, part) for part in parts]


def partitions(uri: str) -> dict[str, str | None]:
    """Columns that stand in the folders of a path (``.../surface=home/part-0.parquet``), as Hive and Spark write
    them."""
    found: dict[str, str | None] = {}
    for part in uri.split("/")[:-1]:
        name, equals, value = part.partition("=")
        if equals and name:
            value = unquote(value)
            found[unquote(name)] = None if value == "__HIVE_DEFAULT_PARTITION__" else value
    return found


def _named(pattern: str) -> list[tuple[str, bool]]:
    """(file or folder, is it a folder) that a path or glob names."""
    if is_local(pattern):
        path = local_path(pattern)
        names = [path] if os.path.exists(path) else _globbed(path)
        if "**" in path:  # its folders' files are named by themselves
            names = [n for n in names if not os.path.isdir(n)]
        found = [(os.path.abspath(n), os.path.isdir(n)) for n in names]
        return [(n, folder) for n, folder in found if folder or os.path.isfile(n)]
    fs, path = filesystem(pattern)
    names = [path] if not local_glob.has_magic(path) or fs.exists(path) else fs.glob(path)
    return [(fs.unstrip_protocol(n), fs.isdir(n)) for n in names if fs.exists(n)]


def _globbed(pattern: str) -> list[str]:
    """Names of a glob; folders that exist as they are written are no pattern, and ``*`` finds no hidden name."""
    fixed, rest = "", pattern.split("/")
    while rest and (not local_glob.has_magic(rest[0]) or os.path.exists(fixed + rest[0])):
        fixed += rest.pop(0) + ("/" if rest else "")
    names = local_glob.glob(local_glob.escape(fixed) + "/".join(rest), recursive=True)

    def hidden(name: str) -> bool:
        return any(p.startswith(("_", ".")) and p not in rest for p in name[len(fixed) :].split("/"))

    spelled = any(part.startswith(("_", ".")) for part in rest)
    return names if spelled else [n for n in names if not hidden(n)]


_MARKS = {
    "run.json": b'"run_id"',
    "run.lock": b"",
    "FORMAT": b"vista-store ",
    "bundle.json": b"vista-bundle ",
    "catalog.db": b"SQLite format 3",
}
"""Files by which our own folders are known, and what the first bytes of each hold."""


def is_ours(path: str) -> bool:
    """Whether a folder is one of tables, a store, a bundle or a run, by what lies in it and what that says; or a file
    or folder belongs to such a one beside it (``model.training``, ``model.items.parquet``)."""
    folder, name = os.path.split(path)
    stem = name.partition(".")[0]
    return _is_marked(path) or (stem not in ("", name) and _is_marked(os.path.join(folder, stem)))


def _is_marked(folder: str) -> bool:
    for name, says in _MARKS.items():
        with suppress(OSError), open(os.path.join(folder, name), "rb") as file:
            if says in file.read(4096):
                return name != "catalog.db" or os.path.isdir(os.path.join(folder, "vista", "history"))
    return False


def _files_below(folder: str, ours: list[str]) -> list[str]:
    """Files below a folder; ``ours`` takes the folders that were passed over because our jobs write them."""
    if is_local(folder):
        found: list[str] = []
        seen: set[str] = set()
        for root, folders, files in os.walk(folder, followlinks=True):
            real = os.path.realpath(root)
            if real in seen:  # a link that leads back
                folders.clear()
                continue
            seen.add(real)
            folders[:] = [f for f in folders if not f.startswith(("_", "."))]
            own = [f for f in folders if is_ours(os.path.join(root, f))]
            beside = (*(f"{f}." for f in own), "_", ".")
            ours += [os.path.join(root, f) for f in own]
            folders[:] = [f for f in folders if f not in own and not f.startswith(beside)]
            found += [os.path.join(root, f) for f in files if not f.startswith(beside)]
        return found
    fs, path = filesystem(folder)
    below = fs.find(path)
    hidden = [any(p.startswith(("_", ".")) for p in n[len(path) :].split("/") if p) for n in below]
    return [fs.unstrip_protocol(n) for n, h in zip(below, hidden, strict=True) if not h]


def logs_below(folder: str) -> list[str]:
    """Every log below a folder, as :func:`expand` finds them."""
    return [name for name in _files_below(folder, []) if is_log(name)]


def is_log(path: str) -> bool:
    """Whether a file below a folder is a log, by its ending."""
    return bool(table_ending(path) or (text_ending(path) and text_ending(path) not in NAMED_ENDINGS))
