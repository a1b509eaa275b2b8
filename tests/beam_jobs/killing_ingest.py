"""Runs ingest, killed (SIGKILL) at its n-th rename or SQLite commit, for every STEP-th n; then continues it.

A process of its own: it imports everything once and forks for every kill. Prints a JSON list, one entry per kill:
what the continued run came to.

    python killing_ingest.py OPTIONS.pickle STEP
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import event
from sqlalchemy.engine import Engine

from beam_jobs.ingest import job as ingest
from beam_jobs.run.engines import HERE
from cache_store.format.layout import digest_file
from vista.data.tables.warehouse import Warehouse


def killed(job: Callable[[], object], at: int) -> bool:
    """Run a job in a child that dies at its ``at``-th change of state; False if it ended before."""
    child = os.fork()
    if child == 0:
        left = at

        def step(*_) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(lambda name, args: step() if name == "os.rename" else None)
        event.listen(Engine, "commit", step)
        job()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status and not os.WIFSIGNALED(status):
        raise SystemExit(f"the job itself failed at step {at}: status {status}")
    return os.WIFSIGNALED(status)


def outcome(options: ingest.IngestOptions) -> dict:
    record = ingest.run(options, (HERE,))
    warehouse = Warehouse(options.warehouse).open()
    files = [f for fs in warehouse.bucket_files().values() for f in fs]
    return {
        "exit_code": record.exit_code,
        "counts": record.counts,
        "digests": [digest_file(f.path.removeprefix("file://")) for f in files],
        "snapshots": len(warehouse.history.snapshots()),
        "item_events": int(warehouse.read_items().events.sum()),
        "sources": warehouse.read_sources().num_rows,
        "spill": (Path(options.run_dir) / "spill").exists(),
    }


def main() -> None:
    path, step = Path(sys.argv[1]), int(sys.argv[2])
    options = pickle.loads(path.read_bytes())
    outcomes, at, alive = [], 0, True
    while alive:
        work = path.parent / f"killed-{at}"
        mine = dataclasses.replace(options, warehouse=str(work / "table"), run_dir=str(work / "run"))
        alive = killed(lambda: ingest.run(mine, (HERE,)), at) if at else True  # noqa: B023
        outcomes.append(outcome(mine))
        at += step
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
