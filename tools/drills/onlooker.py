"""A reader process of the soak: it imports the store alone, so that its memory is the store's."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from cache_store.read.snapshot import Status
from cache_store.store import Store


def reader(store: str, users: int, out: str, stop: Any) -> None:
    """Look all users up until told to stop; one line for each new thing seen, and what the process holds."""
    seen: Counter[str] = Counter()
    with Store.open(store) as opened, open(out, "a") as file:
        while not stop.wait(0.002):  # a pause, so that eight of them leave the jobs their processors
            opened.refresh()
            got = opened.lookup(list(range(users)))
            corrupt = (got.status == int(Status.CORRUPT)).any()
            line = json.dumps([got.generation, got.event_count.tolist(), bool(corrupt)])
            seen[line] += 1
            if seen[line] == 1 or seen.total() % 500 == 0:
                file.write(json.dumps([line, seen.total(), *held()]) + "\n")
                file.flush()


def held() -> tuple[float, int, int]:
    """(MB of private memory, open files, mappings) of this process."""
    smaps = Path("/proc/self/smaps_rollup").read_text()
    private = sum(int(row.split()[1]) for row in smaps.splitlines() if row.startswith("Private_"))
    with open("/proc/self/maps") as maps:
        return private / 1024, len(os.listdir("/proc/self/fd")), sum(1 for _ in maps)
