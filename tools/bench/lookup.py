"""Batches of random users out of a warm store, against a memory copy of as many bytes and against other stores.

All sides of one run hold the same records of 32 KiB (8 pages of LMDB: 32,704 bytes of record), all in memory (page
cache or the server's own), and answer the same batches of 512 distinct users into one reused array of 16 MiB.

    memcpy      ``np.copyto`` of 512 consecutive records of a 16 MiB-aligned place of an array as large as the store
    ours        ``Store.lookup_raw(users, out=...)``: stored bytes, status and clocks, as a GPU loader takes them;
                with the store's default of two threads (where there are two cores), and with one beside it;
                ``verified``: every record hashed, the store's default, else only asked whose it is
    rocksdb     rocksdict (RocksDB), one table compacted fully, no compression, a block cache twice the data, or
                mapped reads, whichever is faster in this run; one multi-get, values joined into one array.
                ``rocksdb_default`` is the same with the options that rocksdict has by itself
    ram         ``np.take`` of the same number of random rows of 32 KiB out of a plain array in memory: what random
                access itself costs on this machine
    redis       Debian's redis-server on a unix socket, no persistence; one pipelined MGET of 512 keys by a client
                that knows the reply's size and receives into one buffer (faster than redis-py's parser)

``lookup`` decodes to float32 [512, 255, 64]; its rate counts the stored bytes. Two reader processes: both run the
same side at the same time, started by a barrier, and their median times are compared. Cold: the shard's pages are
dropped from the page cache (``posix_fadvise``) before every batch, on both sides; the other side is 16 threads of
``pread`` of the same records, the disk's own random read rate.

A batch takes a millisecond or two, less than a time slice of the scheduler. So that another process's slice is not
counted as ours or theirs, a side's time in a turn is the fastest of five calls in a row, for every side alike; ratios
are paired within the turn. p50 and p99 are over all calls, slices included.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from cache_store import Group, Publication, RecordSchema, ShardWriter, Store, bucket_of
from cache_store.format.keys import sortable
from cache_store.native import library as native
from tools.bench.harness import Figure, Result, at_once, median, ratio, sized, timed, turns
from tools.bench.redis_rows import RedisRows

BATCH = 512
CALLS = 5
SHARDS = 4
SCHEMAS = {
    "float16": RecordSchema((Group("seeds", 255, 64, "float16"),)),
    "int8": RecordSchema((Group("seeds", 480, 64, "int8"),)),
}


@sized(records=4_096, repeats=7)
def run(
    quick: bool, folder: str | None = None, records: int = 24_576, repeats: int = 41, cold: bool = True
) -> Result:
    """Measure; see the module.

    Args:
        folder: where stores are built (needs about 4 times ``records`` x 32 KiB); a temporary folder by default.
        records: users in every store.
    """
    place = Path(tempfile.mkdtemp(prefix="bench-lookup-", dir=folder))
    figures: dict[str, Figure] = {}
    notes: list[str] = []
    try:
        users = np.arange(records, dtype=np.int64) * 7_919
        rng = np.random.default_rng(0)
        for codec, s in SCHEMAS.items():
            store = Store.create(place / codec, num_shards=SHARDS)
            fill(store, users, s, functools.partial(_drawn, rng, s))
        for codec in SCHEMAS:
            _warm(figures, place / codec, users, repeats, "" if codec == "float16" else f"_{codec}")
        _others(figures, notes, place, users, max(3, repeats // 4))
        _two_processes(figures, place, users, repeats)
        if cold:
            _cold(figures, notes, place, users, 3 if quick else 9)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    row = SCHEMAS["float16"].pages * 4096
    params = {"batch": BATCH, "row_bytes": row, "shards": SHARDS, "kernel": native.kernel()}
    return Result(params, figures, notes)


def fill(
    store: Store, users: np.ndarray, schema: RecordSchema, tokens: Callable[[int], dict[str, np.ndarray]],
    facts: tuple[int, int, int] = (1, 1, 1), step: int = 256, **published: Any,
) -> str:  # fmt: skip
    """Publish a generation, ``step`` users at a time; its name.

    Args:
        tokens: of so many users, by group.
        facts: events, last event's time and summary's time of each user.
        published: of the publication.
    """
    shards = store.format.num_shards
    staging, bucket, receipts = store.stage(f"bench-{len(store.generations())}"), bucket_of(users, shards), []
    for k in range(shards):
        mine = users[bucket == k]
        mine = mine[np.argsort(sortable(mine))]
        with ShardWriter(staging, k, shards, schema, fingerprint="bench") as writer:
            for i in range(0, len(mine), step):
                part = mine[i : i + step]
                writer.add(part, tokens(len(part)), *(np.full(len(part), fact) for fact in facts))
            receipts.append(writer.finish())
    wanted = Publication(fingerprint="bench", watermark_ms=facts[1], expected=len(users), **published)
    return store.publish(staging, receipts, wanted).generation


def _drawn(rng: np.random.Generator, schema: RecordSchema, n: int) -> dict[str, np.ndarray]:
    return {"seeds": rng.standard_normal((n, schema.tokens, schema.width), dtype=np.float32)}


class _Queries:
    """A fresh batch of distinct users at every call; the same sequence for the same seed."""

    def __init__(self, users: np.ndarray, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._batches = [rng.choice(users, BATCH, replace=False) for _ in range(64)]
        self._at = -1

    def __call__(self) -> np.ndarray:
        self._at = (self._at + 1) % len(self._batches)
        return self._batches[self._at]


def _copy_side(out: np.ndarray, records: int, seed: int) -> Callable[[], None]:
    corpus = np.empty((records // BATCH, *out.shape), np.uint8)
    corpus[...] = np.frombuffer(np.random.default_rng(seed).bytes(out.nbytes), np.uint8).reshape(out.shape)
    order = itertools.cycle(np.random.default_rng(seed).integers(0, len(corpus), 97).tolist())
    return lambda: np.copyto(out, corpus[next(order)])


def _warm(figures: dict[str, Figure], path: Path, users: np.ndarray, repeats: int, suffix: str) -> None:
    trusting = Store.open(path, verify=False, lease=False)
    alone = Store.open(path, verify=False, lease=False, threads=1)
    checking = Store.open(path, lease=False)
    schema = trusting.manifest.schema
    out = np.zeros((BATCH, trusting.row_bytes), np.uint8)
    tokens = np.zeros((BATCH, schema.tokens, schema.width), np.float32)
    plain = np.ones((len(users), trusting.row_bytes), np.uint8).view(f"V{out.shape[1]}")[:, 0]
    target = out.view(plain.dtype)[:, 0]
    ask, row_of = _Queries(users, 1), np.random.default_rng(2)
    for i in range(0, len(users), BATCH):
        checking.lookup_raw(users[i : i + BATCH])  # every page mapped and warm on our side, too
        trusting.lookup_raw(users[i : i + BATCH])
        alone.lookup_raw(users[i : i + BATCH])
    sides: dict[str, Callable[[], Any]] = {
        "memcpy": _copy_side(out, len(users), 3),
        "raw": lambda: trusting.lookup_raw(ask(), out=out),
        "raw_one_thread": lambda: alone.lookup_raw(ask(), out=out),
        "raw_verified": lambda: checking.lookup_raw(ask(), out=out),
        "tokens": lambda: trusting.lookup(ask(), out=tokens),
        "tokens_verified": lambda: checking.lookup(ask(), out=tokens),
        "ram": lambda: np.take(plain, row_of.integers(0, len(plain), BATCH), out=target, mode="clip"),
    }
    seconds, calls = _turns(sides, repeats)
    copy = seconds["memcpy"]
    figures[f"of_memcpy{suffix}"] = ratio(copy, seconds["raw"], target=0.9)
    figures[f"of_memcpy_one_thread{suffix}"] = ratio(copy, seconds["raw_one_thread"])
    figures[f"of_memcpy_verified{suffix}"] = ratio(copy, seconds["raw_verified"], target=0.9)
    figures[f"of_ram_gather{suffix}"] = ratio(seconds["ram"], seconds["raw"])
    figures[f"tokens_of_memcpy{suffix}"] = ratio(copy, seconds["tokens"])
    figures[f"tokens_of_memcpy_verified{suffix}"] = ratio(copy, seconds["tokens_verified"])
    for name in ("raw", "tokens"):
        figures[f"{name}_rate{suffix}"] = median(out.nbytes / seconds[name] / 1e9, "GB/s")
    if suffix:
        return
    figures["memcpy_rate"] = median(out.nbytes / copy / 1e9, "GB/s")
    figures["ram_gather_of_memcpy"] = ratio(copy, seconds["ram"])
    for q in (50, 99):
        for name in ("raw", "raw_verified", "tokens_verified"):
            figures[f"{name}_p{q}"] = Figure(float(np.percentile(calls[name], q)), "s")
    single, n = np.zeros((1, trusting.row_bytes), np.uint8), max(200, repeats * 10)
    picked = np.random.default_rng(5).choice(users, (n, 1))
    one = [timed(functools.partial(trusting.lookup_raw, user, out=single)) for user in picked]
    for q in (50, 99):
        figures[f"single_user_p{q}"] = Figure(float(np.percentile(one, q)), "s")


def _turns(
    sides: dict[str, Callable[[], Any]], repeats: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Seconds of each side, float64 [repeats]: the fastest call of each turn; and of all its calls."""
    fastest: dict[str, list[float]] = {name: [] for name in sides}
    calls: dict[str, list[float]] = {name: [] for name in sides}
    for r, name in turns(sides, repeats + 1):
        took = [timed(sides[name]) for _ in range(CALLS)]
        if r:  # the first turn warms up
            fastest[name].append(min(took))
            calls[name] += took
    return {n: np.array(v) for n, v in fastest.items()}, {n: np.array(v) for n, v in calls.items()}


