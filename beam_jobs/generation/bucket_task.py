"""What one task of summarize or refresh does: the files of one bucket to one finished shard and its receipt.

    files ──read_bucket──▶ UserBatch ──summarize_stream──▶ SummaryBatch ──ShardWriter──▶ shard + states

Everything streams; what is held at a time is bounded by ``Settings.max_events``. A user whose computation fails,
by an error or by tokens that are not finite, is a dead letter. The rest of its bucket comes out as if that user had
no events: the users of a failing window are searched for those that fail alone (one user's NaN may reach those that
are computed beside it), and the bucket starts again without them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from beam_jobs.errors import OptionsError
from beam_jobs.generation.feed import BucketFeed, Meter, count_gone, in_order, plain, take
from beam_jobs.run.record import DeadLetter, RunDirectory, peak_memory_bytes, unit_name
from cache_store.errors import Unstorable
from cache_store.format.keys import as_users
from cache_store.format.record import RecordSchema
from cache_store.write.writer import ShardWriter
from vista import bundle as bundles
from vista.data.events import UserBatch
from vista.data.tables.reading import read_bucket
from vista.model import VistaModel
from vista.stage1.state import UserState
from vista.stage1.stream import SummaryBatch, summarize_stream

PROGRESS_EVERY_S = 0.5
EVERYBODY = 8
"""If more users than this are computed together and all of them fail, the bucket fails instead."""

WORKER_BYTES = 700 << 20
"""Anonymous memory of a worker that does not depend on the knob: interpreter, torch, Beam and Arrow (300 MiB), one
batch of summaries on its way out with its states (64 MiB of tokens, about seven times that with copies and slot
masses), one uncommitted stretch of LMDB (64 MiB). ``vista bench memory`` holds it against the job."""

BYTES_PER_EVENT = 200
"""Memory per event of the knob: read-ahead of the merge, a window, its columns joined with what is carried."""


@dataclass(frozen=True)
class BucketTask:
    """One bucket's work, picklable: paths, never rows.

    Attributes:
        files: every data file of the bucket at the run's snapshot.
        added: files added since the parent generation; None for a full summary.
        again: users to recompute from the whole bucket whether or not they changed.
    """

    bucket: int
    files: tuple[Any, ...]
    added: tuple[Any, ...] | None = None
    again: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        return unit_name(self.bucket)

    @property
    def rows(self) -> int:
        return sum(f.rows for f in (self.files if self.added is None else self.added))


@dataclass(frozen=True)
class SummarySettings:
    """What all tasks of a run share.

    Attributes:
        source: what of a bucket is read.
        now_ms: the run's start, so that a resumed run repeats the bytes.
        expired_before_ms: users without an event from then on are left out; None for nobody.
    """

    job: str
    run_dir: str
    staging: str
    bundle: str
    fingerprint: str
    schema: RecordSchema
    num_shards: int
    source: BucketSource
    max_events: int
    threads: int
    now_ms: int
    device: str = "cpu"
    expired_before_ms: int | None = None


class MustRecompute(Exception):
    """Users whose state could not go on, found out by the model. Never leaves this module."""

    def __init__(self, users: list[Any]):
        super().__init__(f"{len(users)} users")
        self.users = users


class UserFailed(Exception):
    """Users whose computation fails on their own, with reason and detail of each. Never leaves this module."""

    def __init__(self, reasons: dict[Any, tuple[str, str]]):
        super().__init__(f"{len(reasons)} users")
        self.reasons = reasons


_models: dict[tuple[str, str, str], VistaModel] = {}
_models_lock = threading.Lock()


def worker_model(path: str, fingerprint: str, device: str = "cpu") -> VistaModel:
    """The bundle's model, loaded once per process and shared by its threads. The driver, which need not have the
    workers' device, asks for none.

    Raises:
        FingerprintMismatch: the bundle at ``path`` is no longer the one the run was started with.
        OptionsError: this machine does not have the device.
    """
    try:
        there = torch.device(device).type != "cuda" or torch.cuda.is_available()
    except RuntimeError:
        there = False
    if not there:
        raise OptionsError(
            f"--device: expected one that torch has on {platform.node()}, found {device!r}; choose cpu, or workers "
            f"with a GPU (docs/operations.md)"
        )
    key = (path, fingerprint, device)
    with _models_lock:
        if key not in _models:
            _models.clear()
            _models[key] = bundles.load(path, device=device, expect=fingerprint).model
        return _models[key]


def worker_bytes(model: VistaModel, max_events: int) -> int:
    """Memory of one worker at its largest."""
    weights = sum(p.numel() * p.element_size() for p in model.state_dict().values())
    return WORKER_BYTES + 2 * weights + BYTES_PER_EVENT * max_events


StatesOf = Callable[[Any], list[UserState | None]]
Input = tuple[Iterator[UserBatch], StatesOf]


class BucketSource(Protocol):
    """What of a bucket is read. A frozen dataclass of plain values."""

    def gone(self, task: BucketTask, before_ms: int) -> list[Any]:
        """Users in key order that lie below what is built, and have had no event since; for a full one nobody."""
        ...

    def open(
        self, task: BucketTask, max_events: int, meter: Meter, users: Sequence[Any] | None = None
    ) -> Input:
        """Batches in key order (of ``users`` alone, if given) and the states that they continue; as often as asked."""
        ...


@dataclass(frozen=True)
class FullSource:
    """Every user of the bucket, from its first event."""

    def gone(self, task: BucketTask, before_ms: int) -> list[Any]:
        return []

    def open(
        self, task: BucketTask, max_events: int, meter: Meter, users: Sequence[Any] | None = None
    ) -> Input:
        batches = read_bucket(task.files, max_rows=max_events, users=users)
        return batches, lambda users: [None] * len(users)


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Run the body with ``threads`` intra-op threads in this thread, then put back what was.

    The setting belongs to the calling thread, so a task sets it itself, whatever the runner's threads are.
    It is part of a run's identity: another number of threads may add in another order.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def do_bucket(task: BucketTask, settings: SummarySettings) -> dict[str, int]:
    """Make the shard of one bucket and write its receipt; returns its counts.

    Idempotent: a finished bucket whose files are intact is left as it is.
    """
    run = RunDirectory(settings.run_dir)
    done = run.receipt(task.name)
    if done is not None:
        return done["counts"]
    with torch_threads(settings.threads):
        receipt = _build(task, settings, run)
    run.write_receipt(task.name, receipt)
    return receipt["counts"]


def _build(task: BucketTask, settings: SummarySettings, run: RunDirectory) -> dict[str, Any]:
    model = worker_model(settings.bundle, settings.fingerprint, settings.device)
    failed: dict[Any, tuple[str, str]] = {}
    started = time.perf_counter()
    while True:
        meter = Meter()
        building = ShardWriter(
            settings.staging,
            task.bucket,
            settings.num_shards,
            settings.schema,
            with_states=model.summarizer.resumable,
            fingerprint=settings.fingerprint,
            anew=True,  # one that is there has the right sizes, but wrong digests, or nobody knows
        )
        try:
            with building as writer:
                letters = _stream(task, settings, model, writer, failed, meter)
                with meter.step("write"):
                    shard = writer.finish()
            break
        except UserFailed as found:
            failed |= found.reasons
        except MustRecompute as found:
            task = dataclasses.replace(task, again=tuple(sorted({*task.again, *found.users})))
    run.write_dead_letters(task.name, letters)
    meter.seconds["total"] = time.perf_counter() - started
    meter.seconds["model_cpu"] = meter.cpu_model
    return {
        "bucket": task.bucket,
        "shard": shard.as_dict(),
        "files": {
            str(Path(settings.staging) / name): fact.as_dict() for name, fact in sorted(shard.files.items())
        },
        "counts": {
            "dead_letters": len(letters),
            "records": shard.records,
            "tombstones": shard.tombstones,
            **meter.counts,
        },
        "timings": {name: round(s, 4) for name, s in meter.seconds.items()},
        "watermark_ms": meter.watermark_ms,
        "peak_memory_bytes": peak_memory_bytes(),
        "host": platform.node(),
        "pid": os.getpid(),
    }


def _stream(
    task: BucketTask,
    settings: SummarySettings,
    model: VistaModel,
    writer: ShardWriter,
    failed: dict[Any, tuple[str, str]],
    meter: Meter,
) -> list[DeadLetter]:
    """Everything of the bucket through the model into ``writer``; returns its dead letters.

    Raises:
        UserFailed: users to start again without. MustRecompute: users to read from their first event.
    """
    run = RunDirectory(settings.run_dir)
    letters = dict(failed)
    meter.counts |= {"users": 0, "events": 0, "written": 0, "expired": 0}
    before = settings.expired_before_ms
    leaving = [] if before is None else [u for u in settings.source.gone(task, before) if u not in failed]
    with meter.step("read"):
        batches, states_of = settings.source.open(task, settings.max_events, meter)
    feed = BucketFeed(batches, meter, failed, before if task.added is None else None)
    said = time.monotonic()
    for result in _answers(model, feed, states_of, task, settings, meter):
        users = result.users
        if result.late.any():
            raise MustRecompute([plain(users[i]) for i in np.flatnonzero(result.late)])
        rows = np.arange(len(users))
        if before is not None:
            rows = np.flatnonzero(np.asarray(result.last_event_ms) >= before)
            meter.add("expired", len(users) - len(rows))
        with meter.step("write"):
            refused: dict[Any, str] = {}
            for due, part in in_order(leaving, result.users, rows, meter):
                if due:
                    writer.add_tombstones(as_users(due), settings.now_ms)
                refused |= _write(writer, result, settings.now_ms, part)
        letters |= {user: ("unstorable", reason) for user, reason in refused.items()}
        meter.add("written", len(rows) - len(refused))
        meter.watermark_ms = max(meter.watermark_ms, int(np.max(result.last_event_ms, initial=0)))
        feed.answered(len(users))
        if time.monotonic() - said > PROGRESS_EVERY_S:
            said = time.monotonic()
            run.note_progress(task.name, meter.counts["users"], meter.counts["events"])
    if leaving:
        writer.add_tombstones(as_users(leaving), settings.now_ms)
        count_gone(meter, len(leaving))
    return [
        DeadLetter(settings.job, reason, detail, bucket=task.bucket, user=str(user))
        for user, (reason, detail) in sorted(letters.items())
    ]


def _answers(
    model: VistaModel,
    feed: BucketFeed,
    states_of: StatesOf,
    task: BucketTask,
    settings: SummarySettings,
    meter: Meter,
) -> Iterator[SummaryBatch]:
    """``summarize_stream`` with its time on the meter, and with failures traced to the users that cause them."""
    stream = summarize_stream(model, iter(feed), states_of, settings.max_events)
    while True:
        before, read, cpu = time.perf_counter(), meter.seconds["read"], time.thread_time()
        try:
            answer = next(stream, None)
            if answer is not None:
                _check_finite(answer, model)
        except (MemoryError, torch.OutOfMemoryError, OSError):
            raise
        except Exception:
            if feed.reading:
                raise
            suspects = feed.waiting()
            reasons = _failing_alone(suspects, model, task, settings)
            # Nobody fails alone, or everybody does: then it is not the users that are at fault.
            if not reasons or len(reasons) == len(suspects) > EVERYBODY:
                raise
            raise UserFailed(reasons) from None
        finally:
            meter.seconds["model"] += time.perf_counter() - before - (meter.seconds["read"] - read)
            meter.cpu_model += time.thread_time() - cpu
        if answer is None:
            return
        yield answer


class NotFinite(ArithmeticError):
    """Summary tokens hold NaN or infinity."""


def _check_finite(answer: SummaryBatch, model: VistaModel) -> None:
    numbers = {name for name, _, _, codec in model.groups if codec == "int64"}  # bits, any of which are fine
    for name, tokens in answer.tokens.items():
        if name in numbers:
            continue
        # One pass where all is well: a sum is finite only if all are. Where it is not, look (it may have overflowed).
        with np.errstate(over="ignore", invalid="ignore"):
            suspect = not np.isfinite(tokens.sum())
        if suspect and not np.isfinite(tokens).all():
            raise NotFinite(f"summary tokens {name!r} hold NaN or infinity")


def _failing_alone(
    users: list[Any], model: VistaModel, task: BucketTask, settings: SummarySettings
) -> dict[Any, tuple[str, str]]:
    """Those of ``users`` that fail without the others, with reason and detail of each, by halving."""
    if not users:
        return {}
    try:
        batches, states_of = settings.source.open(task, settings.max_events, Meter(), users)
        for answer in summarize_stream(model, batches, states_of, settings.max_events):
            _check_finite(answer, model)
        return {}
    except NotFinite as error:
        found = ("not_finite", str(error))
    except Exception as error:
        found = ("model_error", f"{type(error).__name__}: {error}")
    if len(users) == 1:
        return {users[0]: found}
    half = len(users) // 2
    return _failing_alone(users[:half], model, task, settings) | _failing_alone(
        users[half:], model, task, settings
    )


def _write(writer: ShardWriter, result: SummaryBatch, now_ms: int, rows: np.ndarray) -> dict[Any, str]:
    """Add rows of a batch to the shard; returns the users whose tokens no record can hold, with the reason."""
    refused: dict[Any, str] = {}
    while len(rows):
        whole = len(rows) == len(result.users)
        users = result.users if whole else take(result.users, rows)
        try:
            writer.add(
                users,
                {
                    name: tokens if whole else np.asarray(tokens)[rows]
                    for name, tokens in result.tokens.items()
                },
                np.asarray(result.event_count)[rows],
                np.asarray(result.last_event_ms)[rows],
                now_ms,
            )
        except Unstorable as error:  # nothing of the batch was added
            refused |= {plain(user): str(error) for user in error.users}
            rows = np.array([i for i in rows if plain(result.users[i]) not in refused], np.int64)
            continue
        states = [state for i in rows if (state := result.states[i]) is not None]  # all, or none
        if states:
            writer.add_states(users, [state.to_bytes() for state in states])
        break
    return refused
