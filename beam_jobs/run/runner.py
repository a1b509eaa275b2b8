"""The runner of a job: a local one by name, or any other by its own options, which pass through untouched.

Without ``--runner`` a job runs on Beam's ``FnApiRunner``, named explicitly: today's ``DirectRunner`` first
tries to download another runner. Its three modes are ``in_memory`` (one thread of this process),
``multi_threading`` and ``multi_processing`` (a subprocess per worker; each loads the model once).

What is handed to workers is pickled by reference: every DoFn and function of a job lives in an importable
module, and no job saves the main session. A task gets paths, never rows.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import logging
import os
import pickle
import pickletools
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import apache_beam as beam
import grpc  # type: ignore[import-untyped]  # its stubs are a package of their own
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.portability.python_urns import SUBPROCESS_SDK
from apache_beam.runners.portability import local_job_service
from apache_beam.runners.portability.fn_api_runner import FnApiRunner, worker_handlers
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    SubprocessSdkWorkerHandler,
    WorkerHandler,
)
from apache_beam.runners.portability.local_job_service import SubprocessSdkWorker
from apache_beam.runners.runner import create_runner

from beam_jobs.errors import EngineAway, OptionsError, RunStorageFull, WorkerLost
from beam_jobs.run.quiet_worker import interrupts_held
from beam_jobs.run.reach import check_reachable

if TYPE_CHECKING:
    from beam_jobs.run.engines import Do

MODES = ("in_memory", "multi_threading", "multi_processing")
NAMESPACE = "vista"
LOCAL_RUNNER = "FnApiRunner"
_LOG_LEVEL = "beam:option:default_sdk_harness_log_level:v1"
T = TypeVar("T")


def local_args(mode: str = "in_memory", workers: int = 1) -> list[str]:
    """Beam arguments of a local run.

    Args:
        mode: one of :data:`MODES`.
        workers: worker threads or processes; 1 for ``in_memory``.

    Raises:
        OptionsError: unknown mode, fewer than one worker, or several workers ``in_memory``.
    """
    if mode not in MODES:
        raise OptionsError(
            f"--mode: expected one of {', '.join(MODES)}, found {mode!r}; see vista summarize --help"
        )
    if workers < 1 or (mode == "in_memory" and workers != 1):
        raise OptionsError(
            f"--workers: expected 1 in mode in_memory, else at least 1; found {workers} in {mode}; "
            f"see vista summarize --help"
        )
    return [f"--runner={LOCAL_RUNNER}", f"--direct_running_mode={mode}", f"--direct_num_workers={workers}"]


def pipeline_options(beam_args: Sequence[str] = ()) -> PipelineOptions:
    """Options of a pipeline from the runner's own arguments; ``FnApiRunner`` in memory where none is named.

    Raises:
        OptionsError: an argument that Beam refuses.
    """
    args = list(beam_args)
    if not any(arg == "--runner" or arg.startswith("--runner=") for arg in args):
        args = [f"--runner={LOCAL_RUNNER}", *args]
    try:
        options = PipelineOptions(args)
        options.get_all_options()
        create_runner(options.view_as(StandardOptions).runner)
    except (SystemExit, ValueError, ImportError, AttributeError) as error:  # SystemExit: argparse inside Beam
        why = "" if isinstance(error, SystemExit) else f" ({error})"
        raise OptionsError(
            f"Beam refused its arguments {args}{why}; they are what follows -- in vista summarize OPTIONS -- ARGS"
        ) from error
    _check_words(tuple(args), is_local(options))
    return options


@functools.cache
def _check_words(args: tuple[str, ...], local: bool) -> None:
    """Refuse what Beam would pass over: options given twice, and, where no job server may know them, unknown ones."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)  # type: ignore[arg-type]  # theirs abbreviates, and refuses repeats
    known = parser._option_string_actions
    names = [word.partition("=")[0] for word in args if word.startswith("--")]
    unknown = [name for name in names if name not in known and f"--{name[5:]}" not in known]
    twice = [
        name
        for name in set(names)
        if names.count(name) > 1 and type(known.get(name)) is argparse._StoreAction
    ]
    for what, found in (("known to Beam", unknown if local else []), ("once each", twice)):
        if found:
            raise OptionsError(
                f"expected Beam options {what}, found {', '.join(sorted(found))}; they are what follows -- in "
                f"vista summarize OPTIONS -- ARGS"
            )


