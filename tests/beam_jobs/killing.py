"""Runs a job, killed (SIGKILL) at its n-th rename, for every n; each time continues it and says what came of it.

A process of its own: it imports everything once, then forks for every kill. Renames are where a run's state
changes, so killing at each of them reaches every state that a kill can leave behind.

    python killing.py OPTIONS.pickle STEP        STEP: kill at every STEP-th rename
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pickle
import shutil
import signal
import sys
from pathlib import Path

from beam_jobs.run.engines import HERE
from cache_store.store import Store


def killed(job, options, at: int) -> bool:
    """Run the job in a child that dies at its ``at``-th rename; False if it ended before."""
    child = os.fork()
    if child == 0:
        left = at

        def hook(event, args):
            nonlocal left
            if event == "os.rename":
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        job.run(options, (HERE,))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    if status:
        raise SystemExit(f"the job itself failed at rename {at}: status {status}")
    return False


def main() -> None:
    path, step = Path(sys.argv[1]), int(sys.argv[2])
    name, options = pickle.loads(path.read_bytes())
    job = importlib.import_module(f"beam_jobs.generation.{name}")
    before = Path(options.store)
    at, alive = 1, True
    while alive:
        work = path.parent / f"killed-{at}"
        mine = dataclasses.replace(options, store=str(work / "store"), run_dir=str(work / "run"))
        work.mkdir()
        if before.exists():
            shutil.copytree(before, mine.store)
        alive = killed(job, mine, at)
        child = os.fork()  # the process that goes on has no threads yet, whatever was done before
        if child == 0:
            record = job.run(mine, (HERE,))
            manifests = Store(mine.store).generations()
            staging = [p.name for p in Store(mine.store).layout.staging.iterdir()]
            out = {
                "at": at,
                "digest": record.digests["content"],
                "generations": len(manifests),
                "leftovers": staging,
            }
            print(json.dumps(out), flush=True)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            raise SystemExit(f"could not continue after a kill at rename {at}")
        shutil.rmtree(work)
        at += step


if __name__ == "__main__":
    main()
