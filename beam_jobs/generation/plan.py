"""``plan``: what a summarize or refresh would read, take, hold and write, before it runs.

Rows, files and bytes are the tables' own. Users are counted (in very large tables in some buckets, whose users stand
for the others'). The first events of some buckets are put through the model for a few seconds to measure its rate on
this machine. Nothing is written.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from beam_jobs.errors import OptionsError
from beam_jobs.generation import refresh, summarize
from beam_jobs.generation.bucket_task import BucketTask, torch_threads, worker_bytes, worker_model
from beam_jobs.generation.changed_users import RefreshSource
from beam_jobs.generation.feed import select_users
from beam_jobs.generation.refresh import RefreshOptions
from beam_jobs.generation.summarize import SummarizeOptions, schema_of
from beam_jobs.horizon import horizon_of
from beam_jobs.run.record import RunRecord
from cache_store.format.shown import when
from cache_store.read.options import wall_clock
from vista.data.events import Events, UserBatch
from vista.data.tables.compaction import most_files
from vista.data.tables.reading import DataFile, count_users, read_bucket
from vista.model import VistaModel
from vista.stage1.stream import summarize_stream

SAMPLE_EVENTS = 65_536
SAMPLE_BUCKETS = 8
SAMPLE_USERS = 128
COUNTED_ROWS = 100_000_000
"""Users are counted bucket by bucket until so many rows were read: a second or two."""


@dataclass(frozen=True)
class JobPlan:
    """What a job would do.

    Attributes:
        job: ``summarize`` or ``refresh``; a refresh that cannot go on from the store is planned as ``summarize``.
        users: counted, or from those of some buckets (``notes`` say so).
        expired: those of the users that ``expire_after_ms`` leaves out; of a refresh, users of the live generation
            that would leave it, unless they are among those with new events.
        events, files, read_bytes: of the files to read (a refresh also reads whole histories of late users, which
            nobody knows before).
        shards: of the generation, one per bucket.
        written_bytes: estimated, records and states.
        events_per_second: of one worker, measured.
        user_seconds: to take up and store one user, measured.
        minutes: with ``workers``, without the start of the runner.
        worker_memory_bytes: each worker at its largest.
        notes: sentences for the reader.
    """

    job: str
    users: int
    expired: int
    events: int
    files: int
    read_bytes: int
    shards: int
    written_bytes: int
    record_bytes: int
    state_bytes: int
    workers: int
    events_per_second: float
    user_seconds: float
    minutes: float
    worker_memory_bytes: int
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def plan(options: SummarizeOptions, workers: int = 1) -> JobPlan:
    """What ``run`` of summarize or refresh would do with these options.

    Raises:
        VistaError, StoreError: as the job would, before it starts.
    """
    if workers < 1:
        raise OptionsError(f"--workers: expected at least 1, found {workers}; see vista plan --help")
    world = summarize.TablesAndModel.of(options)
    warehouse, fingerprint, notes = world.warehouse, world.fingerprint, world.notes
    model = worker_model(str(options.bundle), fingerprint)
    schema = schema_of(model, warehouse.user_kind, options.codecs)
    snapshot = warehouse.snapshot() if options.snapshot is None else options.snapshot
    everything = {} if snapshot is None else warehouse.bucket_files(snapshot)
    job, files, parent = "summarize", everything, None
    if isinstance(options, RefreshOptions):
        record = RunRecord(refresh.JOB, "plan", "", table_snapshot=snapshot, fingerprint=fingerprint)
        try:
            parent = refresh.parent_of(options, record, warehouse)
            job, files = refresh.JOB, refresh.files_of(options, record, warehouse, parent)[1]
            notes.append(
                f"goes on from generation {parent.generation}, made from snapshot {parent.table_snapshot}"
            )
        except refresh.NoParent as why:
            notes.append(f"full instead of delta: {why}")
    flat = [f for row in files.values() for f in row]
    events = sum(f.rows for f in flat)
    sample = _Sample.take(files, model, options)
    before = summarize.expired_before(options, wall_clock() if options.now_ms is None else options.now_ms)
    users, counted, expired = count_users(files, COUNTED_ROWS, before)
    if counted < len(files):
        users, expired = (round(n * len(files) / counted) for n in (users, expired))
        notes.append(f"users: counted in {counted} of {len(files)} buckets")
    kept = users - expired
    if before is not None and parent is not None:
        source = RefreshSource(options.store, options.line, parent.generation, 0)
        expired = sum(len(source.gone(BucketTask(b, ()), before)) for b in range(warehouse.num_buckets))
    if before is not None:
        notes.append(f"expired: without an event since {when(before)}")
    seconds = events / sample.events_per_second + users * sample.user_seconds if events else 0.0
    most, due = most_files(warehouse, horizon_of(warehouse, [options.store]))
    if due:
        notes.append(
            f"{due} buckets have up to {most} files, which are slow to read: `vista compact tables` is due"
        )
    return JobPlan(
        job=job,
        users=users,
        expired=expired,
        events=events,
        files=len(flat),
        read_bytes=sum(f.bytes for f in flat),
        shards=warehouse.num_buckets,
        written_bytes=kept * (schema.row_bytes + sample.state_bytes),
        record_bytes=schema.record_bytes,
        state_bytes=sample.state_bytes,
        workers=workers,
        events_per_second=round(sample.events_per_second, 1),
        user_seconds=round(sample.user_seconds, 6),
        minutes=seconds / min(workers, max(len(files), 1)) / 60,
        worker_memory_bytes=worker_bytes(model, options.max_events_in_memory),
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Sample:
    """What the first events of some buckets tell."""

    events_per_second: float
    user_seconds: float
    state_bytes: int

    @staticmethod
    def take(files: dict[int, list[DataFile]], model: VistaModel, options: SummarizeOptions) -> _Sample:
        if not files:
            return _Sample(1.0, 0.0, 0)
        batches = list(_first_batches(files))
        events = sum(len(b.events) for b in batches)
        users = sum(len(b.users) for b in batches)
        with torch_threads(options.threads):
            first = select_users(batches[0], np.arange(1))
            list(summarize_stream(model, iter([first])))  # first use of every kernel
            start = time.perf_counter()
            made = list(summarize_stream(model, iter(batches), None, SAMPLE_EVENTS))
            took = time.perf_counter() - start
            states = made[0].states[: min(SAMPLE_USERS, len(batches[0].users))]
            user_seconds, state_bytes = 0.0, 0
            if states[0] is not None:
                few = select_users(batches[0], np.arange(len(states)))
                last = few.events.offsets[1:] - 1
                more = Events.of(
                    np.ones(len(states), np.int64),
                    **{n: c[last] + (n == "time") for n, c in few.events.columns.items()},
                )
                start = time.perf_counter()
                again = list(
                    summarize_stream(
                        model, iter([UserBatch(few.users, more)]), lambda _: states, SAMPLE_EVENTS
                    )
                )
                packed = [
                    state.to_bytes() for answer in again for state in answer.states if state is not None
                ]
                user_seconds = (time.perf_counter() - start) / len(states)
                state_bytes = int(np.mean([len(data) for data in packed]))
        return _Sample(
            # The time of its users is counted apart.
            events_per_second=events / max(took - user_seconds * users, took / 4),
            user_seconds=user_seconds,
            state_bytes=state_bytes,
        )


def _first_batches(files: dict[int, list[DataFile]]) -> Iterator[UserBatch]:
    """The first events of up to 8 buckets, as the job would read them; the last user of each ends there."""
    buckets = list(files.values())
    step = max(1, len(buckets) // SAMPLE_BUCKETS)
    for row in buckets[::step][:SAMPLE_BUCKETS]:
        batch = next(read_bucket(row, max_rows=SAMPLE_EVENTS // SAMPLE_BUCKETS), None)
        if batch is not None:
            yield UserBatch(batch.users, batch.events)
