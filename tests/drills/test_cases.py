"""Situations in which an earlier version lost data or a process, and that no room's own tests hold; and the table of
all of them (docs/cases.md), whose tests must be there."""

from __future__ import annotations

import os
import pickle
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from known_stores import TEXT, KnownStore

from beam_jobs.errors import OptionsError
from beam_jobs.generation.refresh import RefreshOptions
from beam_jobs.tables import forget
from cache_store import Store
from cache_store.errors import KeyKind, SchemaError, StoreError
from cache_store.torch.rows import AsOfRows
from tools.drills import storage
from vista.data.events import Events
from vista.data.tables.warehouse import Warehouse
from vista.errors import DataError
from vista.serving import pool_files
from vista.serving.pool_files import PoolError

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"`(tests/[\w/]+\.py)` ((?:`\w+`(?:, )?)+)")


def test_every_test_that_the_table_of_cases_names_is_there():
    page = (ROOT / "docs/cases.md").read_text()
    named = [(file, name) for file, names in ROW.findall(page) for name in re.findall(r"\w+", names)]
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| case")]
    assert len(rows) > 70 and all(ROW.search(row) for row in rows), [r for r in rows if not ROW.search(r)]
    lacking = [f"{f}: {n}" for f, n in named if f"def test_{n}(" not in (ROOT / f).read_text()]
    assert not lacking, lacking


