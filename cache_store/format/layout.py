"""The directory contract: what lies where, in which order it appears, and how a file becomes durable.

    STORE/
      FORMAT                          "vista-store 1" and the facts that never change for a store
      CURRENT                         pointer of the line "main": the live generation, then earlier ones
      lines/NAME                      pointers of other lines
      SEQUENCE                        last generation number given away; numbers are never used twice
      LOCK                            flock of whoever changes the store: publish, compact, prune, forget, promote
      FORGOTTEN                       salted hashes of forgotten users; what is older does not come in any more
      leases/PID-ID.json              generations that a reader has in use
      staging/RUN/                    shards under construction; becomes a generation by one rename
        BEGAN                         time of the last forgetting when the run began
      generations/00000007/
        manifest.json
        shard-00003-of-00016.mdb      LMDB, one record per user
        shard-00003-of-00016.idx      where each record lies in it
        state-00003-of-00016.mdb/.idx resumable states, read by refresh only
        dead-letters.parquet          optional; users that failed, why
        READY                         digest of manifest.json
      generations/.deleting-00000003/ on its way out; nothing refers to it any more

Order of a publication: every shard is built under a temporary name, checked, fsynced and renamed; then
manifest.json; then READY; then the folder is fsynced and renamed into ``generations/``; then the pointer is
replaced; then its folder is fsynced. A crash at any point leaves the earlier generation live.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import xxhash

from cache_store.errors import (
    Damaged,
    FormatUnknown,
    LimitReached,
    ReadOnlyStorage,
    StorageFull,
    StoreBusy,
    StoreError,
)
from cache_store.format.checked import KIB, Fields, NotSound, json_object, read_bounded

FORMAT_LINE = "vista-store 1"
FEATURES: frozenset[str] = frozenset({"packed_shards"})
"""Feature flags that this version understands."""

MAIN = "main"
MOST_SHARDS = 1 << 20
DEAD_LETTERS = "dead-letters.parquet"
GENERATION = re.compile(r"[0-9]{8,18}")
DELETING = ".deleting-"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
UNPLACED = re.compile(r"\.(.+)\.[0-9a-f]{12}([0-9a-f]{20})?(\.tmp|\.building|\.old)?")
"""Names that are on their way to a place: :func:`temporary`'s, with twelve digits earlier, and those of folders."""


@dataclass(frozen=True)
class StoreFormat:
    """What FORMAT says: facts that hold for every generation of a store.

    Attributes:
        user_kind: ``int64`` or ``string``.
        num_shards: buckets of ``cache_store.format.keys.bucket_of``.
        features: feature flags a reader must understand.
    """

    user_kind: str
    num_shards: int
    features: tuple[str, ...] = ()

    def text(self) -> str:
        facts = {
            "bucket": "xxh64-seed0-mod",
            "features": list(self.features),
            "num_shards": self.num_shards,
            "user_kind": self.user_kind,
        }
        return f"{FORMAT_LINE}\n{json.dumps(facts, sort_keys=True)}\n"

    @staticmethod
    def parse(text: str, path: Path) -> StoreFormat:
        first, _, rest = text.partition("\n")
        if first != FORMAT_LINE:
            what = "read it with a newer version" if first.startswith("vista-store ") else "this is no store"
            raise FormatUnknown(f"{path}: expected {FORMAT_LINE!r}, found {first[:60]!r}; {what}")
        try:
            fields = Fields(json_object(rest))
            features, bucket = fields.list("features"), fields.any("bucket")
            unknown = [f for f in features if not isinstance(f, str) or f not in FEATURES]
            kind = fields.one_of("user_kind", ("int64", "string"))
            out = StoreFormat(kind, fields.integer("num_shards", 1, MOST_SHARDS), tuple(map(str, features)))
        except NotSound as error:
            raise Damaged(
                f"{path}: second line is not the expected JSON ({error}); restore the file"
            ) from error
        if unknown or bucket != "xxh64-seed0-mod":
            what = f"features {unknown}" if unknown else f"bucket function {bucket!r}"
            raise FormatUnknown(f"{path}: {what} unknown to this version; read the store with a newer one")
        if text != out.text():
            raise Damaged(f"{path}: not the canonical text of its own facts; restore the file")
        return out


def holds_store(root: str | Path) -> bool:
    """Whether a store lies there, be it one that lost its FORMAT: who opens it is told. An empty folder holds none."""
    path = Path(root)
    return path.is_dir() and any(not p.name.startswith(".FORMAT") for p in path.iterdir())


