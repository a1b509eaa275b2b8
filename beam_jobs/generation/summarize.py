"""``summarize``: every user's whole history through stage 1 into one full generation of the store.

    history table ──one task per bucket──▶ shards (summaries, states) ──▶ complete? ──▶ generation, live

Bucket k of the table is task k and shard k. Nothing is shuffled: a task reads its own files by path and needs
no catalog. The result depends on the events, the bundle and the options in :meth:`SummarizeOptions.identity`
alone: not on the runner, the number of workers, retries, or where a run was interrupted.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from beam_jobs.errors import OptionsError
from beam_jobs.generation.bucket_task import (
    BucketSource,
    BucketTask,
    FullSource,
    SummarySettings,
    worker_bytes,
    worker_model,
)
from beam_jobs.generation.gate import Bounds
from beam_jobs.generation.publish import to_generation
from beam_jobs.run import job as jobs
from beam_jobs.run.engines import HERE, on_cluster, workers_here
from beam_jobs.run.job import Job, Run
from beam_jobs.run.limits import check_disk, check_memory
from beam_jobs.run.record import RunRecord
from cache_store import Group, Publication, RecordSchema, Store, Table
from cache_store.read.options import wall_clock
from vista import bundle as bundles
from vista.data.tables.reading import DataFile, count_users
from vista.data.tables.warehouse import Warehouse
from vista.errors import DataError
from vista.model import VistaModel

JOB = "summarize"
COUNTED_ROWS = 20_000_000
"""Users are counted bucket by bucket until so many rows were read: under a second."""


@dataclass(frozen=True)
class SummarizeOptions:
    """What to summarise, with what, to where.

    Attributes:
        warehouse: folder of the tables, or properties of a PyIceberg catalog.
        bundle: folder of the model bundle; every worker must see it under this path.
        store: folder of the cache store, made if it is not there; workers must see it too.
        run_dir: folder of this run; an interrupted run continues from it.
        line: line of generations to publish to.
        codecs: codec by group name where the model's default is not wanted.
        snapshot: history snapshot to read; the current one by default.
        max_events_in_memory: events held at a time by one worker: the memory knob.
        threads: torch threads per task; part of the identity, since it may change the last bit.
        now_ms: clock of the run, written as the time of summarising; the wall clock by default.
        attempts: how often a bucket is tried where the runner itself does not retry.
        device: torch device of the workers.
        max_bytes: refuse to write more than this, so far as it can be told before; None for what the disk has.
        expire_after_ms: leave out users without events for so long before the run began; None for nobody.
        gate: bounds outside which a generation does not go live (``gate``); None for no gate.
        progress: show a bar where standard error is a terminal.
    """

    warehouse: str | Mapping[str, str]
    bundle: str
    store: str
    run_dir: str
    line: str = "main"
    codecs: Mapping[str, str] = field(default_factory=dict)
    snapshot: int | None = None
    max_events_in_memory: int = 262_144
    threads: int = 1
    now_ms: int | None = None
    attempts: int = 2
    device: str = "cpu"
    max_bytes: int | None = None
    expire_after_ms: int | None = None
    gate: Bounds | None = None
    progress: bool = True

    JOB: ClassVar = JOB
    COUNTS: ClassVar[tuple[str, ...]] = ("max_events_in_memory", "threads", "attempts")

    def __post_init__(self) -> None:
        for name in self.COUNTS:
            if getattr(self, name) < 1:
                raise OptionsError(
                    f"{name}: expected at least 1, found {getattr(self, name)}; see vista {self.JOB} --help"
                )
        check_expiry(self.expire_after_ms)

    def identity(self) -> dict[str, Any]:
        """What decides the result; a run can be continued only with the same.

        ``max_events_in_memory`` and ``device`` are in it because they may change the last bits of a sum.
        """
        return {
            "warehouse": self.warehouse if isinstance(self.warehouse, str) else dict(self.warehouse),
            "store": str(self.store),
            "line": self.line,
            "codecs": dict(sorted(self.codecs.items())),
            "max_events_in_memory": self.max_events_in_memory,
            "threads": self.threads,
            "device": self.device,
            # runs of versions without it can be continued
            **({} if self.expire_after_ms is None else {"expire_after_ms": self.expire_after_ms}),
        }


def check_expiry(after_ms: int | None) -> None:
    """Raises OptionsError: nobody could have had an event since."""
    if after_ms is not None and after_ms <= 0:
        raise OptionsError(
            f"--expire-after: expected more than 0 days, found {after_ms} ms; see vista plan --help"
        )


def run(options: SummarizeOptions, beam_args: Sequence[str] = ()) -> RunRecord:
    """Summarise everything and publish one full generation.

    Args:
        beam_args: arguments of the runner or engine; ``FnApiRunner`` in memory where none is named.

    Returns:
        The record, also in ``run.json``; ``exit_code`` 3 if anything was dead-lettered.

    Raises:
        VistaError, StoreError: with the exit code in the class; the old generation stays live.
    """
    world = TablesAndModel.of(options)

    def work(run: Run) -> RunRecord:
        if run.record.fingerprint is None:  # a continued run reads what it began with
            run.keep(**world.facts(options.snapshot))
        return full_generation(run, options, world.warehouse)

    return jobs.run(world.job(JOB, options, beam_args), work)


@dataclass(frozen=True)
class TablesAndModel:
    """Tables and the model of a bundle that fits them; ``notes`` tell what the model has not seen."""

    warehouse: Warehouse
    fingerprint: str
    notes: list[str]

    @staticmethod
    def of(options: SummarizeOptions) -> TablesAndModel:
        """Raises OptionsError: see :func:`check_same_world`."""
        meta, fingerprint = bundles.read_meta(options.bundle)
        warehouse = Warehouse(options.warehouse).open()
        return TablesAndModel(warehouse, fingerprint, check_same_world(meta, warehouse))

    def job(self, name: str, options: SummarizeOptions, args: Sequence[str]) -> Job:
        return Job(
            name,
            options.run_dir,
            identity={**options.identity(), "fingerprint": self.fingerprint},
            args=args,
            attempts=options.attempts,
            progress=options.progress,
            clock=wall_clock if options.now_ms is None else functools.partial(int, options.now_ms),
            environment={"bundle": str(options.bundle)},
        )

    def facts(self, snapshot: int | None) -> dict[str, Any]:
        """What a run keeps to: the current snapshot unless one is given, and the model."""
        at = self.warehouse.snapshot() if snapshot is None else snapshot
        return {"table_snapshot": at, "fingerprint": self.fingerprint, "notes": self.notes}


def full_generation(run: Run, options: SummarizeOptions, warehouse: Warehouse) -> RunRecord:
    """Everything at ``record.table_snapshot`` into one full generation; the finished record."""
    record = run.record
    model = worker_model(str(options.bundle), str(record.fingerprint))
    files = {} if record.table_snapshot is None else warehouse.bucket_files(record.table_snapshot)
    tasks = [BucketTask(bucket, tuple(files.get(bucket, ()))) for bucket in range(warehouse.num_buckets)]
    schema = schema_of(model, warehouse.user_kind, options.codecs)
    check_limits(run, options, model, schema, files)
    store = open_or_create(options.store, warehouse.user_kind, warehouse.num_buckets)
    settings = settings_of(run, options, store, schema, FullSource())
    target = Publication(
        fingerprint=settings.fingerprint,
        watermark_ms=0,
        expected=0,
        line=options.line,
        table_snapshot=record.table_snapshot,
        expired_before_ms=settings.expired_before_ms,
    )
    return to_generation(run, store, tasks, settings, target, warehouse, options.gate)


def check_limits(
    run: Run,
    options: SummarizeOptions,
    model: VistaModel,
    schema: RecordSchema,
    files: Mapping[int, Sequence[DataFile]],
) -> None:
    """Raises OptionsError, RunStorageFull: the records of the users in ``files``, or the workers, have no room."""
    try:
        users, counted, silent = count_users(
            files, COUNTED_ROWS, expired_before(options, run.record.started_ms)
        )
        users = (users - silent) * len(files) // max(counted, 1)
    except (DataError, OSError):
        users = 0  # the task that reads the file says what is wrong
    check_disk({options.store: users * schema.row_bytes}, options.max_bytes)
    if not on_cluster(run.job.args):
        if HERE in run.job.args:
            processes = workers_here(run.job.args)
        else:
            from beam_jobs.run.runner import local_processes  # of Beam, which takes a second to import

            processes = local_processes(run.job.args)
        check_memory(processes, worker_bytes(model, options.max_events_in_memory))


def settings_of(
    run: Run, options: SummarizeOptions, store: Store, schema: RecordSchema, source: BucketSource
) -> SummarySettings:
    """What the tasks of a run share."""
    return SummarySettings(
        job=run.record.job,
        run_dir=str(run.directory.path),
        staging=str(store.staging(run.record.run_id)),
        bundle=str(options.bundle),
        fingerprint=str(run.record.fingerprint),
        schema=schema,
        num_shards=store.format.num_shards,
        source=source,
        max_events=options.max_events_in_memory,
        threads=options.threads,
        now_ms=run.record.started_ms,
        device=options.device,
        expired_before_ms=expired_before(options, run.record.started_ms),
    )


def expired_before(options: SummarizeOptions, started_ms: int) -> int | None:
    """Users without an event from then on are left out; None for nobody."""
    return None if options.expire_after_ms is None else max(started_ms - options.expire_after_ms, 0)


def check_same_world(meta: bundles.Meta, warehouse: Warehouse) -> list[str]:
    """Refuse a bundle that was trained on other tables: numbers would mean something else. Names that the tables have
    got since are told in the notes that come back.

    Raises:
        OptionsError: another kind of user ids, other actions or other surfaces.
    """
    if meta.user_kind != warehouse.user_kind:
        raise OptionsError(
            f"{warehouse.name}: expected {meta.user_kind} user ids, as the bundle was trained on, found "
            f"{warehouse.user_kind}; train on these tables with vista train"
        )
    notes = []
    for what, known, there in (
        ("actions", meta.actions, warehouse.actions),
        ("surfaces", meta.surfaces, warehouse.surfaces),
    ):
        if any(a != b for a, b in zip(known, there, strict=False)):
            raise OptionsError(
                f"{warehouse.name}: expected {what} {list(known)}, as the bundle was trained on, found {list(there)}; "
                f"train on these tables with vista train"
            )
        new = there[len(known) :]
        if known and new:
            listed = ", ".join(new[:10]) + (", ..." if len(new) > 10 else "")
            notes.append(f"{what} that the model has not seen: {listed}; it learns them by vista train")
    return notes


def schema_of(model: VistaModel, user_kind: str, codecs: Mapping[str, str]) -> RecordSchema:
    """Record schema of a model's summaries, with the codecs asked for.

    Raises:
        OptionsError: a codec for a group that the model does not have.
    """
    groups = model.summarizer.groups()
    unknown = sorted(set(codecs) - {name for name, *_ in groups})
    if unknown:
        raise OptionsError(
            f"--codec: expected groups among {[name for name, *_ in groups]}, found {unknown}; "
            f"see vista summarize --help"
        )
    return RecordSchema(
        tuple(Group(name, tokens, width, codecs.get(name, codec)) for name, tokens, width, codec in groups),
        user_kind,
        tuple(Table(*table) for table in model.summarizer.tables()),
    )


def open_or_create(path: str, user_kind: str, num_buckets: int) -> Store:
    """The store at ``path``, made with the tables' buckets if it is not there.

    Raises:
        OptionsError: it is there with other buckets or another kind of user ids.
    """
    if not (Path(path) / "FORMAT").exists():
        return Store.create(path, user_kind=user_kind, num_shards=num_buckets)
    store = Store(path)
    found = store.format
    if (found.num_shards, found.user_kind) != (num_buckets, user_kind):
        raise OptionsError(
            f"{path}: expected a store of {num_buckets} shards and {user_kind} ids, as the tables have, found "
            f"{found.num_shards} and {found.user_kind}; name another store"
        )
    return store