def in_a_process(code: str, *words: object, **environment: str) -> str:
    """What a fresh Python prints that runs so; it must end well, and soon."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, timeout=300,
        env={**os.environ, **environment}, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


# A pool in a folder that others can write to --------------------------------------------------------------


def test_what_lies_at_or_beside_the_place_of_a_pool_is_not_followed_or_written_to(tmp_path):
    victim, place = tmp_path / "victim", tmp_path / "pool"
    for link in (place, tmp_path / f".pool.{os.getpid()}", tmp_path / f".pool.{os.getpid()}.tmp"):
        victim.write_bytes(b"mine")
        link.symlink_to(victim)
        pool_files.make(place, b"begin", 8192)
        assert victim.read_bytes() == b"mine" and not place.is_symlink()
        assert place.stat().st_size == 8192 and place.stat().st_mode & 0o777 == 0o600
        place.unlink()
    place.symlink_to(victim)
    victim.chmod(0o600)
    with pytest.raises(PoolError, match="retrieving process"):
        pool_files.map_own(place)  # nor by readers
    place.unlink()
    place.mkdir()
    with pytest.raises(PoolError, match="name another path"):
        pool_files.make(place, b"begin", 8192)


def test_a_pool_without_room_is_refused_when_it_is_made_and_leaves_nothing(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, before[1]))
    try:
        with pytest.raises(PoolError, match="expected room for 1000000 bytes, found .* take fewer cells"):
            pool_files.make(tmp_path / "pool", b"begin", 1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not storage.mountable(), reason="needs the right to mount a small tmpfs")
def test_a_pool_larger_than_its_file_system_is_refused_when_it_is_made():
    with storage.small_disk(1 << 20) as disk:
        with pytest.raises(PoolError, match="take fewer cells"):
            pool_files.make(disk / "pool", b"begin", 1 << 24)
        assert list(disk.iterdir()) == []
        pool_files.make(disk / "pool", b"begin", 1 << 19)


# What a caller hands over ---------------------------------------------------------------------------------


@pytest.mark.parametrize("users", ["alice", b"alice", 7])
def test_one_text_is_not_a_list_of_users_for_a_job_either(users, tmp_path):
    store = KnownStore(tmp_path / "s", TEXT)
    store.publish({u: 1 for u in range(3)})
    with pytest.raises(KeyKind, match="list"):
        forget.run(forget.ForgetOptions(users, stores=[str(tmp_path / "s")]))
    with pytest.raises(OptionsError, match="list"):
        forget.run(forget.ForgetOptions(["user-00001"], stores=str(tmp_path / "s")))
    with pytest.raises(OptionsError, match="list"):
        RefreshOptions(warehouse="w", bundle="b", store="s", run_dir="r", users=users)
    with store.open() as reader:
        store.check(reader.lookup(store.ids(range(3))), range(3), store.truth["00000001"])


def test_a_process_that_goes_to_another_folder_stays_with_what_it_opened(tmp_path, monkeypatch):
    here, other = KnownStore(tmp_path / "a/s"), KnownStore(tmp_path / "b/s")
    for known, version in ((here, 1), (other, 5)):
        known.publish({1: version})
        Warehouse(known.path.parent / "w").create(num_buckets=2, actions=[str(known.path.parent.name)])
    monkeypatch.chdir(tmp_path / "a")
    store, tables, old = Store.open("s"), Warehouse("w").open(), Warehouse("w")
    monkeypatch.chdir(tmp_path / "b")
    here.publish({1: 2}, "delta")
    assert store.refresh() == "00000002" and store.states([1]) == [b"state 1 2"]
    for reader in (store, pickle.loads(pickle.dumps(store))):
        here.check(reader.lookup([1]), [1], {1: 2})
        reader.close()
    assert not list((tmp_path / "a/s/leases").iterdir()) and not list((tmp_path / "b/s/leases").iterdir())
    assert [w.open().actions for w in (tables, old, pickle.loads(pickle.dumps(old)))] == [("a",)] * 3


@pytest.mark.parametrize(
    "moment",
    [float("nan"), float("inf"), "1000", True, 10**30, np.datetime64("2026-01-01"), [None], 1e300,
     np.float32(1.7e12), np.ma.array([1], mask=[True])],
)  # fmt: skip
def test_what_is_no_number_of_milliseconds_is_no_moment(moment, tmp_path):
    known = KnownStore(tmp_path / "s")
    known.publish({1: 1}, published_ms=900)
    with known.open() as store:
        for read in (store.lookup, store.lookup_raw):
            with pytest.raises(SchemaError, match="as_of: expected"):
                read([1], as_of=moment)
        with pytest.raises(SchemaError, match="as_of: expected"):
            AsOfRows(store, [1], np.ma.atleast_1d(moment))
        known.check(store.lookup([1], as_of=900.7), [1], {1: 1})
    for age in (float("nan"), -1, "1"):
        with pytest.raises(StoreError, match="max_age_ms"):
            known.open(max_age_ms=age)


@pytest.mark.parametrize(
    "columns",
    [{"item": [1.5]}, {"item": [float("nan")]}, {"time": [float("nan")]}, {"action": [1 << 40]}, {"time": [1e30]},
     {"item": np.array([1 << 63], np.uint64)}, {"item": [None]}, {"item": np.ma.array([1], mask=[True])},
     {"time": np.array(["2026-01-01"], "M8[ms]")}, {"time": np.array([1.7e12], np.float32)}, {"item": [[1]]}],
)  # fmt: skip
def test_a_number_that_a_column_cannot_hold_is_not_made_another(columns):
    with pytest.raises(DataError, match=f"column {next(iter(columns))}: expected whole numbers"):
        Events.of([1], **{"item": [1], "time": [2], **columns})
    for fine in ([1.0], np.ma.array([1]), np.array([1], object), [np.uint8(1)]):
        assert Events.of([1], item=fine, time=[2]).item.tolist() == [1]


# Forks ----------------------------------------------------------------------------------------------------

FORKED = """
import os, sys
sys.path[:0] = ["tests/vista/serving"]
import torch
torch.set_num_threads(2)
from test_serving import INDEX, ITEMS, MODEL, NOW, recent_of, summaries
from vista.serving.recommender import Recommender
service = Recommender(summaries, MODEL, INDEX, fingerprint="m1")
go = lambda: service.recommend([5, 9], recent_of([5, 9]), NOW, k=5, candidates=150).item.tolist()
told = go()
for _ in range(2):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if go() == told else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert go() == told
"""


def test_a_recommender_that_was_warmed_before_a_fork_serves_in_the_child_what_it_serves_in_the_parent():
    in_a_process(FORKED, OMP_NUM_THREADS="2")


# As of a moment -------------------------------------------------------------------------------------------


def test_an_as_of_read_gives_what_was_served_then_and_not_what_arrived_late(tmp_path):
    known = KnownStore(tmp_path / "s")
    first = known.publish({1: 1}, watermark=500, published_ms=1_000)
    late = known.publish({1: 2}, watermark=500, published_ms=2_000)  # old events that came late
    ahead = known.publish({1: 3}, "delta", watermark=1 << 45, published_ms=3_000)  # one event dated far ahead
    with known.open(clock=lambda: 4_000) as store:
        assert store.manifest.generation == ahead
        for moment, name in ((1_000, first), (1_999, first), (2_999, late), (3_500, ahead), (600, first)):
            assert store.lookup([1], as_of=moment).generation == name, moment


# Many shards ----------------------------------------------------------------------------------------------

MAPPINGS = """
import ctypes, mmap, sys
from cache_store import Store
from cache_store.errors import LimitReached
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
most = int(open("/proc/sys/vm/max_map_count").read())
Store.open(sys.argv[1]).close()  # everything that opening needs is loaded
base = libc.mmap(None, 4096 * 2 * most, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
page = 0
while page < 2 * most and libc.mprotect(base + 4096 * page, 4096, 1) == 0:  # a mapping of its own, until no more
    page += 2
for last in range(page - 2, page - 8, -2):  # a little room for the interpreter
    libc.mprotect(base + 4096 * last, 4096, 0)
try:
    Store.open(sys.argv[1])
except LimitReached as error:
    print(error)
"""


def test_a_store_that_meets_the_systems_own_limit_of_mappings_says_so_with_the_sum_and_the_remedy(tmp_path):
    if int(Path("/proc/sys/vm/max_map_count").read_text()) > 200_000:
        pytest.skip("this system allows too many mappings to use them up")
    KnownStore(tmp_path / "s", num_shards=8).publish({u: 1 for u in range(64)})
    told = in_a_process(MAPPINGS, tmp_path / "s")
    assert re.search(r"this process has \d{4,} mappings, the system allows \d+.*vm\.max_map_count", told), (
        told
    )


LIMITED = """
import os, resource, sys
sys.path[:0] = ["tests/cache_store"]
from known_stores import KnownStore
from cache_store.errors import LimitReached
store = KnownStore(sys.argv[1], num_shards=2)
store.publish({u: 1 for u in range(8)})
left = len(os.listdir("/proc/self/fd")) + 1
for name, limit in (("AS", 2 << 40), ("FSIZE", 8192), ("NOFILE", left)):
    kind = getattr(resource, f"RLIMIT_{name}")
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit, before[1]))
    try:
        store.publish({u: 2 for u in range(8)})
        print(name, "was no limit")
    except LimitReached as error:
        print(name, error)
    resource.setrlimit(kind, before)