class Layout:
    """Paths of one store."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()  # a process that goes elsewhere stays with its store
        self.format = self.root / "FORMAT"
        self.sequence = self.root / "SEQUENCE"
        self.lock = self.root / "LOCK"
        self.forgotten = self.root / "FORGOTTEN"
        self.leases = self.root / "leases"
        self.staging = self.root / "staging"
        self.lines = self.root / "lines"
        self.generations = self.root / "generations"

    def make(self, wanted: StoreFormat) -> None:
        """Make an empty store, or leave the one with the same facts that is there.

        Raises:
            FormatUnknown: the folder is not empty and no store, or a store with other facts.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        if not self.format.exists():
            foreign = [p.name for p in self.root.iterdir() if not p.name.startswith(".FORMAT")]
            if foreign:
                raise FormatUnknown(
                    f"{self.root}: expected an empty folder, found {sorted(foreign)[:5]}; choose another"
                )
            write_file(self.format, wanted.text().encode())
        if (found := self.read_format()) != wanted:
            raise FormatUnknown(f"{self.root}: is a store of {found}, expected {wanted}; choose another")
        for folder in (self.generations, self.staging, self.lines, self.leases):
            folder.mkdir(exist_ok=True)
        fsync(self.root)

    def pointer(self, line: str) -> Path:
        """Pointer file of a line; ``CURRENT`` for ``main``."""
        return self.root / "CURRENT" if line == MAIN else self.lines / check_name(line, "line")

    def generation(self, name: str) -> Path:
        return self.generations / name

    def run(self, run_id: str) -> Path:
        return self.staging / check_name(run_id, "run id")

    def line_names(self) -> list[str]:
        """Every line that has a pointer, ``main`` first."""
        out = [MAIN] if self.pointer(MAIN).exists() else []
        if self.lines.is_dir():
            out += sorted(p.name for p in self.lines.iterdir() if NAME.fullmatch(p.name) and p.name != MAIN)
        return out

    def generation_names(self) -> list[str]:
        """Folders of generations, ascending; published or orphaned."""
        if not self.generations.is_dir():
            return []
        found = [p.name for p in self.generations.iterdir() if GENERATION.fullmatch(p.name)]
        return sorted(found, key=int)

    def read_format(self) -> StoreFormat:
        """What FORMAT says.

        Raises:
            FormatUnknown, Damaged
        """
        try:
            return StoreFormat.parse(read_bounded(self.format, 64 * KIB).decode(), self.format)
        except (FileNotFoundError, NotADirectoryError) as error:
            lost = "it held generations; restore the file, or move the folder away and then"
            what = lost if self.generation_names() else "so this is no store; name another, or"
            raise FormatUnknown(
                f"{self.root}: no file FORMAT, {what} make one with `vista summarize`"
            ) from error
        except (UnicodeDecodeError, NotSound) as error:
            raise Damaged(f"{self.format}: {error}; restore the file") from error


def check_name(name: str, what: str) -> str:
    """``name`` if it is safe as a file name.

    Raises:
        StoreError
    """
    if not NAME.fullmatch(name):
        raise StoreError(f"{what}: expected 1 to 128 of letters, digits, '.', '_', '-', found {name!r}")
    return name


def shard_name(shard: int, num_shards: int, revision: int = 0, kind: str = "shard") -> str:
    """Stem of a shard's files; ``forget`` writes a new revision, for no file is ever overwritten."""
    return f"{kind}-{shard:05d}-of-{num_shards:05d}" + (f".r{revision}" if revision else "")


def state_name(shard: int, num_shards: int, revision: int = 0) -> str:
    """Stem of a shard's state files."""
    return shard_name(shard, num_shards, revision, "state")


def temporary(path: Path) -> Path:
    """A name beside ``path`` that no reader looks at and ``prune`` sweeps: of the form of ``vista.small_text``."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


@contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """An empty file beside ``path`` to write to; it takes the place of ``path`` when the body ends well. Its writer
    holds a lock on it, for :func:`abandoned`."""
    temp = temporary(path)
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with suppress(OSError):  # a filesystem without locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield temp
        os.replace(temp, path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def abandoned(path: Path) -> str | None:
    """Name of the place that a killed writer of ``path`` had in mind; None: it lives, or that is no name of ours."""
    named = UNPLACED.fullmatch(path.name)
    if named is None:
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError:  # a filesystem without locks: its age has to tell
        pass
    finally:
        mode = os.fstat(fd).st_mode
        os.close(fd)
    return named[1] if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else None


def fsync(path: Path) -> None:
    """Of a file, or of the names in a folder."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` atomically and durably: temporary name, fsync, rename, fsync of the folder."""
    with replacing(path) as temp, open(temp, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fsync(path.parent)


def digest_file(path: str | Path) -> str:
    """XXH3-128 of a file, 32 hex digits."""
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        buffer = memoryview(bytearray(min(1 << 21, max(1, os.fstat(file.fileno()).st_size))))
        while n := file.readinto(buffer):
            digest.update(buffer[:n])
    return digest.hexdigest()


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn a full disk, a read-only filesystem or a limit of the process into the typed error, naming what was being
    done."""
    try:
        yield
    except (StorageFull, ReadOnlyStorage, LimitReached):
        raise
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else None
        text = str(error)
        if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or "MDB_MAP_FULL" in text:
            raise StorageFull(
                f"{what}: no space left ({text}); the live generation is untouched; free space "
                f"(`vista prune` removes what no reader needs) and run the same command again"
            ) from error
        if code in (errno.EROFS, errno.EACCES, errno.EPERM) or "Read-only file system" in text:
            raise ReadOnlyStorage(
                f"{what}: storage refuses writes ({text}); the live generation is untouched; make it writable "
                f"and run the same command again"
            ) from error
        for limit, said in _LIMITS.items():
            if code == limit or os.strerror(limit) in text:
                raise LimitReached(
                    f"{what}: {text}; the live generation is untouched; {said}, and run the same command again"
                ) from error
        raise


_LIMITS = {
    errno.EFBIG: "raise the limit of file sizes (`ulimit -f`)",
    errno.ENOMEM: "files are written through 4 TiB of addresses: raise `ulimit -v`",
    errno.EMFILE: "raise `ulimit -n`",
}


@contextmanager
def exclusive(layout: Layout, what: str, wait: bool = True) -> Iterator[None]:
    """Hold the store's lock: one process changes generations or pointers at a time. Released by death, too.

    Raises:
        StoreBusy: another process holds it and ``wait`` is False. ReadOnlyStorage
    """
    with storage_errors(what):
        fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise StoreBusy(
                f"{layout.root}: {what} must wait for another process; try again later"
            ) from error
        yield
    finally:
        os.close(fd)
