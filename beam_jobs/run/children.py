"""Child processes that stay from one run to the next: for a service, whose short tasks could not wait for a model to be
loaded anew. They end with this process, however it ends; one that dies under a task ends all, and the attempt.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from beam_jobs.errors import WorkerLost
from beam_jobs.run.quiet_worker import end_by_interrupts, end_with, interrupts_held

_pools: dict[int, ProcessPoolExecutor] = {}
"""By number of workers; one at a time."""


def on_children(
    workers: int, tasks: Sequence[Any], do: Callable[[Any], Mapping[str, int]]
) -> list[Mapping[str, int]]:
    """The results of ``do`` of every task.

    Raises:
        WorkerLost: one died; the next call starts others.
    """
    if workers not in _pools:
        leave()
        spawn = multiprocessing.get_context("spawn")
        _pools[workers] = ProcessPoolExecutor(workers, spawn, _begin, (os.getpid(),))
    try:
        with interrupts_held():
            results = _pools[workers].map(do, tasks)
        return list(results)
    except BrokenProcessPool as error:
        leave()
        raise WorkerLost(
            "a child process of this one died under its task, as the kernel's memory killer ends one (see its log, and "
            "vista plan); run the same command again, it goes on where it was"
        ) from error


def leave() -> None:
    """End the children that :func:`on_children` started, after their tasks."""
    while _pools:
        _pools.popitem()[1].shutdown(cancel_futures=True)


def _begin(parent: int) -> None:
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    end_by_interrupts()
