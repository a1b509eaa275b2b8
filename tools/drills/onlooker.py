"""A reader process of the soak: it imports the store alone, so that its memory is the store's."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from cache_store.read.snapshot import Status
from cache_store.store import Store


def reader(store: str, users: int, out: str, every_s: float, forks: bool) -> None:
    """Look all users up until killed; one line for each new thing seen.

    Args:
        forks: now and then a child looks too, and dies without a word.
    """
    last, lookups = "", 0
    with Store.open(store) as opened, open(out, "a") as file:
        while True:
            time.sleep(every_s)
            opened.refresh()
            line = seen(opened, users)
            lookups += 1
            if forks and lookups % 40 == 0:
                look_from_a_child(opened, users)
            if line != last or lookups % 40 == 0:
                last = line
                file.write(json.dumps([line, lookups]) + "\n")
                file.flush()


def seen(store: Store, users: int) -> str:
    """[generation, events by user, whether any row was wrong in itself] as text."""
    got = store.lookup(list(range(users)))
    fine = np.isfinite(got.tokens).all() and not (got.status == int(Status.CORRUPT)).any()
    return json.dumps([got.generation, got.event_count.tolist(), not fine])


def look_from_a_child(store: Store, users: int) -> None:
    """A fork of a process that has the store open must be able to read."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = int(json.loads(seen(store, users))[2])
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"a forked reader ended with status {status}")


def held(process: int) -> tuple[float, int, int]:
    """(MB of private memory, open files, mappings) of a process."""
    at = Path("/proc", str(process))
    smaps = (at / "smaps_rollup").read_text()
    private = sum(int(row.split()[1]) for row in smaps.splitlines() if row.startswith("Private_"))
    with open(at / "maps") as maps:
        return private / 1024, len(os.listdir(at / "fd")), sum(1 for _ in maps)


if __name__ == "__main__":
    reader(sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4]), sys.argv[5] == "forks")
