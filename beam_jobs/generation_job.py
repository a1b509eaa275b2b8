"""From bucket tasks to one published generation: what summarize and refresh have in common.

    tasks without a trusted receipt ──Beam──▶ receipts ──complete?──▶ publish ──▶ run.json

Publication is the last step and happens once: a run that was killed after it finds its own generation and
only finishes its record.
"""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import apache_beam as beam

from beam_jobs import pipeline
from beam_jobs.bucket_task import BucketTask, Settings, Source, do_bucket
from beam_jobs.errors import BucketFailed, ExitCode, IncompleteRun
from beam_jobs.progress import progress_bar
from beam_jobs.run_record import RunDirectory, RunRecord

Receipts = dict[str, dict[str, Any]]
OpenSource = Callable[[BucketTask, Settings], Source]


class DoBucket(beam.DoFn):
    """One element, one bucket. Emits the bucket number; what it made is in its receipt."""

    def __init__(self, settings: Settings, source: OpenSource):
        self._settings, self._source = settings, source

    def process(self, task: BucketTask) -> Any:
        receipt = do_bucket(task, self._settings, self._source(task, self._settings))
        for name, n in receipt["counts"].items():
            pipeline.count(name, n)
        yield task.bucket


def run_tasks(
    run: RunDirectory,
    tasks: Sequence[BucketTask],
    settings: Settings,
    source: OpenSource,
    beam_args: Sequence[str],
    *,
    attempts: int = 2,
    progress: bool = True,
) -> Receipts:
    """Do every task that has no trusted receipt; returns the receipts by unit name.

    A runner that retries does so by itself. Where it gives up (the local ones at once), what is left is
    handed to it again, up to ``attempts`` times in all; an error in the input is not tried again.

    Raises:
        BucketFailed: a task that failed to the end, with its last error.
    """
    events = sum(task.rows for task in tasks)
    with progress_bar(run, settings.job, events, progress):
        for attempt in range(1, attempts + 1):
            left = [task for task in tasks if run.receipt(task.name) is None]
            if not left:
                break
            order = pipeline.in_balanced_order((task, task.rows) for task in left)

            def build(p: beam.Pipeline, order: list[BucketTask] = order) -> None:
                _ = (
                    p
                    | "Buckets" >> beam.Create(order, reshuffle=False)
                    | "Spread" >> beam.Reshuffle()
                    | settings.job >> beam.ParDo(DoBucket(settings, source))
                )

            try:
                pipeline.run(build, beam_args)
            except Exception as error:
                failures = run.failures()
                final = [f for f in failures.values() if f["exit_code"] == ExitCode.BAD_INPUT]
                if attempt == attempts or final:
                    raise _failed(run, failures, error) from error
    receipts = {task.name: run.receipt(task.name, verify=False) for task in tasks}
    missing = [name for name, receipt in receipts.items() if receipt is None]
    if missing:
        raise IncompleteRun(
            f"{run.path}: expected a receipt for each of {len(tasks)} buckets, {len(missing)} are missing "
            f"({', '.join(missing[:5])}); nothing was published. Run the same command again to continue"
        )
    return {name: receipt for name, receipt in receipts.items() if receipt is not None}


def check_complete(run: RunDirectory, tasks: Sequence[BucketTask], receipts: Receipts) -> None:
    """Law 8, per bucket: users read = written + dead-lettered, records in the shard = written.

    Raises:
        IncompleteRun: with the buckets where it does not hold.
    """
    wrong = []
    for task in tasks:
        counts = receipts[task.name]["counts"]
        if counts["users"] != counts["written"] + counts["dead_letters"]:
            wrong.append(
                f"{task.name}: {counts['users']} users, {counts['written']} written, "
                f"{counts['dead_letters']} dead-lettered"
            )
        elif counts["records"] != counts["written"]:
            wrong.append(f"{task.name}: {counts['written']} written, {counts['records']} in the shard")
    if wrong:
        raise IncompleteRun(
            f"{run.path}: expected users = written + dead-lettered in every bucket, found "
            f"{'; '.join(wrong[:5])}; nothing was published and the old generation is live. "
            f"Keep the run directory and report this"
        )


def totals(receipts: Receipts) -> dict[str, int]:
    """Counts of all buckets, summed by name."""
    sums: dict[str, int] = {"buckets": len(receipts)}
    for receipt in receipts.values():
        for name, n in receipt["counts"].items():
            sums[name] = sums.get(name, 0) + n
    return sums


def step_times(receipts: Receipts, started: float) -> dict[str, float]:
    """Seconds of each step summed over buckets, and the wall time of the driver since ``started``."""
    sums: dict[str, float] = {}
    for receipt in receipts.values():
        for name, s in receipt["timings"].items():
            sums[name] = sums.get(name, 0.0) + s
    return {
        **{name: round(s, 3) for name, s in sums.items()},
        "wall": round(time.perf_counter() - started, 3),
    }


def environment(beam_args: Sequence[str], **more: Any) -> dict[str, Any]:
    """What is worth keeping about where a run ran; nothing in it changes the result."""
    return {
        "beam_args": list(beam_args),
        "beam": beam.__version__,
        "python": platform.python_version(),
        "host": platform.node(),
        **more,
    }


def finished(run: RunDirectory, record: RunRecord, **facts: Any) -> RunRecord:
    """The record of a published run: exit code 3 if anything was dead-lettered."""
    letters = facts["counts"].get("dead_letters", 0)
    code = ExitCode.DEAD_LETTERS if letters else ExitCode.DONE
    return run.finish(dataclasses.replace(record, exit_code=int(code), **facts))


def _failed(run: RunDirectory, failures: dict[str, dict[str, Any]], error: Exception) -> Exception:
    if not failures:
        return error
    name, fact = next(iter(failures.items()))
    more = f" and {len(failures) - 1} more buckets" if len(failures) > 1 else ""
    failed = BucketFailed(
        f"{run.path}: {name}{more} failed with {fact['error']}: {fact['text']}; nothing was published and "
        f"the old generation is live. Remove the cause and run the same command again to continue"
    )
    if fact["exit_code"] == ExitCode.BAD_INPUT:
        failed.exit_code = ExitCode.BAD_INPUT
    return failed
