"""Law 7: a reader never sees half a generation.

Also: under kills, power cuts and a publisher without pause, tests/drills/test_crash_drills.py.
"""

from __future__ import annotations

import multiprocessing
import threading

import numpy as np
from known_stores import KnownStore

from cache_store import Store


def test_law_7_threads_and_processes_never_see_half_a_generation(tmp_path):
    """Readers count whole batches while a publisher goes through full generations, deltas, compaction and pruning."""
    known = KnownStore(tmp_path / "s")
    users = list(range(40))
    known.publish({u: 1 for u in users})
    store = Store.open(known.path)
    stop, faults, seen = threading.Event(), [], set()

    def read():
        try:
            while not stop.is_set():
                store.refresh()
                found = store.lookup(users)
                versions = found.tokens[:, 0, 0] - np.arange(40, dtype=np.float32) / 1024
                assert not found.status.any() and len(set(versions.tolist())) == 1, versions
                assert len(set((found.event_count - 1).tolist())) == 1
                seen.add(found.generation)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_read_until_told, args=(str(known.path), theirs))
    process.start()
    ours.recv()
    for t in threads:
        t.start()
    for version in range(2, 22):
        known.publish({u: version for u in users}, "delta" if version % 4 else "full")
        if version % 7 == 0:
            known.truth[Store.open(known.path).compact()] = {}
        if version % 5 == 0:
            known.admin.prune(keep=1)
    stop.set()
    for t in threads:
        t.join()
    ours.send("stop")
    batches, mixed = ours.recv()
    process.join()
    assert not faults and seen
    assert process.exitcode == 0 and batches > 0 and mixed == 0


def _read_until_told(path, connection):
    store, batches, mixed = Store.open(path), 0, 0
    connection.send("ready")
    while not connection.poll():
        store.refresh()
        found = store.lookup(list(range(40)))
        versions = found.tokens[:, 0, 0] - np.arange(40, dtype=np.float32) / 1024
        mixed += bool(found.status.any()) or len(set(versions.tolist())) != 1
        batches += 1
    connection.send((batches, mixed))
