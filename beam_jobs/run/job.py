"""The one skeleton of every job: hold its directory, start or go on, do the tasks, finish the record.

    hold ─▶ run.json (new, continued; of a finished run: return it) ─▶ tasks ──engine──▶ receipts ─▶ finished run.json

A job is a list of tasks, each with a ``name`` and ``rows``, and one function that does a task and leaves its receipt.
A task that fails leaves its error under ``failures/`` and ends quietly, on every engine alike: what an engine tries
again by itself is a task whose worker died. Failed tasks are dealt out again here, ``attempts`` times in all; a fault
of the input is not, and nothing new is begun once there is one.
"""

from __future__ import annotations

import dataclasses
import platform
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from beam_jobs.errors import BucketFailed, ExitCode, IncompleteRun, InputFailed
from beam_jobs.run import spans
from beam_jobs.run.engines import Do, Guarded, leave, run_tasks
from beam_jobs.run.progress import progress_bar
from beam_jobs.run.record import RunDirectory, RunRecord
from cache_store.errors import PublishConflict
from cache_store.read.options import wall_clock

Receipts = dict[str, dict[str, Any]]


class Task(Protocol):
    """A unit of work, picklable: paths, never rows."""

    @property
    def name(self) -> str:
        """Of its receipt."""
        ...

    @property
    def rows(self) -> int:
        """Its size: larger ones are dealt out first."""
        ...


@dataclass(frozen=True)
class Job:
    """What a run is asked for.

    Attributes:
        name: the verb.
        run_dir: an interrupted run continues from it.
        identity: options that decide the result; a run can be continued only with the same.
        args: how tasks are run: arguments of a Beam runner, or of another engine (``engines.run_tasks``).
        attempts: how often a failing task is dealt out.
        progress: show a bar where standard error is a terminal.
        clock: milliseconds; read at the start and at the end.
        unharmed: what a failed run has left as it was, for its error.
        environment: what else is worth keeping; nothing in it changes the result.
    """

    name: str
    run_dir: str
    identity: Mapping[str, Any]
    args: Sequence[str] = ()
    attempts: int = 2
    progress: bool = True
    clock: Callable[[], int] = wall_clock
    unharmed: str = "nothing was published and the old generation is live"
    environment: Mapping[str, Any] = field(default_factory=dict)


def run(job: Job, work: Callable[[Run], RunRecord]) -> RunRecord:
    """Hold the directory, and have ``work`` done unless the run has finished; the record of the finished run.

    Raises:
        RunInProgress, RunOptionsDiffer, RunRecordDamaged, RunStorageFull, and whatever ``work`` raises.
    """
    began = time.perf_counter()
    environment = {
        "beam_args": list(job.args),
        "beam": version("apache-beam"),
        "python": platform.python_version(),
        "host": platform.node(),
        "attempts": job.attempts,
        **job.environment,
    }
    with RunDirectory(job.run_dir).hold():
        known = Path(job.run_dir, "run.json").exists()
        directory, record = RunDirectory.start(
            job.run_dir, job=job.name, identity=job.identity, environment=environment, started_ms=job.clock()
        )
        try:
            if record.exit_code is not None:
                return record
            with spans.span(f"vista {job.name}", run_id=record.run_id, run_dir=job.run_dir) as told:
                done = work(Run(job, directory, record, began))
                if told is not None:
                    facts = {"generation": done.generation, "exit_code": done.exit_code, **done.counts}
                    told.set_attributes(spans.attributes(facts))
                return done
        except Exception as error:
            refused = getattr(error, "exit_code", None) == ExitCode.BAD_INPUT
            if refused and not known and not (directory.receipts() or directory.failures()):
                shutil.rmtree(job.run_dir, ignore_errors=True)  # nothing was begun to go on with
            raise
        finally:
            leave(job.args)


