"""``ingest``: logs in any order to history and impression tables, bucketed and sorted by user; one snapshot per run.

    check every footer ─▶ vocabularies ─▶ read ─▶ (bucket) sort, merge, write ─▶ (item shard) add up ─▶ commit

The only job that shuffles: the receipts of a step name columnar chunks (``spill``), whose paths the driver groups for
the next. Faults of whole files and of the configuration are errors before anything is written; faults of rows are dead
letters. Rows read = events written + repeated in the logs + already in the table + dead letters, or nothing is
committed.

A run's directory holds, beside what every run has: ``plan.json`` (files, tasks, bounds, vocabularies as decided at
the start; a resumed run takes them from there), ``spill/`` (removed when the run is done).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from beam_jobs.errors import ExitCode, IncompleteRun
from beam_jobs.ingest import pipeline as steps
from beam_jobs.ingest.plan import IngestOptions, Plan, make_plan, read_tasks
from beam_jobs.ingest.read import read_items
from beam_jobs.ingest.units import OldFile, Settings
from beam_jobs.run import job as jobs
from beam_jobs.run.job import Job, Run
from beam_jobs.run.limits import check_disk
from beam_jobs.run.record import DeadLetter, RunDirectory, RunRecord, write_atomically
from vista.data import paths
from vista.data.logs.importer import Rules
from vista.data.tables.commits import Addition, commit, recover
from vista.data.tables.rows import HISTORY, IMPRESSIONS
from vista.data.tables.warehouse import Warehouse

JOB = "ingest"
ITEM_SHARD_ROWS = 20_000_000
SPILLED_BYTES, STORED_BYTES = 40, 4
"""Of a row on its way between readers and buckets, and at least of a row in the tables."""


def run(
    options: IngestOptions,
    beam_args: Sequence[str] = (),
    *,
    clock: Callable[[], float] = time.time,
    progress: bool = True,
) -> RunRecord:
    """Ingest; the record says what came of it (``exit_code`` 3 where something was set aside).

    Args:
        beam_args: options of the runner (``runner.local_args`` for a local one).
        clock: seconds since the epoch.

    Raises:
        DataError, JobError: typed faults; nothing was committed.
    """
    job = Job(
        JOB,
        options.run_dir,
        options.identity(),
        beam_args,
        attempts=options.attempts,
        progress=progress,
        clock=lambda: int(clock() * 1000),
        unharmed="nothing was committed",
    )
    return jobs.run(job, functools.partial(_ingest, options=options))


def _ingest(run: Run, options: IngestOptions) -> RunRecord:
    run_dir, warehouse = run.directory, Warehouse(options.warehouse)
    plan = make_plan(options, warehouse, run_dir, run.record, run.job.args)
    committed = warehouse.exists() and warehouse.has_commit(plan.run)
    if not committed:
        plan = _prepare(options, warehouse, run_dir, plan)
        _write_bad_files(run_dir, plan)
        if plan.rows or plan.items:
            _check_room(options, run_dir, plan)
            _work(run, warehouse, plan, _settings(options, warehouse, run_dir, plan))
    counts = _counts(run_dir, plan)
    if not committed and (plan.rows or plan.items):
        _commit(warehouse, run_dir, plan)
    shutil.rmtree(run_dir.path / "spill", ignore_errors=True)
    warehouse.refresh()
    lost = counts["dead_rows"] + len(plan.bad_files)
    return run.finish(
        run_dir.receipts(),
        table_snapshot=warehouse.snapshot() if warehouse.exists() else None,
        counts=counts,
        notes=_notes(plan, warehouse),
        exit_code=int(ExitCode.DEAD_LETTERS if lost else ExitCode.DONE),
    )


def _prepare(options: IngestOptions, warehouse: Warehouse, run_dir: RunDirectory, plan: Plan) -> Plan:
    """Make the tables where there are none; renumber the commit where another one came in between."""
    if not warehouse.exists():
        warehouse.create(user_kind=plan.user_kind, num_buckets=plan.num_buckets)
    warehouse.open()
    recover(warehouse)
    commit = warehouse.commit_number + 1
    if commit == plan.commit:
        return plan
    plan = dataclasses.replace(plan, commit=commit)
    write_atomically(run_dir.path / "plan.json", plan.to_json())
    return plan


def _settings(options: IngestOptions, warehouse: Warehouse, run_dir: RunDirectory, plan: Plan) -> Settings:
    return Settings(
        run_dir=str(run_dir.path),
        run=plan.run,
        commit=plan.commit,
        user_kind=plan.user_kind,
        num_buckets=plan.num_buckets,
        item_shards=max(1, math.ceil(plan.rows / ITEM_SHARD_ROWS)),
        roots={name: warehouse.table(name).location() for name in ("history", "impressions", "items")},
        rules=Rules(plan.min_time_ms, plan.max_time_ms, plan.actions, plan.surfaces, options.time_unit),
        chunk_rows=min(options.chunk_rows, options.max_rows),
        max_rows=options.max_rows,
        skip_bad_files=options.skip_bad_files,
    )


def _work(run: Run, warehouse: Warehouse, plan: Plan, settings: Settings) -> None:
    """Every step; what one hands to the next are paths, grouped here by bucket and by item shard."""
    named = read_items(plan.items, settings)
    tasks = [
        *read_tasks(plan.events, "events", settings.chunk_rows),
        *read_tasks(plan.impressions, "impressions", settings.chunk_rows),
    ]
    read = run.do("ingest: read", tasks, functools.partial(steps.read, settings=settings))
    values: dict[int, list[Any]] = steps.grouped(steps.handed_on(read.values()), "bucket")
    for tag, kind in (("events", HISTORY), ("impressions", IMPRESSIONS)):
        for bucket, files in warehouse.bucket_files(kind=kind).items():
            if bucket in values:
                values[bucket] += [OldFile(tag, file) for file in files]
    buckets = [steps.Bucket(number, tuple(found)) for number, found in values.items()]
    built = run.do("ingest: sort", buckets, functools.partial(steps.build, settings=settings))
    counted = [*steps.handed_on(read.values()), *named, *steps.handed_on(built.values())]
    shards = [steps.ItemShard(n, tuple(found)) for n, found in steps.grouped(counted, "items").items()]
    run.do("ingest: items", shards, functools.partial(steps.add_up, settings=settings))


def _check_room(options: IngestOptions, run_dir: RunDirectory, plan: Plan) -> None:
    """Raises OptionsError, RunStorageFull: rows under way, or in the tables, have no room."""
    needs: dict[str | Path, int] = {run_dir.path: plan.rows * SPILLED_BYTES}
    if isinstance(options.warehouse, str) and paths.is_local(options.warehouse):
        needs[paths.local_path(options.warehouse)] = plan.rows * STORED_BYTES
    check_disk(needs, options.max_bytes)


def _write_bad_files(run_dir: RunDirectory, plan: Plan) -> None:
    letters = [DeadLetter(JOB, "unreadable_file", why, source=path, rows=0) for path, why in plan.bad_files]
    run_dir.write_dead_letters("files", letters)


def _counts(run_dir: RunDirectory, plan: Plan) -> dict[str, int]:
    """Sums over the receipts, and law 8: what was read is accounted for.

    Raises:
        IncompleteRun: it is not.
    """
    receipts = run_dir.receipts()

    def total(key: str, prefix: str = "") -> int:
        return sum(r["counts"].get(key, 0) for name, r in receipts.items() if name.startswith(prefix))

    counts = {"files": len(plan.events) + len(plan.impressions), "known_files": plan.known}
    counts["bad_files"] = len(plan.bad_files)
    counts["empty_files"] = sum(s.rows == 0 for s in (*plan.events, *plan.impressions))
    counts["users"] = total("users", "bucket-")
    counts["items_dead"] = total("dead", "read-items")
    counts["dead_rows"] = total("dead", "read-") + total("impressions_dead", "bucket-")
    wrong = []
    for tag, sources in (("events", plan.events), ("impressions", plan.impressions)):
        rows = sum(s.rows for s in sources)
        read = f"read-{tag}-"
        found = {k: total(f"{tag}_{k}", "bucket-") for k in ("written", "repeated", "in_table", "late")}
        dead = total("dead", read) + (total("impressions_dead", "bucket-") if tag == "impressions" else 0)
        counts |= {f"{tag}_read": rows, f"{tag}_dead": dead, **{f"{tag}_{k}": v for k, v in found.items()}}
        accounted = found["written"] + found["repeated"] + found["in_table"] + dead
        if rows != total("rows", read) or rows != accounted:
            wrong.append(
                f"{tag}: {rows} rows in the files, {total('rows', read)} read, {accounted} accounted for"
            )
    counts["events"] = counts["events_written"]
    counts["items"] = total("items", "items-")
    if total("item_events", "items-") != counts["events_written"]:
        wrong.append(
            f"items: {total('item_events', 'items-')} events counted, {counts['events_written']} written"
        )
    if wrong:
        raise IncompleteRun(
            f"{run_dir.path}: expected rows read = written + repeated + in the table + dead letters, found "
            f"{'; '.join(wrong)}; nothing was committed. Run the same vista ingest with the same "
            f"--run-dir again to continue"
        )
    return counts


def _commit(warehouse: Warehouse, run_dir: RunDirectory, plan: Plan) -> None:
    files: dict[str, list[str]] = {"history": [], "impressions": [], "items": []}
    for receipt in run_dir.receipts().values():
        for uri in receipt.get("table_files", ()):
            name = next(n for n in files if uri.startswith(warehouse.table(n).location() + "/"))
            files[name].append(uri)
    commit(
        warehouse,
        Addition(
            run=plan.run,
            history=sorted(files["history"]),
            impressions=sorted(files["impressions"]),
            items=sorted(files["items"]),
            sources=[
                (s.path, s.bytes, s.digest, s.rows) for s in (*plan.events, *plan.impressions, *plan.items)
            ],
            actions=plan.actions,
            surfaces=plan.surfaces,
            properties={f"kind-{k}": v for k, v in plan.kinds.items() if k != "user_id"},
        ),
    )


def _notes(plan: Plan, warehouse: Warehouse) -> list[str]:
    notes = []
    if plan.known:
        notes.append(f"{plan.known} files were ingested before and left out")
    if not warehouse.exists() or warehouse.impressions.current_snapshot() is None:
        notes.append(
            "no impressions: training draws candidates that were not engaged by popularity in the surface"
        )
    return notes
