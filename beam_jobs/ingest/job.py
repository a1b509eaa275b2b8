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
import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from beam_jobs.errors import ExitCode, IncompleteRun
from beam_jobs.ingest.build import build_bucket
from beam_jobs.ingest.items import SHARD_BYTES, build_items, read_items, tells_content
from beam_jobs.ingest.options import LOG_KINDS, IngestOptions
from beam_jobs.ingest.plan import IngestPlan, holds_users, make_plan, read_tasks, rules_of
from beam_jobs.ingest.read import read_logs
from beam_jobs.ingest.units import Bucket, IngestSettings, ItemShard, OldFile, grouped, handed_on
from beam_jobs.run import job as jobs
from beam_jobs.run.files import write_atomically
from beam_jobs.run.job import Job, Run
from beam_jobs.run.limits import check_disk
from beam_jobs.run.record import DeadLetter, RunDirectory, RunRecord
from vista.data import paths
from vista.data.logs.weights import spelled, weights
from vista.data.tables.commits import Addition, TableChanged, alone, commit, recover
from vista.data.tables.content import WIDTH
from vista.data.tables.forgotten import ForgottenUsers
from vista.data.tables.ledger import LedgerRow
from vista.data.tables.manifests import PREFIX
from vista.data.tables.remembering import forgotten_users
from vista.data.tables.rows import HISTORY, IMPRESSIONS
from vista.data.tables.warehouse import TableExists, Warehouse

JOB = "ingest"
TABLES = ("history", "impressions", "items", "content")
"""Those that a run writes files of."""
ITEM_SHARD_ROWS = 20_000_000
SPILLED_BYTES, STORED_BYTES = 40, 4
"""Of a row on its way between readers and buckets, and at least of a row in the tables."""
TRIES = 4
"""How often a run builds for tables that others change meanwhile, before it gives up (exit code 4)."""


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
    for attempt in range(1, TRIES + 1):
        plan = make_plan(options, warehouse, run_dir, run.record, run.job.args, run.job.progress)
        try:
            counts = _built_and_committed(run, options, warehouse, plan)
            break
        except TableChanged:
            # Another ingest, or vista forget, came in between: number, vocabularies, known rows are of other tables.
            _begin_again(run_dir)
            if attempt == TRIES:
                raise
    shutil.rmtree(run_dir.path / "spill", ignore_errors=True)
    warehouse.refresh()
    lost = counts["dead_rows"] + len(plan.bad_files)
    return run.finish(
        run_dir.receipts(),
        table_snapshot=warehouse.snapshot() if warehouse.exists() else None,
        counts=counts,
        notes=_notes(plan, warehouse, counts, _copies(run_dir, plan)),
        exit_code=int(ExitCode.DEAD_LETTERS if lost else ExitCode.DONE),
    )


def _built_and_committed(
    run: Run, options: IngestOptions, warehouse: Warehouse, plan: IngestPlan
) -> dict[str, int]:
    """Counts of the run, which is in the tables afterwards; TableChanged where these are not those of the plan."""
    if warehouse.exists():
        recover(warehouse)
        if warehouse.has_commit(plan.run):
            return _counts(run.directory, plan)
    if warehouse.exists() or "user_id" in plan.kinds or plan.items:  # else nothing says what ids are
        plan = _prepare(warehouse, run.directory, plan)
    unread = [DeadLetter(JOB, "unreadable_file", why, source=path, rows=0) for path, why in plan.bad_files]
    run.directory.write_dead_letters("files", unread)
    if plan.rows or plan.items:
        _check_room(options, run.directory, plan)
        _work(run, warehouse, plan, _settings(options, warehouse, run.directory, plan))
    counts = _counts(run.directory, plan)
    # A first run none of whose rows was taken says nothing: not what ids are, nor that its files are known.
    taken = counts["events_written"] + counts["impressions_written"] + counts["items"]
    if warehouse.exists() and (plan.rows or plan.items) and (taken or warehouse.commit_number):
        _commit(warehouse, run.directory, plan, counts, options.properties)
    return counts


def _prepare(warehouse: Warehouse, run_dir: RunDirectory, plan: IngestPlan) -> IngestPlan:
    """Make the tables where there are none; TableChanged where there are others than the plan was made for."""
    with alone(warehouse):
        made = not plan.basis and not warehouse.exists()
        if made:
            try:
                warehouse.create(user_kind=plan.user_kind, num_buckets=plan.num_buckets)
            except TableExists as error:
                raise TableChanged(f"{error}") from error
        elif plan.kinds.get("user_id") and not holds_users(warehouse.refresh()):
            made = plan.user_kind != warehouse.user_kind and warehouse.basis() == plan.basis
            if made:
                _make_again(warehouse, plan.user_kind)
    if tells_content(plan.items):
        warehouse.create_content()
    basis = warehouse.refresh().basis()
    if made:
        plan = dataclasses.replace(plan, basis=basis)
        write_atomically(run_dir.path / "plan.json", plan.to_json())
    if basis != plan.basis:
        raise TableChanged(
            f"{warehouse.name}: expected the tables that {run_dir.path} began with, found that another commit came in "
            f"between; run the same vista ingest with the same --run-dir again"
        )
    return plan


