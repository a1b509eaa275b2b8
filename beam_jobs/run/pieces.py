"""Pieces of work that a store or the tables deal out themselves, as tasks of a run.

``Store.forget``, ``Store.compact`` and ``forget_users`` take a function that does another with each of some plain
values; :func:`dealt` is that function on an engine. What an earlier attempt answered is not asked again of its
receipts, for it may have been about other files: whoever deals out work finds what is done by itself.
"""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from beam_jobs.run.job import Run
from beam_jobs.run.record import RunDirectory


@dataclass(frozen=True)
class Portion:
    """A task: a plain value, and the name of its receipt."""

    name: str
    what: Any
    rows: int = 1


def do_piece(piece: Portion, do: Callable[[Any], Any], run_dir: str) -> dict[str, int]:
    """Do it and leave the answer as a receipt, without names of users."""
    start = time.perf_counter()
    answer, counts = do(piece.what), {"pieces": 1}
    timings = {"seconds": round(time.perf_counter() - start, 4)}
    receipt = {"answer": answer, "files": {}, "counts": counts, "timings": timings}
    RunDirectory(run_dir).write_receipt(piece.name, receipt)
    return counts


def dealt(run: Run) -> Callable[[str, Sequence[Any], Callable[[Any], Any]], list[Any]]:
    """A function that has ``do(value)`` done for every value by the run's engine; its answers (JSON) in order."""
    shutil.rmtree(run.directory.path / "receipts", ignore_errors=True)
    steps = 0

    def spread(step: str, values: Sequence[Any], do: Callable[[Any], Any]) -> list[Any]:
        nonlocal steps
        steps += 1
        pieces = [Portion(f"{steps:04d}-{step}-{n:05d}", value) for n, value in enumerate(values)]
        one = functools.partial(do_piece, do=do, run_dir=str(run.directory.path))
        done = run.do(f"{run.job.name}: {step}", pieces, one)
        return [done[piece.name]["answer"] for piece in pieces]

    return spread
