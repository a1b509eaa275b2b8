"""What every benchmark shares: two sides measured in turn, medians with their spread, one JSON line.

Timings differ between machines and minutes, so a figure is always a ratio of two sides of the same run
where it can be, and its ``low`` and ``high`` are the quartiles over the paired repeats.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Figure:
    """One number of a benchmark.

    Attributes:
        value: the median. ``low`` and ``high`` are its spread (quartiles, or a stated interval) or None.
        unit: "x" for ratios, else "s", "MB/s", "events/s", ...
        target: the number to reach, or None where the figure only informs.
        at_least: True if larger is better; decides ``met``.
    """

    value: float
    unit: str = "x"
    low: float | None = None
    high: float | None = None
    target: float | None = None
    at_least: bool = True

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target

    def as_dict(self) -> dict[str, Any]:
        value, low, high = (
            None if x is None else float(f"{x:.5g}") for x in (self.value, self.low, self.high)
        )
        told = {"value": value, "unit": self.unit, "low": low, "high": high}
        return {**told, "target": self.target, "met": self.met}


@dataclass
class Result:
    """What ``run`` of a benchmark returns: the parameters it used and its figures by key."""

    params: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def sized(**small: Any) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """A benchmark that with ``--quick`` takes these parameters where no others are given; its result tells all it
    took, beside those that it tells itself."""

    def of(run: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(run)
        def called(quick: bool, **given: Any) -> Result:
            bound = inspect.signature(run).bind(quick, **{**(small if quick else {}), **given})
            bound.apply_defaults()
            result = run(**bound.arguments)
            took = {name: value for name, value in bound.arguments.items() if name not in ("quick", "folder")}
            result.params = {**took, **result.params}
            return result

        return called

    return of


def in_turn(sides: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 1) -> dict[str, np.ndarray]:
    """Seconds of each side, float64 [repeats]: in turn, order reversed every other time."""
    for _ in range(warmup):
        for work in sides.values():
            work()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _, name in turns(sides, repeats):
        seconds[name].append(timed(sides[name]))
    return {name: np.array(values) for name, values in seconds.items()}


def turns(names: Iterable[str], repeats: int) -> Iterator[tuple[int, str]]:
    """(repeat, name) of each side, in reverse order every other time."""
    for r in range(repeats):
        yield from ((r, name) for name in list(names)[:: -1 if r % 2 else 1])


def timed(work: Callable[[], Any]) -> float:
    """Seconds by the clock."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cpu_seconds(*whose: int) -> float:
    """Of the processor so far: ``resource.RUSAGE_SELF``, ``RUSAGE_CHILDREN`` (those that have ended)."""
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, whose))


def at_once(target: Callable[..., None], asked: Sequence[tuple[Any, ...]]) -> list[Any]:
    """What processes that run ``target(*asked[k], barrier, pipe)`` beside each other send by their pipes.

    Raises:
        RuntimeError: one has ended without, or has been silent for an hour.
    """
    context = multiprocessing.get_context("spawn")
    barrier, pipes, processes = context.Barrier(len(asked)), [], []
    for args in asked:
        ours, theirs = context.Pipe(duplex=False)
        processes.append(context.Process(target=target, args=(*args, barrier, theirs), daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    try:
        told = [pipe.recv() for pipe in pipes if pipe.poll(3_600)]
    except EOFError:
        told = []
    for process in processes:
        process.join(60 if len(told) == len(asked) else 0)
        process.kill()
    if len(told) < len(asked):
        raise RuntimeError("a process of the benchmark did not answer")
    return told


def ratio(top: np.ndarray, bottom: np.ndarray, **kwargs: Any) -> Figure:
    """Median of the paired ratios ``top / bottom`` with quartiles."""
    low, mid, high = np.percentile(np.asarray(top) / np.asarray(bottom), [25, 50, 75])
    return Figure(float(mid), low=float(low), high=float(high), **kwargs)


def median(values: np.ndarray | Sequence[float], unit: str, **kwargs: Any) -> Figure:
    """Median of ``values`` with quartiles."""
    low, mid, high = np.percentile(values, [25, 50, 75])
    return Figure(float(mid), unit, low=float(low), high=float(high), **kwargs)


def machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        rows = cpuinfo.read_text().splitlines()
        cpu = next((row.split(":", 1)[1].strip() for row in rows if row.startswith("model name")), cpu)
    memory = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    python = platform.python_version()
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": memory, "python": python}


def commit() -> str:
    """Commit of the working tree, with ``+`` when it has changes; ``unknown`` outside a checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


STUDIES = Path(__file__).parents[1] / "studies"


def names(folder: Path = Path(__file__).parent) -> list[str]:
    """Modules of a folder that have a ``run(quick=..., **params)``."""
    return sorted(
        p.stem for p in folder.glob("*.py") if "\ndef run(" in p.read_text() and p.stem != "harness"
    )


def purpose(name: str, folder: Path = Path(__file__).parent) -> str:
    """First line of a benchmark's docstring, read without importing it."""
    source = (folder / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def function(name: str) -> Callable[..., Result]:
    """``run`` of a benchmark or study."""
    package = "tools.bench" if name in names() else "tools.studies"
    return importlib.import_module(f"{package}.{name}").run


def run(name: str, quick: bool, **params: Any) -> dict[str, Any]:
    """Run one benchmark or study and return the object that becomes its JSON line."""
    result = function(name)(quick=quick, **params)
    return {
        "bench": name,
        "commit": commit(),
        "machine": machine(),
        "params": {"quick": quick, **result.params},
        "figures": {key: figure.as_dict() for key, figure in result.figures.items()},
        "notes": result.notes,
    }


def line(report: dict[str, Any]) -> str:
    return json.dumps(report, separators=(",", ":"), allow_nan=False)