def _others(
    figures: dict[str, Figure], notes: list[str], place: Path, users: np.ndarray, repeats: int
) -> None:
    """Other stores of the same rows beside ours, all in one set of turns."""
    with contextlib.ExitStack() as stack, Store.open(place / "float16", verify=False, lease=False) as store:
        ask = _Queries(users, 7)
        out = np.zeros((BATCH, store.row_bytes), np.uint8)
        sides: dict[str, Callable[[], Any]] = {
            "memcpy": _copy_side(out, len(users), 3),
            "ours": lambda: store.lookup_raw(ask(), out=out),
        }

        def rows() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for i in range(0, len(users), BATCH):
                yield users[i : i + BATCH], store.lookup_raw(users[i : i + BATCH]).rows

        try:
            for name in ("rocksdb", "rocksdb_mapped", "rocksdb_default"):
                sides[name] = _rocksdb(stack, place / name, rows(), len(users), ask, out)
        except ImportError:
            notes.append("rocksdict is not installed: RocksDB was left out")
        if shutil.which("redis-server"):
            redis = stack.enter_context(RedisRows(place, out.shape[1]))
            redis.fill(rows())
            sides["redis"] = redis.reader(ask, out)
        else:
            notes.append("redis-server is not installed: Redis was left out")
        for name, side in sides.items():
            if name not in ("memcpy", "ours"):
                _same_rows(name, side, store, ask, out)
        seconds, _ = _turns(sides, repeats)
        if "rocksdb" in seconds:
            mapped = seconds.pop("rocksdb_mapped")
            if np.median(mapped) < np.median(seconds["rocksdb"]):
                seconds["rocksdb"] = mapped
                notes.append("RocksDB by mapped reads, which were faster here than its block cache")
        for name, target in (("rocksdb", 5.0), ("rocksdb_default", None), ("redis", 15.0)):
            if name in seconds:
                figures[f"vs_{name}"] = ratio(seconds[name], seconds["ours"], target=target)
                figures[f"{name}_rate"] = median(out.nbytes / seconds[name] / 1e9, "GB/s")


