"""``compact tables``: the many small files of a bucket into few, one task per bucket, published at once.

    due buckets ──Beam──▶ merged files ──one snapshot per table──▶ readers open fewer files

The result has the same rows in the same order (vista/data/tables/compaction.py), so summaries keep their digest. A
run that was killed goes on with the same run directory: buckets that are merged are kept, if their files are still
those of the table. Old files stay for jobs under way and for generations that were made from them; ``vista prune``
deletes them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import apache_beam as beam

from beam_jobs.errors import BucketFailed, ExitCode, OptionsError
from beam_jobs.horizon import horizon_of
from beam_jobs.run import runner as pipeline
from beam_jobs.run.facts import environment, now_ms, step_times
from beam_jobs.run.progress import progress_bar
from beam_jobs.run.record import RunDirectory, RunRecord, peak_memory_bytes
from vista.data import paths
from vista.data.tables.commits import recover
from vista.data.tables.compaction import (
    MAX_FILES,
    Merge,
    merge_items,
    merges,
    publish_merges,
    write_merged,
)
from vista.data.tables.reading import DataFile
from vista.data.tables.warehouse import Warehouse

JOB = "compact"


@dataclass(frozen=True)
class CompactOptions:
    """What to merge.

    Attributes:
        warehouse: folder of the tables, or properties of a PyIceberg catalog.
        run_dir: folder of this run; an interrupted run continues from it.
        stores: cache stores whose kept generations must still be able to go on by ``refresh``: files that came after
            the oldest of them are left as they are.
        most: a bucket with more files than this is due.
        everything: merge every bucket down to one file, however large the files are.
        max_rows: rows that a task holds, about 200 bytes each.
        attempts: how often the tasks are handed to a runner that gives up.
        progress: show a bar where standard error is a terminal.
    """

    warehouse: str | Mapping[str, str]
    run_dir: str
    stores: Sequence[str] = ()
    most: int = MAX_FILES
    everything: bool = False
    max_rows: int = 1_000_000
    now_ms: int | None = None
    attempts: int = 2
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("most", "max_rows", "attempts"):
            if getattr(self, name) < 1:
                raise OptionsError(
                    f"{name}: expected at least 1, found {getattr(self, name)}; see vista compact --help"
                )

    def identity(self) -> dict[str, Any]:
        """What decides the result; a run can be continued only with the same."""
        where = self.warehouse if isinstance(self.warehouse, str) else dict(self.warehouse)
        stores = [str(store) for store in self.stores]
        return {"warehouse": where, "stores": stores, "most": self.most, "everything": self.everything}


class MergeBucket(beam.DoFn):
    """One element, one bucket of one table."""

    def __init__(self, run_dir: str, max_rows: int):
        self._run_dir, self._max_rows = run_dir, max_rows

    def process(self, merge: Merge) -> Iterator[str]:
        do_merge(merge, self._run_dir, self._max_rows)
        yield merge.name


def do_merge(merge: Merge, run_dir: str, max_rows: int) -> None:
    """Write the merged file and its receipt; nothing to do where both are there."""
    run = RunDirectory(run_dir)
    facts = asdict(merge)
    done = run.receipt(merge.name)
    if done is not None and done["merge"] == facts and paths.exists(merge.target):
        return
    start = time.perf_counter()
    try:
        rows = write_merged(merge, max_rows)
    except BaseException as error:
        run.note_failure(merge.name, error)
        raise
    local = [paths.local_path(merge.target)] if paths.is_local(merge.target) else []
    receipt = {
        "merge": facts,
        "files": run.describe_files(local),
        "counts": {"files": len(merge.files), "events": merge.rows, "rows": rows},
        "timings": {"merge": round(time.perf_counter() - start, 4)},
        "peak_memory_bytes": peak_memory_bytes(),
    }
    run.write_receipt(merge.name, receipt)


def run(options: CompactOptions, beam_args: Sequence[str] = ()) -> RunRecord:
    """Merge what is due and publish it.

    Returns:
        The record: ``counts`` has buckets, files before, rows, and how many buckets were left because they changed
        meanwhile (``skipped``).

    Raises:
        VistaError: with the exit code in the class; the tables are as they were.
    """
    started = time.perf_counter()
    directory, record = RunDirectory.start(
        options.run_dir,
        job=JOB,
        identity=options.identity(),
        environment=environment(beam_args, attempts=options.attempts),
        started_ms=now_ms(options.now_ms),
    )
    if record.exit_code is not None:
        return record
    with directory.hold():
        warehouse = Warehouse(options.warehouse).open()
        recover(warehouse)
        until = horizon_of(warehouse, options.stores)
        tasks = merges(warehouse, record.run_id, until, options.most, options.everything)
        if tasks:
            _work(directory, tasks, options, beam_args)
        done = [merge_of(receipt["merge"]) for receipt in directory.receipts().values()]
        published = publish_merges(warehouse, done, record.run_id)
        items = merge_items(warehouse, record.run_id, 1 if options.everything else options.most)
        return directory.finish(_finished(record, directory, warehouse, published, items, until, started))


def merge_of(facts: Mapping[str, Any]) -> Merge:
    """A merge from its receipt."""
    return Merge(**{**facts, "files": tuple(DataFile(**f) for f in facts["files"])})


def _work(
    directory: RunDirectory, tasks: Sequence[Merge], options: CompactOptions, beam_args: Sequence[str]
) -> None:
    order = pipeline.in_balanced_order((task, task.rows) for task in tasks)

    def build(p: beam.Pipeline) -> None:
        _ = (
            p
            | "Buckets" >> beam.Create(order, reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | JOB >> beam.ParDo(MergeBucket(str(directory.path), options.max_rows))
        )

    with progress_bar(directory, "compact tables", sum(task.rows for task in tasks), options.progress):
        for attempt in range(1, options.attempts + 1):
            try:
                pipeline.run(build, beam_args, imports=(__name__,))
                return
            except Exception as error:
                failures = directory.failures()
                if not failures:
                    raise
                name, fact = next(iter(failures.items()))
                bad = fact["exit_code"] == ExitCode.BAD_INPUT
                if attempt == options.attempts or bad:
                    failed = BucketFailed(
                        f"{directory.path}: {name} failed with {fact['error']}: {fact['text']}; the tables are as they "
                        f"were. Remove the cause and run the same vista compact with the same --run-dir again"
                        f" to continue"
                    )
                    failed.exit_code = ExitCode.BAD_INPUT if bad else failed.exit_code
                    raise failed from error


def _finished(
    record: RunRecord,
    directory: RunDirectory,
    warehouse: Warehouse,
    published: Sequence[Merge],
    items: int,
    until: int,
    started: float,
) -> RunRecord:
    receipts = directory.receipts()
    counts = {
        "buckets": len(published),
        "files": sum(len(m.files) for m in published),
        "events": sum(m.rows for m in published),
        "item_files": items,
        "skipped": len(receipts) - len(published),
    }
    notes = []
    if not published:
        notes.append("no bucket is due")
    if until < warehouse.commit_number:
        notes.append(
            f"files of the last {warehouse.commit_number - until} commits stay apart, for a kept generation has not "
            f"seen them; vista refresh, then vista prune, moves that on"
        )
    if counts["skipped"]:
        notes.append(f"{counts['skipped']} buckets changed meanwhile and were left as they are; run it again")
    return dataclasses.replace(
        record,
        finished_ms=record.started_ms + int((time.perf_counter() - started) * 1000),
        table_snapshot=warehouse.snapshot(),
        counts=counts,
        timings=step_times(receipts, started),
        notes=notes,
        exit_code=int(ExitCode.DONE),
    )