def _begin_again(run_dir: RunDirectory) -> None:
    """Forget what was planned and built; the plan last, so that an interrupted run sees what is left of it."""
    for receipt in run_dir.receipts().values():
        paths.remove(receipt.get("table_files", ()))
    for name in ("receipts", "dead", "failures", "progress", "spill"):
        shutil.rmtree(run_dir.path / name, ignore_errors=True)
    (run_dir.path / "plan.json").unlink(missing_ok=True)


def _make_again(warehouse: Warehouse, user_kind: str) -> None:
    """Tables of users of another kind, in place of those that never held one (items alone came before)."""
    facts = {
        k.removeprefix(PREFIX): v for k, v in warehouse.history.properties.items() if k.startswith(PREFIX)
    }
    buckets = warehouse.num_buckets
    for name in ("impressions", "history"):
        warehouse.catalog.drop_table((warehouse.namespace, name))
    warehouse.refresh()
    warehouse.create(user_kind=user_kind, num_buckets=buckets, properties={**facts, "user-kind": user_kind})
    warehouse.open()


def _settings(
    options: IngestOptions, warehouse: Warehouse, run_dir: RunDirectory, plan: IngestPlan
) -> IngestSettings:
    vectors = 4 * plan.vector_width * sum(s.rows for s in plan.items if "vector" in s.names)
    return IngestSettings(
        run_dir=str(run_dir.path),
        run=plan.run,
        commit=plan.commit,
        user_kind=plan.user_kind,
        num_buckets=plan.num_buckets,
        item_shards=max(1, math.ceil(plan.rows / ITEM_SHARD_ROWS), math.ceil(vectors / SHARD_BYTES)),
        roots={n: warehouse.table(n).location() for n in TABLES if warehouse.has_table(n)}
        if warehouse.exists()
        else {},
        vector_width=plan.vector_width,
        rules=rules_of(plan, options.log),
        shown_rules=rules_of(plan, options.impression_log()),
        chunk_rows=min(options.chunk_rows, options.max_rows),
        max_rows=options.max_rows,
        skip_bad_files=options.skip_bad_files,
        forgotten=forgotten_users(warehouse) if warehouse.exists() else ForgottenUsers(),
    )


def _work(run: Run, warehouse: Warehouse, plan: IngestPlan, settings: IngestSettings) -> None:
    """Every step; what one hands to the next are paths, grouped here by bucket and by item shard."""
    named = read_items(plan.items, settings)
    tasks = [
        *read_tasks(plan.events, "events", settings.chunk_rows),
        *read_tasks(plan.impressions, "impressions", settings.chunk_rows),
    ]
    read = run.do("ingest: read", tasks, functools.partial(read_logs, settings=settings))
    values: dict[int, list[Any]] = grouped(handed_on(read.values()), "bucket")
    for tag, kind in (("events", HISTORY), ("impressions", IMPRESSIONS)):
        for bucket, files in (warehouse.bucket_files(kind=kind) if values else {}).items():
            if bucket in values:
                values[bucket] += [OldFile(tag, file) for file in files]
    buckets = [Bucket(number, tuple(found)) for number, found in values.items()]
    built = run.do("ingest: sort", buckets, functools.partial(build_bucket, settings=settings))
    counted = [*handed_on(read.values()), *named, *handed_on(built.values())]
    shards = [ItemShard(n, tuple(found)) for n, found in grouped(counted, "items").items()]
    run.do("ingest: items", shards, functools.partial(build_items, settings=settings))


def _check_room(options: IngestOptions, run_dir: RunDirectory, plan: IngestPlan) -> None:
    """Raises OptionsError, RunStorageFull: rows under way, or in the tables, have no room."""
    needs: dict[str | Path, int] = {run_dir.path: plan.rows * SPILLED_BYTES}
    if isinstance(options.warehouse, str) and paths.is_local(options.warehouse):
        needs[paths.local_path(options.warehouse)] = plan.rows * STORED_BYTES
    check_disk(needs, options.max_bytes)