def _same_rows(name: str, side: Callable[[], Any], store: Store, ask: _Queries, out: np.ndarray) -> None:
    """A rival that answers something else would be no comparison."""
    side()
    found = out.copy()
    ask._at -= 1
    if not (store.lookup_raw(ask()).rows[:, 16:] == found[:, 16:]).all():
        raise RuntimeError(f"bench lookup: {name} gave other bytes than the store")


def _rocksdb(
    stack: contextlib.ExitStack,
    path: Path,
    rows: Iterator[tuple[np.ndarray, np.ndarray]],
    count: int,
    ask: _Queries,
    out: np.ndarray,
) -> Callable[[], None]:
    from rocksdict import BlockBasedOptions, Cache, DBCompressionType, Options, Rdict, WriteOptions

    options = Options(raw_mode=True)
    options.create_if_missing(True)
    if path.name != "rocksdb_default":
        options.set_compression_type(DBCompressionType.none())
        options.set_allow_mmap_reads(path.name == "rocksdb_mapped")
        table = BlockBasedOptions()
        table.set_block_cache(Cache(2 * count * out.shape[1]))
        table.set_bloom_filter(10, False)
        options.set_block_based_table_factory(table)
    db = Rdict(str(path), options)
    stack.callback(db.close)
    quiet = WriteOptions()
    quiet.disable_wal = True
    db.set_write_options(quiet)
    for ids, block in rows:
        for user, row in zip(ids.tolist(), block, strict=True):
            db[user.to_bytes(8, "big")] = row.tobytes()
    db.flush()
    db.compact_range(None, None)
    flat = out.reshape(-1)

    def read() -> None:
        values = db[[u.to_bytes(8, "big") for u in ask().tolist()]]
        flat[...] = np.frombuffer(b"".join(values), np.uint8)

    def read_each() -> None:
        values = db[[u.to_bytes(8, "big") for u in ask().tolist()]]
        for row, value in zip(out, values, strict=True):
            row[...] = np.frombuffer(value, np.uint8)

    trial, _ = _turns({"join": read, "each": read_each}, 3)
    return read if np.median(trial["join"]) < np.median(trial["each"]) else read_each