@dataclass
class Run:
    """A run that is held, with its record as it stands."""

    job: Job
    directory: RunDirectory
    record: RunRecord
    began: float

    def keep(self, **facts: Any) -> None:
        """Write facts that a continued run goes on with."""
        self.record = dataclasses.replace(self.record, **facts)
        self.directory.save(self.record)

    def do(self, step: str, tasks: Sequence[Task], do: Do[Any]) -> Receipts:
        """Do every task that has no trusted receipt; the receipts of all by name.

        All tasks are dealt out: one that is finished only compares its files with its receipt, beside the others.

        Args:
            do: importable; does a task, leaves its receipt, and returns counts for the engine's counters.

        Raises:
            InputFailed, BucketFailed: a task that failed to the end. WorkerLost
            PublishConflict: of a task; another publisher was faster.
            IncompleteRun: an engine that lost tasks without a word.
        """
        order = sorted(tasks, key=lambda task: -task.rows)
        guarded = Guarded(do, self.directory, timed=spans.tracer() is not None)
        names = {task.name for task in tasks}
        bar = progress_bar(self.directory, step, names, sum(task.rows for task in tasks), self.job.progress)
        with bar, spans.span(step):
            for attempt in range(1, self.job.attempts + 1):
                for folder in ("failures", "times"):
                    shutil.rmtree(self.directory.path / folder, ignore_errors=True)
                error: Exception | None = None
                try:
                    run_tasks(step, order, guarded, self.job.args, self.directory)
                except Exception as raised:  # of the engine; a task's own is among the failures
                    error = raised
                spans.tasks(self.directory)
                failures = self.directory.failures()
                if error is None and not failures:
                    break
                final = self.directory.hopeless() or getattr(error, "exit_code", 0) == ExitCode.BAD_INPUT
                if final or attempt == self.job.attempts:
                    raise self._failed(failures, error) from error
        receipts = {task.name: self.directory.receipt(task.name, verify=False) for task in tasks}
        missing = sorted(name for name, receipt in receipts.items() if receipt is None)
        if missing:
            raise IncompleteRun(
                f"{self.directory.path}: expected a receipt for each of {len(tasks)} tasks, {len(missing)} are missing "
                f"({', '.join(missing[:5])}); {self.job.unharmed}. {self._again()}"
            )
        return {name: receipt for name, receipt in receipts.items() if receipt is not None}

    def finish(self, receipts: Mapping[str, Mapping[str, Any]], **facts: Any) -> RunRecord:
        """The finished record, with the times of all steps."""
        timings = step_times(receipts, self.began)
        done = dataclasses.replace(self.record, finished_ms=self.job.clock(), timings=timings, **facts)
        return self.directory.finish(done)

    def _failed(self, failures: Mapping[str, Mapping[str, Any]], error: Exception | None) -> Exception:
        if error is not None and not failures:
            return error
        for fact in failures.values():
            if fact["error"] == PublishConflict.__name__:  # this run cannot go on; its text says what can
                return PublishConflict(fact["text"])
        bad = {name: f for name, f in failures.items() if f["exit_code"] == ExitCode.BAD_INPUT}
        name, fact = next(iter((bad or failures).items()))
        more = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
        if bad:
            return InputFailed(
                f"{fact['text']} ({name}{more} of {self.directory.path}; {self.job.unharmed}). "
                f"{self._again()}"
            )
        return BucketFailed(
            f"{self.directory.path}: {name}{more} failed with {fact['error']}: {fact['text']}; {self.job.unharmed}. "
            f"Remove the cause. {self._again()}"
        )

    def _again(self) -> str:
        return f"Run the same vista {self.job.name} with the same --run-dir again to continue"


def step_times(receipts: Mapping[str, Mapping[str, Any]], began: float) -> dict[str, float]:
    """Seconds of each step summed over tasks, and the wall time of the driver since ``began``."""
    sums: defaultdict[str, float] = defaultdict(float)
    for unit, receipt in receipts.items():
        for name, s in receipt["timings"].items():
            sums[unit.partition("-")[0] if name == "seconds" else name] += s
    sums["wall"] = time.perf_counter() - began
    return {name: round(s, 3) for name, s in sums.items()}


def totals(receipts: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Counts of all tasks, summed by name."""
    sums = Counter[str]()
    for receipt in receipts.values():
        sums.update(receipt["counts"])
    return dict(sums)
