"""Runs compact_tables, killed (SIGKILL) at every STEP-th rename or SQLite commit; then continues it.

    python killing_compact.py FOLDER STEP

Prints a JSON list, one entry per kill: what the continued run came to. Every kill has tables of its own, since Iceberg
tables cannot be copied.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
from killing_ingest import killed

from beam_jobs.run.engines import HERE
from beam_jobs.tables import compact as compact_tables
from cache_store.format.keys import bucket_of
from cache_store.format.layout import digest_file
from vista.data.events import Events
from vista.data.tables.appending import append
from vista.data.tables.pruning import prune
from vista.data.tables.warehouse import Warehouse


def tables(path: Path) -> Warehouse:
    warehouse = Warehouse(path).create(num_buckets=2)
    users = np.arange(9, dtype=np.int64)
    for n in range(4):
        events = Events.of(np.full(9, 5), item=np.arange(45) % 7, time=1_000 * n + np.tile(np.arange(5), 9))
        append(warehouse, users, events, bucket_of(users, 2), f"run{n}", actions=("x",))
    return warehouse


def outcome(options: compact_tables.CompactOptions) -> dict:
    record = compact_tables.run(options, (HERE,))
    warehouse = Warehouse(options.warehouse).open()
    files = [f for fs in warehouse.bucket_files().values() for f in fs]
    return {
        "exit_code": record.exit_code,
        "counts": record.counts,
        "digests": [digest_file(f.path.removeprefix("file://")) for f in files],
        "item_events": int(warehouse.read_items().events.sum()),
        "orphans": len(prune(warehouse, (), before_ms=2**62).files),
    }


def main() -> None:
    folder, step = Path(sys.argv[1]), int(sys.argv[2])
    at, alive = 0, True
    while alive:
        work = folder / f"killed-{at}"
        warehouse = tables(work / "tables")
        options = compact_tables.CompactOptions(str(warehouse.path), str(work / "run"), most=2)
        alive = killed(lambda: compact_tables.run(options, (HERE,)), at) if at else True  # noqa: B023
        child = os.fork()  # the process that goes on has no threads yet, whatever was done before
        if child == 0:
            print(json.dumps(outcome(options)), flush=True)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            raise SystemExit(f"could not continue after a kill at step {at}")
        at += step


if __name__ == "__main__":
    main()
