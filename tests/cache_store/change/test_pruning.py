"""What pruning keeps: what is live, what can be gone back to, what a lease holds; what it sweeps."""

from __future__ import annotations

import json
import os
import shutil
import socket

import pytest
from known_stores import KnownStore

from cache_store import Store
from cache_store.errors import (
    GenerationUnknown,
    NothingPublished,
    StoreError,
)
from cache_store.format import layout


def test_rollback_needs_a_target_and_prune_leaves_one(tmp_path):
    known = KnownStore(tmp_path / "s")
    names = [known.publish({1: 0})]
    with pytest.raises(NothingPublished, match="before"):
        known.admin.rollback()
    with pytest.raises(StoreError, match="keep"):
        known.admin.prune(keep=0)
    names += [known.publish({1: v}) for v in range(1, 5)]
    assert known.admin.prune(keep=1, dry_run=True).generations == names[:3]
    assert len(known.admin.generations()) == 5
    report = known.admin.prune(keep=1)
    assert report.generations == names[:3] and report.bytes > 0
    with pytest.raises(GenerationUnknown, match="cannot go back"):
        known.admin.rollback(names[0])
    assert known.admin.rollback() == names[3] == known.admin.rollback(names[3])
    report = known.admin.prune()
    assert not report.generations and "forward" in report.kept[names[4]]
    assert known.admin.promote(generation=names[4]) == names[4] and known.admin.verify().ok


def test_what_a_rollback_took_back_stays_until_something_newer_is_live(tmp_path):
    known = KnownStore(tmp_path / "s")
    names = [known.publish({1: v}) for v in range(4)]
    known.admin.rollback(names[1])
    assert set(known.admin.prune(keep=1).kept) == {
        names[0],
        names[1],
        names[3],
    }  # names[2] is not the newest of them
    newer = known.publish({1: 9})
    assert known.admin.prune(keep=1).generations == [names[0], names[3]]
    assert set(known.admin.prune(keep=1).kept) == {names[1], newer}


def test_prune_keeps_what_a_delta_lies_on(tmp_path):
    known = KnownStore(tmp_path / "s")
    names = [known.publish({1: 1}), known.publish({2: 1}, "delta"), known.publish({3: 1}, "delta")]
    assert not known.admin.prune(keep=1).generations
    known.publish({4: 1})
    known.publish({4: 2})
    assert known.admin.prune(keep=1).generations == names


def test_a_lease_keeps_prune_from_what_is_read_until_the_reader_moves_or_dies(tmp_path):
    known = KnownStore(tmp_path / "s")
    names = [known.publish({1: 1})]
    reader = known.open()
    names += [known.publish({1: v}) for v in range(2, 6)]
    known.admin.prune(keep=1)
    assert reader.states([1]) == [b"state 1 1"]  # opened only now, though three generations newer exist
    known.check(reader.lookup([1], as_of=0), [1], {1: 1})  # what was known when it opened
    reader.refresh()
    assert known.admin.prune(keep=1).generations == names[:1]
    reader.close()
    assert not list((tmp_path / "s/leases").iterdir())


def test_a_lease_of_a_dead_process_or_of_a_host_long_silent_does_not_hold(tmp_path):
    known = KnownStore(tmp_path / "s")
    names = [known.publish({1: v}) for v in range(4)]
    reader = known.open()
    (mine,) = (tmp_path / "s/leases").glob("*.json")
    facts = json.loads(mine.read_text())
    assert (
        facts["generations"] == names[-1:]
        and facts["pid"] == os.getpid()
        and socket.gethostname() in facts["host"]
    )
    lease = tmp_path / "s/leases/1-other.json"
    lease.write_text(
        json.dumps({**facts, "generations": [names[0]], "host": "elsewhere", "expires_ms": 1_001})
    )
    assert names[0] in known.admin.prune(keep=1).kept  # the clock says 1,000
    lease.write_text(
        json.dumps({**facts, "generations": [names[0]], "host": "elsewhere", "expires_ms": 1_000})
    )
    dead = {**facts, "generations": [names[0]], "started": "0"}
    (tmp_path / "s/leases/2-dead.json").write_text(json.dumps(dead))
    assert known.admin.prune(keep=1).generations == names[:1]
    assert [p.name for p in (tmp_path / "s/leases").iterdir()] == [mine.name]
    reader.close()


def test_prune_sweeps_the_remains_of_crashes_and_nothing_of_running_jobs(tmp_path):
    known = KnownStore(tmp_path / "s")
    known.publish({1: 1})
    known.publish({1: 2})
    store = tmp_path / "s"
    shutil.copytree(store / "generations/00000001", store / "generations/.deleting-00000009")
    for name in (".CURRENT.0123456789ab.tmp", f"lines/.next.{'0f' * 16}.tmp", ".notes.0123456789ab.tmp"):
        (store / name).write_text("half")
    living = layout.replacing(store / "SEQUENCE")
    temporary = living.__enter__()
    (store / "generations/00000002/shard-00000-of-00002.r1.mdb").write_text("half")
    staging, _ = known.stage({1: 3}, run="running")
    stale, _ = known.stage({1: 3}, run="stale")
    for path in [*stale.iterdir(), stale]:
        os.utime(path, (0, 0))
    report = Store(store, clock=lambda: staging.stat().st_mtime_ns // 1_000_000).prune()
    assert report.remains == [
        ".CURRENT.0123456789ab.tmp", "generations/.deleting-00000009",
        "generations/00000002/shard-00000-of-00002.r1.mdb", f"lines/.next.{'0f' * 16}.tmp",
    ]  # fmt: skip
    assert temporary.exists() and (store / ".notes.0123456789ab.tmp").exists()
    assert not living.__exit__(InterruptedError, InterruptedError(), None) and not temporary.exists()
    assert report.staging == ["stale"] and staging.exists() and not stale.exists()
    assert not report.generations and known.admin.verify().ok