def _two_processes(figures: dict[str, Figure], place: Path, users: np.ndarray, repeats: int) -> None:
    both = at_once(_reader, [(str(place / "float16"), users, repeats, seed) for seed in range(2)])
    copy = np.concatenate([b["memcpy"] for b in both])
    raw = np.concatenate([b["raw"] for b in both])
    figures["of_memcpy_2_processes"] = ratio(copy, raw, target=0.9)
    size = BATCH * SCHEMAS["float16"].pages * 4096
    figures["raw_rate_2_processes"] = Figure(
        sum(size / float(np.median(b["raw"])) for b in both) / 1e9, "GB/s"
    )


def _reader(path: str, users: np.ndarray, repeats: int, seed: int, barrier: Any, pipe: Any) -> None:
    store = Store.open(path, verify=False, lease=False)
    out, ask = np.zeros((BATCH, store.row_bytes), np.uint8), _Queries(users, seed)
    for i in range(0, len(users), BATCH):
        store.lookup_raw(users[i : i + BATCH], out=out[: len(users[i : i + BATCH])])
    sides = {"memcpy": _copy_side(out, len(users), seed), "raw": lambda: store.lookup_raw(ask(), out=out)}

    def together(work: Callable[[], Any]) -> float:
        barrier.wait()
        return min(timed(work) for _ in range(CALLS))

    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _, name in turns(sides, repeats + 2):
        seconds[name].append(together(sides[name]))
    pipe.send({name: np.array(values[2:]) for name, values in seconds.items()})


def _cold(figures: dict[str, Figure], notes: list[str], place: Path, users: np.ndarray, repeats: int) -> None:
    """Batches whose pages were dropped from the page cache, against 16 threads of pread of the same rows."""
    folder = place / "float16"
    files = sorted(folder.glob("generations/*/shard-*.mdb"))
    ask, size = _Queries(users, 11), BATCH * SCHEMAS["float16"].pages * 4096
    pool = ThreadPoolExecutor(16)

    def drop() -> None:
        for path in files:
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)

    def resident() -> bool:
        with open(files[0], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            start = time.perf_counter()
            data[len(data) // 2 // 4096 * 4096]
            return time.perf_counter() - start < 5e-6

    seconds: dict[str, list[float]] = {"ours": [], "disk": []}
    for _ in range(repeats):
        batch = ask()
        drop()
        with Store.open(folder, verify=False, lease=False) as store:
            out = np.zeros((BATCH, store.row_bytes), np.uint8)
            seconds["ours"].append(timed(functools.partial(store.lookup_raw, batch, out=out)))
        with Store.open(folder, verify=False, lease=False) as store, store.pin() as pinned:
            places = [place for place in pinned.places(batch) if place is not None]
        drop()
        if resident():
            notes.append("cold: the page cache would not be dropped here; left out")
            return
        opened = {path: os.open(path, os.O_RDONLY) for path in {p for p, _ in places}}
        reads = [(opened[path], size // BATCH, offset) for path, offset in places]
        start = time.perf_counter()
        list(pool.map(os.pread, *zip(*reads, strict=True)))
        seconds["disk"].append(time.perf_counter() - start)
        for fd in opened.values():
            os.close(fd)
    pool.shutdown()
    ours, disk = np.array(seconds["ours"]), np.array(seconds["disk"])
    figures["cold_of_disk"] = ratio(disk, ours)
    figures["cold_rate"] = median(size / ours / 1e6, "MB/s")
    figures["cold_p50"] = Figure(float(np.median(ours)), "s")
