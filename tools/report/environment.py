"""What this machine gives to the product: versions, kernels, file systems, limits, and what will not work here."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tools.report import store_seen
from tools.report.health import size

OK, NOTE, NO = "ok", "note", "no"
PACKAGES = ("vista-cache", "torch", "numpy", "lmdb", "msgpack", "apache-beam", "faiss-cpu", "pyarrow", "pyiceberg",
            "safetensors", "typer", "rich", "matplotlib", "fsspec")  # fmt: skip
EXTRAS = {"prometheus_client": "Prometheus metrics of readers", "s3fs": "stores and tables on S3",
          "gcsfs": "stores and tables on Google Cloud Storage"}  # fmt: skip
NETWORK = {
    "nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "lustre", "ceph", "glusterfs",
}  # fmt: skip


@dataclass(frozen=True)
class LookedAt:
    """One thing looked at.

    Attributes:
        about: what.
        found: how it is.
        verdict: ``ok``; ``note``, works with a limit; ``no``, will not work here.
        remedy: what would change that.
    """

    about: str
    found: str
    verdict: str = OK
    remedy: str = ""


def checks(folder: Path, store: Path) -> Iterator[LookedAt]:
    """Everything, in the order in which it is read.

    Args:
        folder: of the home; probed by small files that are removed again, if it may be written.
        store: of the cache; its shards decide how many files and mappings a reader needs.
    """
    yield from _versions()
    yield from _processor()
    yield from _file_system(folder)
    yield from _limits(store)


def _versions() -> Iterator[LookedAt]:
    yield LookedAt("python", f"{platform.python_version()} on {platform.platform()}")
    for name in PACKAGES:
        try:
            yield LookedAt(name, version(name))
        except PackageNotFoundError:
            verdict = NOTE if name == "vista-cache" else NO
            yield LookedAt(name, "not installed", verdict, "pip install -e . in the checkout")
    for module, what in EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            yield LookedAt(module, f"not installed: no {what}", NOTE, f"pip install {module}")


def _processor() -> Iterator[LookedAt]:
    from cache_store.native import library

    kernel = library.kernel()
    slow = "cache_store's compiled part was not built: lookups are about half as fast"
    remedy = f"{slow}; install gcc and libc6-dev, then pip install -e ."
    yield _judged("store reads by", kernel, OK if kernel == "native" else NOTE, remedy)
    cores = len(os.sched_getaffinity(0))
    yield LookedAt("cores", f"{cores} may be used, {os.cpu_count()} are there")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    bound = _cgroup_memory()
    told = size(memory) + (f", this container may use {size(bound)}" if bound else "")
    verdict = NOTE if min(memory, bound or memory) < 2 << 30 else OK
    yield _judged("memory", told, verdict, "a worker needs about 1 GiB; see `vista plan`")
    threads = os.environ.get("OMP_NUM_THREADS")
    remedy = "set it to 1: more threads were measured slower (Threads)"
    yield _judged("OMP_NUM_THREADS", threads or "not set", OK if threads == "1" else NOTE, remedy)
    gpu = Path("/dev/nvidia0").exists()
    yield LookedAt("GPU", "there" if gpu else "none; everything runs on the CPU")
    for program, what in (("java", "Flink and Spark job servers"), ("cc", "building the compiled part")):
        if shutil.which(program) is None:
            yield LookedAt(program, f"not found: no {what}", NOTE, f"install it if you need {what}")


def _cgroup_memory() -> int | None:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            found = int(Path(path).read_text())
            return found if found < 1 << 60 else None
    return None


def _file_system(folder: Path) -> Iterator[LookedAt]:
    there = store_seen.there(folder)
    kind = file_system(there)
    remedy = (
        "tables' SQLite catalog and readers want a local disk (docs/operations.md, Where the files must be)"
    )
    yield _judged(f"file system of {folder}", kind, NOTE if kind in NETWORK else OK, remedy)
    if not os.access(there, os.W_OK):
        yield LookedAt("writing there", "not allowed", NOTE, "reading works; jobs need a folder of their own")
        return
    with tempfile.TemporaryDirectory(prefix=".vista-doctor-", dir=there) as temp:
        for name, probe in (("atomic rename", _rename), ("locks (flock)", _flock), ("locks of SQLite", _sqlite),
                            ("memory maps", _map)):  # fmt: skip
            try:
                probe(Path(temp))
                yield LookedAt(name, "works")
            except Exception as error:
                yield LookedAt(name, f"fails: {error}", NO, "put the home on a local file system")
    free = shutil.disk_usage(there).free
    yield _judged("disk", f"{size(free)} left", NOTE if free < 1 << 30 else OK, "make room")


def file_system(path: Path) -> str:
    """Type of the file system of a path, as the kernel calls it."""
    best, kind = "", "unknown"
    with contextlib.suppress(OSError):
        for row in Path("/proc/mounts").read_text().splitlines():
            words = row.split()
            place = words[1].replace("\\040", " ")
            if len(place) >= len(best) and path.resolve().is_relative_to(place):
                best, kind = place, words[2]
    return kind


def _rename(folder: Path) -> None:
    (folder / "a").write_text("new")
    (folder / "b").write_text("old")
    os.replace(folder / "a", folder / "b")
    if (folder / "b").read_text() != "new":
        raise OSError("the old file is still there")


def _flock(folder: Path) -> None:
    with open(folder / "lock", "w") as one, open(folder / "lock", "w") as two:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        raise OSError("two may hold one lock")


def _sqlite(folder: Path) -> None:
    import sqlite3

    with contextlib.closing(sqlite3.connect(folder / "probe.db")) as one:
        one.execute("create table t (a)")
        one.commit()


def _map(folder: Path) -> None:
    import mmap

    (folder / "map").write_bytes(b"x" * 4096)
    with open(folder / "map", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        if mapped[:1] != b"x":
            raise OSError("the map does not show the file")


def _limits(store: Path) -> Iterator[LookedAt]:
    need, why = _files_needed(store)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    told = f"{soft:,} allowed ({hard:,} at most), a reader needs about {need:,} ({why})"
    remedy = f"ulimit -n {need * 2}, fewer shards, or `vista compact`"
    yield _judged("open files", told, NO if need > soft * 0.8 else OK, remedy)
    with contextlib.suppress(OSError, ValueError):
        maps = int(Path("/proc/sys/vm/max_map_count").read_text())
        verdict, remedy = NO if need > maps * 0.8 else OK, f"sysctl vm.max_map_count={need * 4}"
        yield _judged("memory maps a process", f"{maps:,} allowed", verdict, remedy)
    with contextlib.suppress(OSError):
        shared = shutil.disk_usage("/dev/shm")
        told = f"{size(shared.free)} of {size(shared.total)} left"
        remedy = "a key-value pool must fit into it; --shm-size of the container"
        yield _judged("shared memory (/dev/shm)", told, NOTE if shared.free < 64 << 20 else OK, remedy)
    encoding = sys.stdout.encoding or "ascii"
    plain = encoding.lower().replace("-", "") != "utf8"
    remedy = "names beyond it are shown as escapes; set LANG=C.UTF-8"
    yield _judged("terminal", encoding, NOTE if plain else OK, remedy)


def _judged(about: str, found: str, verdict: str, remedy: str) -> LookedAt:
    return LookedAt(about, found, verdict, "" if verdict == OK else remedy)


def _files_needed(store: Path) -> tuple[int, str]:
    """Files that a reader of the deepest chain opens: a shard, its index, and its states, of every generation."""
    from cache_store import Store
    from cache_store.errors import StoreError
    from cache_store.format.layout import holds_store

    if not holds_store(store):
        return 256, "no store yet"

    try:
        opened = Store(store)
        depth = max((m.depth for m in opened.generations()), default=0) + 1
        shards = opened.format.num_shards
    except StoreError as error:
        return 256, str(error)
    return 64 + 4 * shards * depth, f"{shards} shards, {depth} generations deep"
