"""Where tasks run: a job hands over a list of tasks and one function, and an engine does the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from beam_jobs.run.record import RunDirectory

T = TypeVar("T")
Do = Callable[[T], Mapping[str, int]]
"""Does one task; importable, picklable, and harmless when done twice. Returns counts for the engine's counters."""


def run_tasks(step: str, tasks: Sequence[T], do: Do[T], args: Sequence[str] = ()) -> Mapping[str, int]:
    """Do every task once or more, in any order, and wait for the end; the sums of their counts.

    Args:
        tasks: largest first; engines deal them out one by one, so that the workers end together.
        args: of the engine; Beam's local runner by default.

    Raises:
        WorkerLost, OptionsError, RunStorageFull, and whatever the engine raises for a failed task.
    """
    if not tasks:
        return Counter()
    from beam_jobs.run.runner import on_beam

    return on_beam(step, tasks, do, args)


@dataclass(frozen=True)
class Guarded:
    """A task function whose errors stay with the run, not with the engine; tasks have a ``name``."""

    do: Do[Any]
    directory: RunDirectory

    def __call__(self, task: Any) -> Mapping[str, int]:
        if self.directory.hopeless():
            return {}
        try:
            return self.do(task)
        except Exception as error:
            self.directory.note_failure(task.name, error)
            return {}