def is_local(options: PipelineOptions) -> bool:
    """Whether the workers are threads or children of this process."""
    return options.view_as(StandardOptions).runner.endswith(LOCAL_RUNNER)


def local_processes(args: Sequence[str]) -> int:
    """Processes of this machine that will do tasks: 0 where another engine has them elsewhere."""
    options = pipeline_options(args)
    direct = options.view_as(DirectOptions)
    if not is_local(options):
        return 0
    return (direct.direct_num_workers or 1) if direct.direct_running_mode == "multi_processing" else 1


class _Each(beam.DoFn):
    """One element, one task; its counts become Beam's counters."""

    def __init__(self, do: Do[Any]):
        self._do = do

    def process(self, task: Any) -> None:
        for name, n in self._do(task).items():
            count(name, n)


def on_beam(step: str, tasks: Sequence[T], do: Do[T], args: Sequence[str]) -> dict[str, int]:
    """See ``engines.run_tasks``. Of a local runner a single task is done at once: there is nothing to deal out."""
    if len(tasks) == 1 and is_local(pipeline_options(args)):
        try:
            return dict(do(tasks[0]))
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise _full() from error
            raise

    def build(p: beam.Pipeline) -> None:
        _ = (
            p
            | "Tasks" >> beam.Create(tasks, reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | step >> beam.ParDo(_Each(do))
        )

    # Modules that the workers will need anyway, all at the same time; else each would load them at its first element,
    # and Beam gives the first stage's only element to one of them while the others wait.
    named = (
        arg
        for code, arg, _ in pickletools.genops(pickle.dumps(do, 0, fix_imports=False))
        if code.name == "GLOBAL"
    )
    imports = sorted({str(arg).split()[0] for arg in named} - {"builtins", "copyreg"})
    return run(build, args, imports=imports, most=len(tasks))


def _full() -> RunStorageFull:
    return RunStorageFull(
        "no space left where a task writes; free some and run the same command with the same --run-dir again to "
        "continue the run"
    )


def run(
    build: Callable[[beam.Pipeline], Any],
    beam_args: Sequence[str] = (),
    *,
    imports: Sequence[str] = (),
    most: int = 1 << 20,
) -> dict[str, int]:
    """Build a pipeline, run it on the chosen runner, wait, and return its counters.

    Args:
        build: applies the transforms.
        beam_args: the runner's own arguments.
        imports: modules that local worker processes import at their start.
        most: local workers that could have work.

    Returns:
        Counters in the namespace ``vista`` by name. A runner may count a retried task twice or not report at
        all; what a job accounts for comes from its receipts, not from here.

    Raises:
        OptionsError: of Beam's arguments. EngineAway: nothing answers where the job should go, or no longer.
        WorkerLost: a local worker process died. RunStorageFull: a disk is full.
        KeyboardInterrupt: of Ctrl-C, also where Beam took it for an error of a task.
        Exception: whatever the runner raises for a failed task.
    """
    options = pipeline_options(beam_args)
    local = is_local(options)
    for name, address in _addresses(options):
        check_reachable(name, address)
    if local:
        direct = options.view_as(DirectOptions)
        direct.direct_num_workers = min(direct.direct_num_workers or os.cpu_count() or 1, most)
        if most == 1:  # a process of its own would only take its time to start
            direct.direct_running_mode = "in_memory"
    pipeline = beam.Pipeline(runner=FnApiRunner() if local else None, options=options)
    build(pipeline)
    with contextlib.ExitStack() as stack:
        stopped = stack.enter_context(_interrupts())
        lost = stack.enter_context(_supervised_workers(imports, stopped)) if local else []
        try:
            result = pipeline.run()
            result.wait_until_finish()
        except Exception as error:
            if stopped:
                raise KeyboardInterrupt from error
            if lost:
                raise WorkerLost(
                    f"{'; '.join(lost)}; run the same command with the same --run-dir again to continue the run"
                ) from error
            if isinstance(error, (grpc.RpcError, grpc.FutureTimeoutError)) and not local:
                why = (
                    f"{error.code().name}: {error.details()}"
                    if isinstance(error, grpc.RpcError)
                    else "in time"
                )
                raise EngineAway(
                    f"the runner does not answer, or no longer ({why}); run the same command with "
                    f"the same --run-dir again to continue the run"
                ) from error
            if os.strerror(errno.ENOSPC) in str(error):  # of a worker that could not even leave its error
                raise _full() from error
            raise
    try:
        counters = result.metrics().query()["counters"]
    except (NotImplementedError, AttributeError, ValueError):
        return {}
    return {
        c.key.metric.name: c.result
        for c in counters
        if c.key.metric.namespace == NAMESPACE and isinstance(c.result, int)
    }


def _addresses(options: PipelineOptions) -> Iterator[tuple[str, str]]:
    """Addresses that the driver will connect to, with the option of each; none for runners that start their own."""
    given = options.get_all_options()
    for name in ("job_endpoint", "flink_master", "spark_master_url"):
        address = str(given.get(name) or "")
        if ":" in address:  # else it is a word like embed, [auto] or local[4]
            yield f"--{name}", address


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Yields the Ctrl-Cs that came while the body ran. One that meets this thread in a task is an error to Beam, which
    a job would try again."""
    before = signal.getsignal(signal.SIGINT)
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield seen
        return

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


class _SupervisedWorkerHandler(SubprocessSdkWorkerHandler):
    """A worker process whose death fails the run. Beam 2.77 waits for its answer for ever instead."""

    def __init__(self, lost: list[str], stopped: list[int], imports: Sequence[str], *args: Any):
        super().__init__(*args)
        self._lost, self._interrupted, self._imports = lost, stopped, imports
        self._stopped = threading.Event()

    def start_worker(self) -> None:
        # Options reach such a worker only from here; what is below that would go to the terminal.
        self.provision_info.provision_info.pipeline_options.update({_LOG_LEVEL: "CRITICAL"})
        words = [sys.executable, "-m", "beam_jobs.run.quiet_worker", str(os.getpid()), *self._imports]
        command = f"exec {shlex.join(words)}".encode()  # the child of this process, and not of its shell
        self.worker = SubprocessSdkWorker(command, self.control_address, self.provision_info, self.worker_id)
        self.worker_thread = threading.Thread(name="run_worker", target=self._supervise, daemon=True)
        self.worker_thread.start()

    def _supervise(self) -> None:
        try:
            with interrupts_held():
                self.worker.run()
        except RuntimeError as error:  # its exit code was not 0
            text = f"{self.worker_id}: {error}"
            self._lost.append(text)
            while not self._stopped.wait(0.1):  # also whatever is asked of it after its death
                # An answer with an error , not abort(): only this also ends the wait for its data.
                for instruction, future in list(self.control_conn._futures_by_id.items()):
                    future.set(beam_fn_api_pb2.InstructionResponse(instruction_id=instruction, error=text))

    def stop_worker(self) -> None:
        self._stopped.set()
        if not self._interrupted:  # else it may wait for an answer; it ends with this process
            super().stop_worker()


@contextlib.contextmanager
def _supervised_workers(imports: Sequence[str], stopped: list[int]) -> Iterator[list[str]]:
    """Use :class:`_SupervisedWorkerHandler` for subprocess workers while the body runs; yields what was lost.

    Beam's own chatter about the start and end of each worker is left out meanwhile, and the stack traces of failed
    tasks: ``RUN/failures/`` has them, and the error that ends the run says why.
    """
    registry = WorkerHandler._registered_environments
    before = registry[SUBPROCESS_SDK]
    lost: list[str] = []
    supervised = functools.partial(_SupervisedWorkerHandler, lost, stopped, imports)
    registry[SUBPROCESS_SDK] = supervised, before[1]
    # Beam's servers of local workers have no authentication, and listen on every interface.
    loopback = SimpleNamespace(**{**vars(grpc), "server": _loopback_server})
    worker_handlers.grpc = local_job_service.grpc = loopback
    chatter = logging.getLogger("apache_beam.runners")
    level = chatter.level
    chatter.setLevel(logging.CRITICAL)
    try:
        yield lost
    finally:
        chatter.setLevel(level)
        registry[SUBPROCESS_SDK] = before
        worker_handlers.grpc = local_job_service.grpc = grpc


def _loopback_server(*args: Any, **options: Any) -> grpc.Server:
    server = grpc.server(*args, **options)
    add = server.add_insecure_port
    server.add_insecure_port = lambda address: add(address.replace("[::]", "localhost"))
    return server


def count(name: str, n: int = 1) -> None:
    """Add to the Beam counter ``vista/NAME``; only inside a DoFn."""
    Metrics.counter(NAMESPACE, name).inc(n)
