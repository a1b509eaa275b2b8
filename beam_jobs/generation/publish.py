"""From bucket tasks to one published generation: what summarize and refresh have in common.

    tasks without a trusted receipt ──Beam──▶ receipts ──complete?──▶ publish ──▶ run.json

Publication is the last step and happens once: a run that was killed after it finds its own generation and
only finishes its record.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam

from beam_jobs.errors import BucketFailed, ExitCode, IncompleteRun
from beam_jobs.generation.bucket_task import BucketTask, Settings, Source, do_bucket
from beam_jobs.run import runner as pipeline
from beam_jobs.run.facts import step_times
from beam_jobs.run.progress import progress_bar
from beam_jobs.run.record import RunDirectory, RunRecord
from cache_store import DEAD_LETTERS, MAX_DEPTH, Publication, Store

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

    All tasks are dealt out: one that is finished only compares its files with its receipt, in parallel with the
    others. A runner that retries does so by itself. Where it gives up (the local ones at once), the tasks are dealt
    out again, up to ``attempts`` times in all; an error in the input is not tried again.

    Raises:
        BucketFailed: a task that failed to the end, with its last error.
    """
    order = pipeline.in_balanced_order((task, task.rows) for task in tasks)

    def build(p: beam.Pipeline) -> None:
        _ = (
            p
            | "Buckets" >> beam.Create(order, reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | settings.job >> beam.ParDo(DoBucket(settings, source))
        )

    with progress_bar(run, settings.job, sum(task.rows for task in tasks), progress):
        for attempt in range(1, attempts + 1):
            shutil.rmtree(run.path / "failures", ignore_errors=True)
            try:
                pipeline.run(build, beam_args, imports=(__name__, source.__module__))
                break
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
            f"({', '.join(missing[:5])}); nothing was published. Run the same command with "
            f"the same --run-dir again to continue"
        )
    return {name: receipt for name, receipt in receipts.items() if receipt is not None}


def to_generation(
    run: RunDirectory,
    record: RunRecord,
    tasks: Sequence[BucketTask],
    settings: Settings,
    source: OpenSource,
    beam_args: Sequence[str],
    store: Store,
    *,
    started: float,
    attempts: int,
    progress: bool,
    line: str,
    kind: str,
    parent: str | None,
    watermark_ms: int,
    max_depth: int = MAX_DEPTH,
) -> RunRecord:
    """Do the tasks, check law 8, publish, and finish the record.

    Args:
        started: ``time.perf_counter()`` at the start of the job.
        watermark_ms: of the parent; the generation's is this or its latest event.
        max_depth: deltas over a full generation at most.

    Raises:
        BucketFailed, IncompleteRun, StoreError: nothing was published.
    """
    if store.published(record.run_id) is None:
        store.stage(record.run_id)
        receipts = run_tasks(run, tasks, settings, source, beam_args, attempts=attempts, progress=progress)
        check_complete(run, tasks, receipts)
        letters = run.gather_dead_letters()
        shutil.copyfile(run.path / DEAD_LETTERS, Path(settings.staging) / DEAD_LETTERS)
    else:  # killed after publication: what is left is to say so
        receipts = run.receipts()
        letters = run.gather_dead_letters()
    counts = {**totals(receipts), "dead_letters": letters}
    if kind == "delta" and not counts["users"]:
        shutil.rmtree(settings.staging, ignore_errors=True)
        return nothing_to_do(run, record, str(parent), counts, step_times(receipts, started))
    manifest = store.publish(
        Path(settings.staging),
        [receipt["shard"] for receipt in receipts.values()],
        Publication(
            line=line,
            kind=kind,
            parent=parent,
            fingerprint=settings.fingerprint,
            table_snapshot=record.table_snapshot,
            watermark_ms=max([watermark_ms, *(r["watermark_ms"] for r in receipts.values())]),
            expected=counts["users"],
            dead_letters=letters,
            max_depth=max_depth,
        ),
    )
    facts = dataclasses.replace(
        record,
        finished_ms=manifest.published_ms,
        generation=manifest.generation,
        counts=counts,
        digests={"content": manifest.digest},
        timings=step_times(receipts, started),
        exit_code=int(ExitCode.DEAD_LETTERS if letters else ExitCode.DONE),
    )
    return run.finish(facts)


def nothing_to_do(
    run: RunDirectory, record: RunRecord, parent: str, counts: dict[str, int], timings: dict[str, float]
) -> RunRecord:
    """The finished record of a refresh that found nothing new; ``parent`` stays live."""
    note = f"nothing to do: nothing is new since generation {parent}, which stays live"
    done = dataclasses.replace(
        record,
        generation=parent,
        notes=[*record.notes, note],
        counts=counts,
        finished_ms=int(time.time() * 1000),
        timings=timings,
        exit_code=int(ExitCode.DONE),
    )
    return run.finish(done)


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


def _failed(run: RunDirectory, failures: dict[str, dict[str, Any]], error: Exception) -> Exception:
    if not failures:
        return error
    name, fact = next(iter(failures.items()))
    more = f" and {len(failures) - 1} more buckets" if len(failures) > 1 else ""
    failed = BucketFailed(
        f"{run.path}: {name}{more} failed with {fact['error']}: {fact['text']}; nothing was published and "
        f"the old generation is live. Remove the cause and run the same command with the "
        f"same --run-dir again to continue"
    )
    if fact["exit_code"] == ExitCode.BAD_INPUT:
        failed.exit_code = ExitCode.BAD_INPUT
    return failed
