"""Where tasks run: a job hands over a list of tasks and one function, and an engine does the rest.

Beam with its own arguments, or ``--engine=spark|ray|dask --address=...`` (``clusters``). An engine balances, and tries
a task again whose worker died. Workers need the environment of the driver and the shared folder of the run: before it
does a task, a worker of a cluster compares both.
"""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

from beam_jobs.errors import EngineUnfit, OptionsError
from beam_jobs.run.record import RunDirectory

T = TypeVar("T")
Do = Callable[[T], Mapping[str, int]]
"""Does one task; importable, picklable, and harmless when done twice. Returns counts for the engine's counters."""

BEAM = "beam"
CLUSTERS = ("spark", "ray", "dask")
HERE = "--engine=here"
"""Engine of small jobs that must begin at once: one task after the other, in this process, or by :func:`here`."""
DECIDING = ("vista-cache", "torch", "numpy", "pyarrow", "lmdb")
"""Packages whose versions may change a result."""


def engine_args(engine: str, address: str | None, more: Sequence[str] = ()) -> list[str]:
    """Arguments of a run on a cluster.

    Args:
        more: the engine's own settings, ``--NAME=VALUE`` (Spark alone has some).

    Raises:
        OptionsError
    """
    if engine not in CLUSTERS or not address:
        raise OptionsError(
            f"--engine: expected {', '.join((BEAM, *CLUSTERS))}, the latter with their --address, found {engine} and "
            f"{address or 'no address'}; see docs/operations.md"
        )
    return [f"--engine={engine}", f"--address={address}", *more]


def here(workers: int) -> tuple[str, ...]:
    """Arguments of a run in this process, or in so many children of it that stay for the next (``children``)."""
    return (HERE,) if workers == 1 else (HERE, f"--workers={workers}")


def workers_here(args: Sequence[str]) -> int:
    """Processes of a run by :func:`here`."""
    return int(args[1].partition("=")[2]) if len(args) > 1 else 1


def on_cluster(args: Sequence[str]) -> bool:
    """Whether the arguments are :func:`engine_args`, not Beam's."""
    return bool(args) and args[0].startswith("--engine=") and args[0] != HERE


def leave(args: Sequence[str]) -> None:
    """End what a run has open on a cluster."""
    if on_cluster(args):
        from beam_jobs.run.clusters import leave

        leave()


def run_tasks(
    step: str, tasks: Sequence[T], do: Do[T], args: Sequence[str], run: RunDirectory
) -> Mapping[str, int]:
    """Do every task once or more, in any order, and wait for the end; the sums of their counts.

    Args:
        tasks: largest first; engines deal them out one by one, so that the workers end together.
        args: of the engine; Beam's local runner where there are none.
        run: started, in a folder that all workers see.

    Raises:
        OptionsError, EngineAway
        EngineUnfit: a worker has another environment, or not the run's folder.
        WorkerLost, RunStorageFull, and whatever the engine raises for a failed task.
    """
    if not tasks:
        return Counter()
    sums: Counter[str] = Counter()
    if HERE in args:
        workers = min(workers_here(args), len(tasks))
        if workers > 1:
            from beam_jobs.run.children import on_children

            counted: Iterable[Mapping[str, int]] = on_children(workers_here(args), tasks, do)
        else:
            counted = map(do, tasks)
        for counts in counted:
            sums.update(counts)
        return sums
    if not on_cluster(args):
        from beam_jobs.run.runner import on_beam

        return on_beam(step, tasks, do, args)
    from beam_jobs.run.clusters import on

    engine, address = (word.partition("=")[2] for word in args[:2])
    for found in on(engine, address, args[2:], tasks, Fit(do, environment(), run, run.run_id())):
        if isinstance(found, str):
            raise EngineUnfit(
                f"{engine} at {address}: {found}; give its workers the same, and run the command again"
            )
        sums.update(found)
    return sums


@cache
def environment() -> dict[str, str]:
    """What must be the same here and on every worker."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in DECIDING:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


@dataclass(frozen=True)
class Fit:
    """A task function that refuses, with the reason, where the worker is not as the driver."""

    do: Do[Any]
    wanted: Mapping[str, str]
    directory: RunDirectory
    run_id: str

    def __call__(self, task: Any) -> Mapping[str, int] | str:
        here = environment()
        for name, value in self.wanted.items():
            if here[name] != value:
                return f"worker {platform.node()}: expected {name} {value}, as the driver has, found {here[name]}"
        if (found := self.directory.run_id()) != self.run_id:
            what = "another run" if found else "nothing"
            path = self.directory.path
            relative = f" in {os.getcwd()}, its own folder (name all by paths from / on)"
            hint = "" if path.is_absolute() else relative
            return f"worker {platform.node()}: expected the run of the driver in {path}, found {what}{hint}"
        return dict(self.do(task))


@dataclass(frozen=True)
class Guarded:
    """A task function whose errors stay with the run, not with the engine; tasks have a ``name``.

    Attributes:
        timed: also leave when each task began and ended (``spans``).
    """

    do: Do[Any]
    directory: RunDirectory
    timed: bool = False

    def __call__(self, task: Any) -> Mapping[str, int]:
        if self.directory.hopeless():
            return {}
        began = time.time_ns()
        try:
            return self.do(task)
        except Exception as error:
            self.directory.note_failure(task.name, error)
            return {}
        finally:
            if self.timed:
                self.directory.note_times(task.name, began, time.time_ns())
