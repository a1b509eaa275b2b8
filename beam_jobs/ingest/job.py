"""``ingest``: logs in any order to history and impression tables, bucketed and sorted by user; one snapshot per run.

    check every footer ─▶ vocabularies ─▶ read ─▶ (bucket) sort, merge, write ─▶ (item shard) add up ─▶ commit

The only job that shuffles, and it shuffles paths of columnar chunks (``spill``). Faults of whole files and of the
configuration are errors before anything is written; faults of rows are dead letters. Rows read = events written +
repeated in the logs + already in the table + dead letters, or nothing is committed.

A run's directory holds, beside what every run has: ``plan.json`` (files, tasks, bounds, vocabularies as decided at
the start; a resumed run takes them from there), ``spill/`` (removed when the run is done).
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from beam_jobs.errors import BucketFailed, ExitCode, IncompleteRun
from beam_jobs.ingest.pipeline import build_pipeline
from beam_jobs.ingest.plan import IngestOptions, Plan, make_plan, read_tasks
from beam_jobs.ingest.read import read_items
from beam_jobs.ingest.units import OldFile, Settings
from beam_jobs.run import runner as pipeline
from beam_jobs.run.facts import environment
from beam_jobs.run.progress import progress_bar
from beam_jobs.run.record import DeadLetter, RunDirectory, RunRecord, write_atomically
from vista.data.logs.importer import Rules
from vista.data.tables.commits import Addition, commit, recover
from vista.data.tables.rows import HISTORY, IMPRESSIONS
from vista.data.tables.warehouse import Warehouse
from vista.errors import DataError

JOB = "ingest"
ITEM_SHARD_ROWS = 20_000_000


def run(
    options: IngestOptions,
    beam_args: Sequence[str] = (),
    *,
    clock: Callable[[], float] = time.time,
    progress: bool = True,
) -> RunRecord:
    """Ingest; the record says what came of it (``exit_code`` 3 where something was set aside).

    Args:
        beam_args: options of the runner (``pipeline.local_args`` for a local one).
        clock: seconds since the epoch.

    Raises:
        DataError, JobError: typed faults; nothing was committed.
    """
    started = time.perf_counter()
    run_dir, record = RunDirectory.start(
        options.run_dir,
        job=JOB,
        identity=options.identity(),
        environment=environment(beam_args, attempts=options.attempts),
        started_ms=int(clock() * 1000),
    )
    if record.exit_code is not None:
        return record
    with run_dir.hold():
        warehouse = Warehouse(options.warehouse)
        plan = make_plan(options, warehouse, run_dir, record, beam_args)
        committed = warehouse.exists() and warehouse.has_commit(plan.run)
        if not committed:
            plan = _prepare(options, warehouse, run_dir, plan)
            settings = _settings(options, warehouse, run_dir, plan)
            _write_bad_files(run_dir, plan)
            if plan.rows or plan.items:
                _work(options, warehouse, run_dir, plan, settings, beam_args, progress)
        counts = _counts(run_dir, plan)
        if not committed and (plan.rows or plan.items):
            _commit(warehouse, run_dir, plan)
        shutil.rmtree(run_dir.path / "spill", ignore_errors=True)
        warehouse.refresh()
        lost = counts["dead_rows"] + len(plan.bad_files)
        snapshot = warehouse.snapshot() if warehouse.exists() else None
        facts = dataclasses.replace(
            record,
            finished_ms=int(clock() * 1000),
            table_snapshot=snapshot,
            counts=counts,
            timings={**_step_times(run_dir), "wall": round(time.perf_counter() - started, 3)},
            notes=_notes(plan, warehouse),
            exit_code=int(ExitCode.DEAD_LETTERS if lost else ExitCode.DONE),
        )
        return run_dir.finish(facts)


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


def _work(
    options: IngestOptions,
    warehouse: Warehouse,
    run_dir: RunDirectory,
    plan: Plan,
    settings: Settings,
    beam_args: Sequence[str],
    progress: bool,
) -> None:
    tasks = [
        *read_tasks(plan.events, "events", settings.chunk_rows),
        *read_tasks(plan.impressions, "impressions", settings.chunk_rows),
    ]
    old = [
        (bucket, OldFile(tag, file))
        for tag, kind in (("events", HISTORY), ("impressions", IMPRESSIONS))
        for bucket, files in warehouse.bucket_files(kind=kind).items()
        for file in files
    ]
    named = read_items(plan.items, settings)
    with progress_bar(run_dir, "ingest: read, then sort", 2 * plan.rows, progress):
        for attempt in range(1, options.attempts + 1):
            shutil.rmtree(run_dir.path / "failures", ignore_errors=True)
            try:
                pipeline.run(
                    lambda p: build_pipeline(p, tasks, old, named, settings),
                    beam_args,
                    imports=(build_pipeline.__module__,),
                )
                faults = run_dir.failures()
                if not faults:
                    break
                raise _failed(run_dir, faults, None)
            except DataError:
                raise
            except Exception as error:
                failures = run_dir.failures()
                final = any(f["exit_code"] == ExitCode.BAD_INPUT for f in failures.values())
                if attempt == options.attempts or final:
                    raise _failed(run_dir, failures, error) from error


def _failed(
    run_dir: RunDirectory, failures: Mapping[str, Mapping[str, Any]], error: Exception | None
) -> Exception:
    if not failures and error is not None:
        return error
    name, fact = next(iter(failures.items()))
    if fact["exit_code"] == ExitCode.BAD_INPUT:
        return DataError(f"{fact['text']} (unit {name} of {run_dir.path}; nothing was committed)")
    return BucketFailed(
        f"{run_dir.path}: {name} failed with {fact['error']}: {fact['text']}; nothing was committed. Remove the cause "
        f"and run the same vista ingest with the same --run-dir again to continue"
    )


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


def _step_times(run_dir: RunDirectory) -> dict[str, float]:
    """Seconds of each step, summed over its tasks."""
    sums: dict[str, float] = {}
    for name, receipt in run_dir.receipts().items():
        step = name.split("-", 1)[0]
        sums[step] = round(sums.get(step, 0.0) + receipt["timings"]["seconds"], 3)
    return sums


def _notes(plan: Plan, warehouse: Warehouse) -> list[str]:
    notes = []
    if plan.known:
        notes.append(f"{plan.known} files were ingested before and left out")
    if not warehouse.exists() or warehouse.impressions.current_snapshot() is None:
        notes.append(
            "no impressions: training draws candidates that were not engaged by popularity in the surface"
        )
    return notes
