"""The runner of a job: a local one by name, or any other by its own options, which pass through untouched.

Without ``--runner`` a job runs on Beam's ``FnApiRunner``, named explicitly: the ``DirectRunner`` of today first tries
to download another runner. Its three modes are ``in_memory`` (one thread of this process), ``multi_threading`` and
``multi_processing`` (a subprocess per worker; each loads the model once).

What is handed to workers is pickled by reference: every DoFn and function of a job lives in an importable module,
and no job saves the main session. A task gets paths, never rows, but for the one shuffle of ``ingest``.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from beam_jobs.errors import OptionsError, WorkerLost

MODES = ("in_memory", "multi_threading", "multi_processing")
NAMESPACE = "vista"
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
        raise OptionsError(f"--mode: expected one of {', '.join(MODES)}, found {mode!r}; see vista summarize --help")
    if workers < 1 or (mode == "in_memory" and workers != 1):
        raise OptionsError(
            f"--workers: expected 1 in mode in_memory, else at least 1; found {workers} in {mode}; "
            f"see vista summarize --help"
        )
    return ["--runner=FnApiRunner", f"--direct_running_mode={mode}", f"--direct_num_workers={workers}"]


def pipeline_options(beam_args: Sequence[str] = ()) -> PipelineOptions:
    """Options of a pipeline from the runner's own arguments; ``FnApiRunner`` in memory where none is named.

    Raises:
        OptionsError: an argument that Beam refuses.
    """
    args = list(beam_args)
    if not any(arg == "--runner" or arg.startswith("--runner=") for arg in args):
        args = ["--runner=FnApiRunner", *args]
    try:
        options = PipelineOptions(args)
        options.view_as(StandardOptions)
    except SystemExit as error:  # argparse inside Beam
        raise OptionsError(
            f"Beam refused its arguments {args}; they are those after -- in vista summarize -- ARGS"
        ) from error
    return options


def is_local(options: PipelineOptions) -> bool:
    """Whether the workers are threads or children of this process."""
    return options.view_as(StandardOptions).runner in ("FnApiRunner", FnApiRunner.__name__)


def run(build: Callable[[beam.Pipeline], Any], beam_args: Sequence[str] = ()) -> dict[str, int]:
    """Build a pipeline, run it on the chosen runner, wait, and return its counters.

    Args:
        build: applies the transforms.
        beam_args: the runner's own arguments.

    Returns:
        Counters in the namespace ``vista`` by name. A runner may count a retried task twice or not report at all;
        what a job accounts for comes from its receipts, not from here.

    Raises:
        WorkerLost: a local worker process died.
        Exception: whatever the runner raises for a failed task.
    """
    options = pipeline_options(beam_args)
    runner = FnApiRunner() if is_local(options) else None
    pipeline = beam.Pipeline(runner=runner, options=options)
    build(pipeline)
    with _watch_workers() if runner is not None else contextlib.nullcontext():
        result = pipeline.run()
        result.wait_until_finish()
    try:
        counters = result.metrics().query()["counters"]
    except (NotImplementedError, AttributeError, ValueError):
        return {}
    return {
        c.key.metric.name: c.result
        for c in counters
        if c.key.metric.namespace == NAMESPACE and isinstance(c.result, int)
    }


def count(name: str, n: int = 1) -> None:
    """Add to the Beam counter ``vista/NAME``; only inside a DoFn."""
    Metrics.counter(NAMESPACE, name).inc(n)


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Run the body with ``threads`` intra-op threads in this thread, then put back what was.

    The setting belongs to the calling thread, so a task sets it itself, whatever the runner's threads are.
    It is part of a run's identity: another number of threads may add in another order.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_balanced_order(sizes: Iterable[tuple[T, float]]) -> list[T]:
    """Tasks with their sizes, largest first: local runners deal tasks out one by one, so the workers end together."""
    return [task for task, _ in sorted(sizes, key=lambda pair: -pair[1])]
