"""``ingest``: logs in any order to history and impression tables, bucketed and sorted by user; one snapshot per run.

    check every footer ─▶ vocabularies ─▶ read ─▶ (bucket) sort, merge, write ─▶ (item shard) add up ─▶ commit

The only job that shuffles, and it shuffles paths of columnar chunks (beam_jobs/spill.py). Faults of whole files and
of the configuration are errors before anything is written; faults of rows are dead letters. Rows read = events
written + repeated in the logs + already in the table + dead letters, or nothing is committed.

A run's directory holds, beside what every run has: ``plan.json`` (files, tasks, bounds, vocabularies as decided at
the start; a resumed run takes them from there), ``spill/`` (removed when the run is done).
"""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam

from beam_jobs import pipeline
from beam_jobs.errors import BucketFailed, ExitCode, IncompleteRun, OptionsError
from beam_jobs.ingest_tasks import (
    OldFile,
    ReadTask,
    Routed,
    Settings,
    build_bucket,
    build_items,
    read_logs,
    spill_names,
)
from beam_jobs.ingest_vocabulary import ScanColumns, vocabularies
from beam_jobs.progress import progress_bar
from beam_jobs.run_record import DeadLetter, RunDirectory, RunRecord, write_atomically
from beam_jobs.spill import Piece
from vista.data import paths, schema
from vista.data.importer import Rules
from vista.data.rows import HISTORY, IMPRESSIONS
from vista.data.schema import Source, UnreadableFile, WrongType
from vista.data.tables import Addition, Warehouse
from vista.errors import DataError

JOB = "ingest"
ITEM_SHARD_ROWS = 20_000_000


@dataclass(frozen=True)
class IngestOptions:
    """What to ingest, and where to.

    Attributes:
        events: files, folders or globs. impressions: likewise, or none.
        items: Parquet files with ``item_id`` and ``name``; gives numbered items their names, and lists items that no
            event has touched.
        warehouse: folder of the tables. catalog: properties of another PyIceberg catalog instead.
        run_dir: where the run keeps its record, and its chunks while it works; all workers see it.
        columns, impression_columns: meaning to column name, where they differ.
        num_buckets: of a new warehouse; an existing one keeps its own (0 takes it, or 16).
        actions, surfaces: the whole vocabulary, in order; None finds them in the logs. A value that is not in a
            given vocabulary is a dead letter.
        min_time_ms, max_time_ms: bounds on times; by default 1990 and a day after the start of the run.
        skip_bad_files: go on without files that cannot be read; they are counted and listed.
        again: read files that are in the ledger already; their rows are dropped one by one.
        max_rows: rows that a task holds while sorting, about 200 bytes each. chunk_rows: while reading.
        attempts: how often a failed task is handed to the runner.
    """

    events: tuple[str, ...]
    warehouse: str
    run_dir: str
    impressions: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    catalog: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    impression_columns: Mapping[str, str] = field(default_factory=dict)
    num_buckets: int = 0
    actions: tuple[str, ...] | None = None
    surfaces: tuple[str, ...] | None = None
    min_time_ms: int = schema.MIN_TIME_MS
    max_time_ms: int | None = None
    skip_bad_files: bool = False
    again: bool = False
    max_rows: int = 4_000_000
    chunk_rows: int = 1_000_000
    attempts: int = 2

    def __post_init__(self) -> None:
        for name, low in (("max_rows", 1), ("chunk_rows", 1), ("attempts", 1), ("num_buckets", 0)):
            if getattr(self, name) < low:
                raise OptionsError(
                    f"--{name.replace('_', '-')}: expected at least {low}, found {getattr(self, name)}; "
                    f"see vista ingest --help"
                )
        if not self.events and not self.impressions:
            raise OptionsError("expected files of events or impressions, found none; see vista ingest --help")
        if self.max_time_ms is not None and self.max_time_ms <= self.min_time_ms:
            raise OptionsError(
                f"--max-time: expected more than --min-time {self.min_time_ms}, found {self.max_time_ms}; "
                f"see vista ingest --help"
            )

    def identity(self) -> dict[str, Any]:
        """What decides the result."""
        values = dataclasses.asdict(self)
        return {k: v for k, v in values.items() if k not in ("run_dir", "max_rows", "chunk_rows", "attempts")}


