"""Clusters that do a list of tasks: each function is all there is of an engine.

A connection stays open until :func:`leave`, so that the steps of a job share it; one that the caller has opened is used
and left open. What an engine's own text says of a failure is kept to its last line.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from beam_jobs.errors import EngineFailed, JobError, OptionsError
from beam_jobs.run.reach import check_reachable

TRIES = 4
"""How often a task is begun whose worker dies under it."""

WORKERS_WITHIN_S = 60
"""How long a cluster may take to have a first worker."""

Do = Callable[[Any], Any]
_opened: list[Callable[[], None]] = []
"""What ends the connections that this process made: a Spark application holds its cores until then."""


def on(engine: str, address: str, more: Sequence[str], tasks: Sequence[Any], do: Do) -> list[Any]:
    """The results of ``do`` of every task.

    Raises:
        OptionsError: the engine is not installed, or does not know a setting. EngineAway
        EngineFailed: the engine gave up.
    """
    if ":" in address and not address.startswith("local"):
        check_reachable("--address", address)
    if more and engine != "spark":
        raise OptionsError(f"--engine {engine}: expected no settings after --, found {' '.join(more)}")
    try:
        return ENGINES[engine](address, more, tasks, do)
    except ImportError as error:
        raise OptionsError(
            f"--engine {engine}: is not installed here ({error}); pip install 'vista-cache[{engine}]', here and where "
            f"the workers run"
        ) from error
    except JobError:
        raise
    except Exception as error:
        why = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "")
        raise EngineFailed(
            f"{engine} at {address} gave up: {type(error).__name__}: {why[:500]}; run the same command with the same "
            f"--run-dir again to continue the run"
        ) from error


def leave() -> None:
    """End the connections that :func:`on` made."""
    while _opened:
        _opened.pop()()


def on_spark(address: str, more: Sequence[str], tasks: Sequence[Any], do: Do) -> list[Any]:
    """``address``: the master, ``spark://HOST:PORT``; ``more``: ``--spark.NAME=VALUE``."""
    from pyspark import SparkConf, SparkContext

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # of the workers, too: the same environment
    conf = SparkConf().setMaster(address).setAppName("vista")
    conf.set("spark.task.maxFailures", str(TRIES)).set("spark.ui.enabled", "false")
    conf.set("spark.ui.showConsoleProgress", "false").set("spark.log.level", "OFF")
    for word in more:
        name, _, value = word.removeprefix("--").partition("=")
        if not name.startswith("spark.") or not value:
            raise OptionsError(f"--engine spark: expected --spark.NAME=VALUE after --, found {word}")
        conf.set(name, value)
    ours = SparkContext._active_spark_context is None
    context = SparkContext.getOrCreate(conf)
    if ours:
        _opened.append(context.stop)
    if context.master != address:
        raise OptionsError(
            f"--address: this process is connected to {context.master} already, found {address}"
        )
    if not address.startswith("local"):
        executors = context._jsc.sc()
        _wait_for_workers(address, lambda: executors.getExecutorMemoryStatus().size() > 1)
    return context.parallelize(tasks, len(tasks)).map(do).collect()


def on_ray(address: str, more: Sequence[str], tasks: Sequence[Any], do: Do) -> list[Any]:
    """``address``: of the head, ``HOST:PORT``, or ``ray://HOST:PORT`` from outside the cluster."""
    import ray

    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        _opened.append(ray.shutdown)
    _wait_for_workers(address, lambda: ray.cluster_resources().get("CPU", 0) >= 1)
    remote = ray.remote(max_retries=TRIES - 1)(_call)
    function = ray.put(do)
    return ray.get([remote.remote(function, task) for task in tasks])


def _call(do: Do, task: Any) -> Any:
    return do(task)


def on_dask(address: str, more: Sequence[str], tasks: Sequence[Any], do: Do) -> list[Any]:
    """``address``: of the scheduler, ``tcp://HOST:PORT``."""
    from distributed import Client

    with Client(address, timeout=WORKERS_WITHIN_S, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=WORKERS_WITHIN_S)
        return client.gather(client.map(do, tasks, pure=False, retries=TRIES - 1))


def _wait_for_workers(address: str, there: Callable[[], bool]) -> None:
    end = time.monotonic() + WORKERS_WITHIN_S
    while not there():
        if time.monotonic() > end:
            raise EngineFailed(
                f"{address}: has had no worker for {WORKERS_WITHIN_S} s; start some, and run it again"
            )
        time.sleep(0.1)


ENGINES = {"spark": on_spark, "ray": on_ray, "dask": on_dask}
