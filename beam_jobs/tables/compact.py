"""``compact tables``: the many small files of a bucket into few, one task per bucket, published at once.

    due buckets ──engine──▶ merged files ──one snapshot per table──▶ readers open fewer files

The result has the same rows in the same order (vista/data/tables/compaction.py), so summaries keep their digest. A
run that was killed goes on with the same run directory: buckets that are merged are kept, if their files are still
those of the table. Old files stay for jobs under way and for generations that were made from them; ``vista prune``
deletes them.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from beam_jobs.errors import OptionsError
from beam_jobs.horizon import horizon_of
from beam_jobs.run import job as jobs
from beam_jobs.run.job import Job, Run
from beam_jobs.run.record import RunDirectory, RunRecord, peak_memory_bytes
from cache_store.read.options import wall_clock
from vista.data import paths
from vista.data.tables.commits import recover
from vista.data.tables.compaction import MAX_FILES, Merge, merge_small, merges, publish_merges, write_merged
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


def do_merge(merge: Merge, run_dir: str, max_rows: int) -> dict[str, int]:
    """Write the merged file and its receipt, if they are not there; its counts."""
    run = RunDirectory(run_dir)
    facts = asdict(merge)
    done = run.receipt(merge.name)
    if done is not None and done["merge"] == facts and paths.exists(merge.target):
        return done["counts"]
    start = time.perf_counter()
    rows = write_merged(merge, max_rows)
    local = [paths.local_path(merge.target)] if paths.is_local(merge.target) else []
    counts = {"files": len(merge.files), "events": merge.rows, "rows": rows}
    receipt = {
        "merge": facts,
        "files": run.describe_files(local),
        "counts": counts,
        "timings": {"merge": round(time.perf_counter() - start, 4)},
        "peak_memory_bytes": peak_memory_bytes(),
    }
    run.write_receipt(merge.name, receipt)
    return counts


def run(options: CompactOptions, beam_args: Sequence[str] = ()) -> RunRecord:
    """Merge what is due and publish it.

    Returns:
        The record: ``counts`` has buckets, files before, rows, and how many buckets were left because they changed
        meanwhile (``skipped``).

    Raises:
        VistaError: with the exit code in the class; the tables are as they were.
    """
    job = Job(
        JOB,
        options.run_dir,
        options.identity(),
        beam_args,
        attempts=options.attempts,
        progress=options.progress,
        clock=wall_clock if options.now_ms is None else functools.partial(int, options.now_ms),
        unharmed="the tables are as they were",
    )
    return jobs.run(job, functools.partial(_work, options=options))


def due(options: CompactOptions) -> dict[str, int]:
    """What :func:`run` would merge: buckets, their files and events. Nothing is written."""
    warehouse = Warehouse(options.warehouse).open()
    until = horizon_of(warehouse, options.stores)
    found = merges(warehouse, "dry-run", until, options.most, options.everything)
    return {
        "buckets": len(found),
        "files": sum(len(m.files) for m in found),
        "events": sum(m.rows for m in found),
    }


def _work(run: Run, options: CompactOptions) -> RunRecord:
    warehouse = Warehouse(options.warehouse).open()
    recover(warehouse)
    name = run.record.run_id
    until = horizon_of(warehouse, options.stores)
    tasks = merges(warehouse, name, until, options.most, options.everything)
    merge = functools.partial(do_merge, run_dir=str(run.directory.path), max_rows=options.max_rows)
    run.do("compact tables", tasks, merge)
    receipts = run.directory.receipts()  # also of merges that were done, but not published, before a kill
    published = publish_merges(warehouse, [merge_of(r["merge"]) for r in receipts.values()], name)
    most = 1 if options.everything else options.most
    small = merge_small(warehouse, name, most)
    counts = {
        "buckets": len(published),
        "files": sum(len(m.files) for m in published),
        "events": sum(m.rows for m in published),
        "item_files": small["items"],
        "content_files": small["content"],
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
    return run.finish(receipts, table_snapshot=warehouse.snapshot(), counts=counts, notes=notes)


def merge_of(facts: Mapping[str, Any]) -> Merge:
    """A merge from its receipt."""
    return Merge(**{**facts, "files": tuple(DataFile(**f) for f in facts["files"])})