def _counts(run_dir: RunDirectory, plan: IngestPlan) -> dict[str, int]:
    """Sums over the receipts, and law 8: what was read is accounted for, or IncompleteRun."""
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
        found = {
            k: total(f"{tag}_{k}", "bucket-")
            for k in ("written", "repeated", "in_table", "forgotten", "late")
        }
        dead = total("dead", read) + (total("impressions_dead", "bucket-") if tag == "impressions" else 0)
        counts |= {f"{tag}_read": rows, f"{tag}_dead": dead, **{f"{tag}_{k}": v for k, v in found.items()}}
        accounted = sum(found.values()) - found["late"] + dead
        # Rows of events that are impressions: some are no event, and all are impressions beside those of files.
        if tag == "events":
            accounted += total("unengaged", read)
        else:
            accounted -= total("shown", "read-events-")
        if rows != total("rows", read) or rows != accounted:
            wrong.append(
                f"{tag}: {rows} rows in the files, {total('rows', read)} read, {accounted} accounted for"
            )
    counts["unengaged"] = total("unengaged", "read-events-")
    counts["copies"] = sum(n for _, n in _copies(run_dir, plan))
    counts["events"] = counts["events_written"]
    counts |= {"items": total("items", "items-"), "vectors": total("vectors", "items-")}
    counts["items_repeated"] = total("items_repeated", "items-")
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


def _copies(run_dir: RunDirectory, plan: IngestPlan) -> list[tuple[str, int]]:
    """(file, how many of its rows were dropped as copies of others of it), most first."""
    receipts = run_dir.receipts().values()
    found: Counter[str] = Counter()
    for source in plan.events:
        key = f"events_copies-{source.number}"
        found[source.path] += sum(r["counts"].get(key, 0) for r in receipts)
    return [(path, n) for path, n in found.most_common() if n]


def _commit(
    warehouse: Warehouse,
    run_dir: RunDirectory,
    plan: IngestPlan,
    counts: dict[str, int],
    properties: Mapping[str, str],
) -> None:
    files: dict[str, list[str]] = {n: [] for n in TABLES if warehouse.has_table(n)}
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
            content=sorted(files.get("content", ())),
            sources=_ledger_rows(run_dir, plan, counts["events_in_table"] + counts["impressions_in_table"]),
            actions=plan.actions,
            surfaces=plan.surfaces,
            properties={
                **{f"kind-{k}": v for k, v in plan.kinds.items() if k != "user_id"},
                "weights": json.dumps({**warehouse.weights, **plan.log.get("weights", {})}),
                **({WIDTH: str(plan.vector_width)} if plan.vector_width else {}),
                **properties,
            },
            basis=plan.basis,
        ),
    )


def _ledger_rows(run_dir: RunDirectory, plan: IngestPlan, in_table: int) -> list[LedgerRow]:
    dead = Counter[str]()
    for path in (run_dir.path / "dead").glob("read-*.parquet"):
        letters = pq.read_table(path, columns=["source", "rows"]).group_by("source")
        for row in letters.aggregate([("rows", "sum")]).to_pylist():
            dead[row["source"]] += row["rows_sum"]
    return [
        LedgerRow(s.path, s.bytes, s.digest, s.rows, kind, plan.readings[kind], dead[s.path], in_table)
        for kind, sources in zip(LOG_KINDS, (plan.events, plan.impressions, plan.items), strict=True)
        for s in sources
    ]


def _notes(
    plan: IngestPlan, warehouse: Warehouse, counts: dict[str, int], copies: Sequence[tuple[str, int]]
) -> list[str]:
    notes = list(plan.remarks)
    if copies:
        listed = ", ".join(f"{n:,} of {path}" for path, n in copies[:5])
        notes.append(
            f"rows dropped as copies of another row of the same file: {listed}; where times are coarse such rows are "
            f"events of their own, which --keep-repeats keeps"
        )
    if warehouse.exists() and warehouse.actions:
        told = warehouse.weights
        how = "as told" if set(told) == set(warehouse.actions) else "guessed but for what --weight says"
        notes.append(f"actions in a score ({how}): {spelled(weights(warehouse.actions, told))}")
    if plan.left_out:
        notes.append(
            f"{plan.left_out} files below folders were left out: no logs by their names, or made by vista"
        )
    if plan.known:
        notes.append(
            f"{plan.known} files were ingested before and left out; vista ingest --again reads them again"
        )
    gone = counts["events_forgotten"] + counts["impressions_forgotten"]
    if gone:
        notes.append(
            f"{gone} rows of users that were forgotten were left out: what is dated up to then does not come back"
        )
    if not warehouse.exists() or warehouse.impressions.current_snapshot() is None:
        notes.append(
            "no impressions: training draws candidates that were not engaged by popularity in the surface"
        )
    return notes