with store.open() as reader:
    store.check(reader.lookup(list(range(8))), list(range(8)), store.truth["00000001"])
store.publish({u: 3 for u in range(8)})
"""


def test_a_limit_of_the_process_is_told_by_its_name(tmp_path):
    told = in_a_process(LIMITED, tmp_path / "s").splitlines()
    assert [line.split()[0] for line in told] == ["AS", "FSIZE", "NOFILE"], told
    for line, flag in zip(told, "vfn", strict=True):
        assert f"`ulimit -{flag}`" in line and "live generation is untouched" in line, line


def test_no_lookup_of_a_store_of_many_shards_looks_at_all_of_their_files(tmp_path, monkeypatch):
    known, asked = KnownStore(tmp_path / "s", num_shards=256), []
    known.publish({u: 1 for u in range(300)}, states=False)
    stat = os.stat
    now = [1_000]
    with known.open(clock=lambda: now[0]) as store:
        monkeypatch.setattr(os, "stat", lambda *a, **k: asked.append(a[0]) or stat(*a, **k))
        most = 0
        for _ in range(100):
            now[0] += 10
            before = len(asked)
            store.lookup([1, 2, 3])
            most = max(most, len(asked) - before)
        looked = {str(path) for path in asked if ".mdb" in str(path)}
    assert most <= 16 and len(looked) == 256, (
        most,
        len(looked),
    )  # a hundredth of a second's part each, and all in one
