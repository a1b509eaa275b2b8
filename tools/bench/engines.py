"""What each engine adds to ``summarize`` over local worker processes: the same tasks, as many slots, the same cores.

Engines run as daemons on the loopback, started before the clock. ``first`` connects, imports and loads the model in
every worker; the later runs find that done, which local processes never do.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path

import numpy as np

from beam_jobs.generation import summarize
from beam_jobs.run import runner
from beam_jobs.run.engines import engine_args
from tools.bench import clusters
from tools.bench.harness import Figure, Result, median, ratio, sized
from tools.bench.job import make_bundle, make_tables


@sized(events=100_000, repeats=1)
def run(
    quick: bool, events: int = 1_000_000, buckets: int = 8, mean: int = 1_000, repeats: int = 3
) -> Result:
    """Measure one after the other, each with two slots.

    Args:
        events: in all.
        buckets: tasks.
        mean: events per user.
    """
    result = Result({"slots": 2})
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bundle = make_bundle(root / "bundle", 64, 2)
        make_tables(root / "tables", buckets, max(events // mean, 8), mean)
        digests: set[str] = set()

        def seconds(name: str, args: list[str]) -> float:
            options = summarize.SummarizeOptions(
                str(root / "tables"), str(bundle), str(root / f"{name}-store"), str(root / name), progress=False,
                now_ms=1_700_000_000_000,
            )  # fmt: skip
            start = time.perf_counter()
            digests.add(summarize.run(options, args).digests["content"])
            return time.perf_counter() - start

        sides, times = {"local": runner.local_args("multi_processing", 2)}, dict[str, list[float]]()
        with contextlib.ExitStack() as daemons:
            for engine in clusters.MODULES:
                if why := clusters.missing(engine):
                    result.notes.append(f"{engine}: not measured, {why}")
                else:
                    sides[engine] = engine_args(engine, daemons.enter_context(clusters.cluster(engine)))
            for turn in range(repeats + 1):  # in turn, so that what else the machine does meets all of them
                for name, args in sides.items():
                    times.setdefault(name, []).append(seconds(f"{name}-{turn}", args))
        local = np.array(times["local"][1:])
        for name, all_of in times.items():
            later = np.array(all_of[1:])
            result.figures[f"{name}_first_s"] = Figure(all_of[0], "s")
            result.figures[f"{name}_s"] = median(later, "s", at_least=False)
            if name != "local":
                result.figures[f"{name}_of_local"] = ratio(later, local, at_least=False)
        if len(digests) != 1:
            raise RuntimeError(f"expected one digest, found {sorted(digests)}")
    return result