# Plan ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What a run decided at its start; ``plan.json``.

    Attributes:
        run: name of the run in file names and snapshots. commit: number of its commit.
        events, impressions, items: files to read. known: how many were in the ledger already.
        bad_files: (path, why) of files that were skipped.
    """

    run: str
    commit: int
    min_time_ms: int
    max_time_ms: int
    user_kind: str
    num_buckets: int
    kinds: dict[str, str]
    events: tuple[Source, ...]
    impressions: tuple[Source, ...]
    items: tuple[Source, ...]
    known: int
    bad_files: tuple[tuple[str, str], ...]
    actions: tuple[str, ...] = ()
    surfaces: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        return sum(s.rows for s in (*self.events, *self.impressions))

    def to_json(self) -> bytes:
        return (json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode()

    @staticmethod
    def from_json(text: str) -> Plan:
        values = json.loads(text)
        for name in ("events", "impressions", "items"):
            values[name] = tuple(Source(**{**s, "groups": tuple(s["groups"])}) for s in values[name])
        values["bad_files"] = tuple((a, b) for a, b in values["bad_files"])
        values["actions"], values["surfaces"] = tuple(values["actions"]), tuple(values["surfaces"])
        return Plan(**values)


ITEM_COLUMNS = (
    schema.Column("item_id", ("int", "string"), True, "int64 or string"),
    schema.Column("name", ("string",), False, "string"),
)


def inspect_all(
    patterns: Sequence[str],
    columns: tuple[schema.Column, ...],
    mapping: Mapping[str, str],
    bounds: tuple[int, int],
    skip_bad_files: bool,
) -> tuple[list[Source], list[tuple[str, str]]]:
    """Check the footers of all files: (good ones, [(path, why)] of unreadable ones).

    Raises:
        UnreadableFile: names all of them, unless they are skipped.
        DataError: no file, or the first fault of a column.
    """
    schema.check_mapping(mapping, columns)
    files = paths.expand(patterns) if patterns else []
    good: list[Source] = []
    bad: list[tuple[str, str]] = []

    def look(path: str) -> Source | UnreadableFile:
        try:
            return schema.inspect(path, columns, mapping, bounds)
        except UnreadableFile as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        for path, found in zip(files, pool.map(look, files), strict=True):
            if isinstance(found, UnreadableFile):
                bad.append((path, str(found)))
            else:
                good.append(found)
    if bad and not skip_bad_files:
        listed = "\n  ".join(why for _, why in bad[:20])
        more = f"\n  and {len(bad) - 20} more" if len(bad) > 20 else ""
        raise UnreadableFile(
            f"{len(bad)} of {len(files)} files cannot be read; nothing was written:\n  {listed}{more}"
        )
    return good, bad


def common_kinds(sources: Iterable[Source], fixed: Mapping[str, str]) -> dict[str, str]:
    """The kind of each meaning (user, item, action, surface) over all files, equal to what the table has.

    Raises:
        WrongType: two files, or a file and the table, differ.
    """
    kinds = dict(fixed)
    where = {meaning: "the table" for meaning in kinds}
    for source in sources:
        for name, kind in source.kinds.items():
            meaning = "action" if name == "actions" else name
            if meaning not in ("user_id", "item_id", "action", "surface"):
                continue
            kind = kind.removeprefix("list of ")
            if kinds.setdefault(meaning, kind) != kind:
                raise WrongType(
                    f"{source.path}: column {source.names[name]!r} ({meaning}): expected {kinds[meaning]} as in "
                    f"{where[meaning]}, found {kind}; cast the column and run vista ingest again"
                )
            where.setdefault(meaning, source.path)
    return kinds


def read_tasks(sources: Sequence[Source], tag: str, chunk_rows: int) -> list[ReadTask]:
    """Row groups dealt out in order: tasks of about ``chunk_rows`` rows, across files where those are small."""
    tasks: list[ReadTask] = []
    parts: list[tuple[Source, tuple[int, ...], int]] = []
    rows = 0

    def close() -> None:
        nonlocal parts, rows
        if parts:
            tasks.append(ReadTask(len(tasks), tag, tuple(parts)))
        parts, rows = [], 0

    for source in sources:
        groups: list[int] = []
        first = row = 0
        for g, size in enumerate(source.groups):
            if rows and rows + size > chunk_rows:
                if groups:
                    parts.append((source, tuple(groups), first))
                close()
                groups, first = [], row
            groups.append(g)
            rows += size
            row += size
        if groups:
            parts.append((source, tuple(groups), first))
    close()
    return tasks


# Pipeline ------------------------------------------------------------------------------------------------


class _Step(beam.DoFn):
    """A task function as a DoFn: keeps the error of a failed unit where the driver finds it."""

    def __init__(self, settings: Settings):
        self._settings = settings

    def guarded(self, name: str, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:
            self._settings.directory.note_failure(name, error)
            raise


class ReadLogs(_Step):
    """ReadTask to (bucket, Piece), and (item shard, Piece) under the tag ``items``."""

    def process(self, task: ReadTask) -> Iterator[Any]:
        routed: list[Routed] = self.guarded(task.name, lambda: read_logs(task, self._settings))
        pipeline.count("rows_read", task.rows)
        for to, number, piece in routed:
            yield (number, piece) if to == "bucket" else beam.pvalue.TaggedOutput("items", (number, piece))


class BuildBucket(_Step):
    """(bucket, its pieces and old files) to (item shard, Piece)."""

    def process(self, element: tuple[int, Iterable[Piece | OldFile]]) -> Iterator[tuple[int, Piece]]:
        bucket, values = element
        name = f"bucket-{bucket:05d}"
        for _, shard, piece in self.guarded(name, lambda: build_bucket(bucket, values, self._settings)):
            yield shard, piece
        receipt = self._settings.directory.receipt(name, verify=False)
        if receipt is not None:
            pipeline.count("users", receipt["counts"]["users"])
            pipeline.count("events", receipt["counts"]["events"])


class BuildItems(_Step):
    """(item shard, pieces) to its file."""

    def process(self, element: tuple[int, Iterable[Piece]]) -> Iterator[int]:
        shard, pieces = element
        self.guarded(f"items-{shard:05d}", lambda: build_items(shard, pieces, self._settings))
        yield shard


def build_pipeline(
    p: beam.Pipeline,
    tasks: Sequence[ReadTask],
    old: Sequence[tuple[int, OldFile]],
    named: Sequence[Routed],
    s: Settings,
) -> None:
    """Read, group by bucket, build, group by item shard, add up."""
    read = (
        p
        | "Logs" >> beam.Create(pipeline.in_balanced_order((t, t.rows) for t in tasks), reshuffle=False)
        | "Spread" >> beam.Reshuffle()
        | "Read" >> beam.ParDo(ReadLogs(s)).with_outputs("items", main="pieces")
    )
    there = p | "Tables" >> beam.Create(list(old), reshuffle=False)
    names = p | "Names" >> beam.Create([(number, piece) for _, number, piece in named], reshuffle=False)
    counts = (
        (read.pieces, there)
        | "All" >> beam.Flatten()
        | "Buckets" >> beam.GroupByKey()
        | "Build" >> beam.ParDo(BuildBucket(s))
    )
    _ = (
        (counts, read["items"], names)
        | "Counts" >> beam.Flatten()
        | "Items" >> beam.GroupByKey()
        | "Add up" >> beam.ParDo(BuildItems(s))
    )


# Run -----------------------------------------------------------------------------------------------------


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
    where = dict(options.catalog) or options.warehouse
    run_dir, record = RunDirectory.start(
        options.run_dir,
        job=JOB,
        identity=options.identity(),
        environment={
            "beam_args": list(beam_args),
            "beam": beam.__version__,
            "python": platform.python_version(),
        },
        started_ms=int(clock() * 1000),
    )
    if record.exit_code is not None:
        return record
    with run_dir.hold():
        warehouse = Warehouse(where)
        plan = _plan(options, warehouse, run_dir, record, beam_args)
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
            notes=_notes(plan),
            exit_code=int(ExitCode.DEAD_LETTERS if lost else ExitCode.DONE),
        )
        return run_dir.finish(facts)


def _plan(
    options: IngestOptions,
    warehouse: Warehouse,
    run_dir: RunDirectory,
    record: RunRecord,
    beam_args: Sequence[str],
) -> Plan:
    """The plan of an earlier attempt, or a new one."""
    path = run_dir.path / "plan.json"
    if path.exists():
        return Plan.from_json(path.read_text())
    latest = record.started_ms + schema.CLOCK_SKEW_MS if options.max_time_ms is None else options.max_time_ms
    bounds = (options.min_time_ms, latest)
    skip = options.skip_bad_files
    events, bad = inspect_all(options.events, schema.EVENTS, options.columns, bounds, skip)
    shown, bad_shown = inspect_all(
        options.impressions, schema.IMPRESSIONS, options.impression_columns, bounds, skip
    )
    items, bad_items = inspect_all(options.items, ITEM_COLUMNS, {}, bounds, skip)
    there = warehouse.exists()
    fixed: dict[str, str] = {}
    if there:
        warehouse.open()
        warehouse.recover()
        fixed = {k: v for k in ("item_id", "action", "surface") if (v := warehouse.fact(f"kind-{k}"))}
        fixed["user_id"] = "int" if warehouse.user_kind == "int64" else "string"
        if options.num_buckets not in (0, warehouse.num_buckets):
            raise OptionsError(
                f"{warehouse.name}: expected --num-buckets {warehouse.num_buckets} (fixed when the tables were made), "
                f"found {options.num_buckets}; leave the option out of vista ingest"
            )
    kinds = common_kinds([*events, *shown], fixed)
    common_kinds(items, {k: v for k, v in kinds.items() if k == "item_id"})
    if "user_id" not in kinds:
        raise UnreadableFile(
            f"{len(bad) + len(bad_shown)} files, none of which can be read; nothing was written. See {options.events}"
        )
    known = 0
    if there and not options.again:
        ledger = warehouse.read_sources()
        seen = set(zip(ledger["bytes"].to_pylist(), ledger["digest"].to_pylist(), strict=True))
        before = len(events) + len(shown) + len(items)
        events, shown, items = (
            [s for s in group if (s.bytes, s.digest) not in seen] for group in (events, shown, items)
        )
        known = before - len(events) - len(shown) - len(items)
    plan = Plan(
        run=record.run_id,
        commit=warehouse.commit_number + 1 if there else 1,
        min_time_ms=bounds[0],
        max_time_ms=bounds[1],
        user_kind="int64" if kinds["user_id"] == "int" else "string",
        num_buckets=warehouse.num_buckets if there else options.num_buckets or 16,
        kinds=kinds,
        events=tuple(events),
        impressions=tuple(shown),
        items=tuple(items),
        known=known,
        bad_files=(*bad, *bad_shown, *bad_items),
    )
    scan = ScanColumns(str(run_dir.path), options.skip_bad_files)
    actions, surfaces = vocabularies(
        plan.events,
        plan.impressions,
        (warehouse.actions, warehouse.surfaces) if there else ((), ()),
        (options.actions, options.surfaces),
        scan,
        beam_args,
    )
    plan = dataclasses.replace(plan, actions=actions, surfaces=surfaces)
    write_atomically(path, plan.to_json())
    return plan


def _prepare(options: IngestOptions, warehouse: Warehouse, run_dir: RunDirectory, plan: Plan) -> Plan:
    """Make the tables where there are none; renumber the commit where another one came in between."""
    if not warehouse.exists():
        warehouse.create(user_kind=plan.user_kind, num_buckets=plan.num_buckets)
    warehouse.open()
    warehouse.recover()
    commit = warehouse.commit_number + 1
    if commit == plan.commit:
        return plan
    for unit in ("bucket", "items"):
        for receipt in (run_dir.path / "receipts").glob(f"{unit}-*.json"):
            receipt.unlink()
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
        rules=Rules(plan.min_time_ms, plan.max_time_ms, plan.actions, plan.surfaces),
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
    named = _item_names(plan.items, settings)
    with progress_bar(run_dir, "ingest: read, then sort", 2 * plan.rows, progress):
        for attempt in range(1, options.attempts + 1):
            try:
                pipeline.run(lambda p: build_pipeline(p, tasks, old, named, settings), beam_args)
                break
            except Exception as error:
                failures = run_dir.failures()
                final = any(f["exit_code"] == ExitCode.BAD_INPUT for f in failures.values())
                if attempt == options.attempts or final:
                    raise _failed(run_dir, failures, error) from error


def _failed(run_dir: RunDirectory, failures: Mapping[str, Mapping[str, Any]], error: Exception) -> Exception:
    if not failures:
        return error
    name, fact = next(iter(failures.items()))
    if fact["exit_code"] == ExitCode.BAD_INPUT:
        return DataError(f"{fact['text']} (unit {name} of {run_dir.path}; nothing was committed)")
    return BucketFailed(
        f"{run_dir.path}: {name} failed with {fact['error']}: {fact['text']}; nothing was committed. Remove the cause "
        f"and run the same vista ingest again to continue"
    )


def _item_names(sources: Sequence[Source], settings: Settings) -> list[Routed]:
    """Spill the names of item files."""
    from vista.data.importer import item_names

    routed: list[Routed] = []
    for i, source in enumerate(sources):
        with schema.open_source(source.path) as file:
            for b, batch in enumerate(
                file.iter_batches(settings.chunk_rows, columns=list(source.names.values()))
            ):
                item, names = item_names(batch, source)
                routed += spill_names(item, names, f"file-{i:05d}-{b:05d}.arrow", settings)
    return routed


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
            f"{'; '.join(wrong)}; nothing was committed. Run the same vista ingest again to continue"
        )
    return counts


def _commit(warehouse: Warehouse, run_dir: RunDirectory, plan: Plan) -> None:
    files: dict[str, list[str]] = {"history": [], "impressions": [], "items": []}
    for receipt in run_dir.receipts().values():
        for uri in receipt.get("table_files", ()):
            name = next(n for n in files if uri.startswith(warehouse.table(n).location() + "/"))
            files[name].append(uri)
    warehouse.commit(
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
        )
    )


def _step_times(run_dir: RunDirectory) -> dict[str, float]:
    """Seconds of each step, summed over its tasks."""
    sums: dict[str, float] = {}
    for name, receipt in run_dir.receipts().items():
        step = name.split("-", 1)[0]
        sums[step] = round(sums.get(step, 0.0) + receipt["timings"]["seconds"], 3)
    return sums


def _notes(plan: Plan) -> list[str]:
    notes = []
    if plan.known:
        notes.append(f"{plan.known} files were ingested before and left out")
    if not plan.impressions:
        notes.append(
            "no impressions: training draws candidates that were not engaged by popularity in the surface"
        )
    return notes
