"""``summarize`` as a job against the bare model loop: the same events, bundle, window and processes, in turn.

The loop's side reads the events into memory first, outside the clock; timed is ``summarize_stream`` alone over
batches of that memory, in as many processes as the job has workers, each with its share of the buckets. The job's
side is everything: planning, Beam, Parquet, model, quantising, LMDB with its fsyncs, receipts, publication.

``of_model_loop`` leaves out what a run costs however long it is (starting worker processes, imports, the model);
that is ``startup_s``, the wall time of the same job over empty tables. ``of_model_loop_with_startup`` has it in.
``cpu_of_model_loop`` is the same ratio in CPU seconds: what remains of it where others use the cores too.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from beam_jobs.generation import summarize
from cache_store.format.keys import bucket_of
from tools.bench.harness import Figure, Result, at_once, cpu_seconds, median, ratio, sized, turns
from tools.options import Runner
from vista import bundle
from vista.config import EmbeddingConfig, ModelConfig, SlotConfig, SummarizerConfig
from vista.data.events import Events, UserBatch
from vista.data.tables.appending import append
from vista.data.tables.reading import read_bucket
from vista.data.tables.warehouse import Warehouse
from vista.model import VistaModel
from vista.stage1.stream import summarize_stream

START_MS = 1_600_000_000_000
TARGET = 0.9


def lengths_of(users: int, mean: int, seed: int) -> np.ndarray:
    """int64 [users]: lognormal (sigma 1.2) histories of ``mean`` events on average."""
    draw = np.random.default_rng(seed).lognormal(0.0, 1.2, users)
    return np.maximum((draw / draw.mean() * mean).astype(np.int64), 1)


def histories(lengths: np.ndarray, seed: int, start_ms: int = START_MS) -> Events:
    """Histories in contract order, a few minutes between events; items Zipf-like, so users return to some."""
    rng = np.random.default_rng(seed)
    n = int(lengths.sum())
    item = (rng.pareto(1.1, n) * 50).astype(np.int64) % 200_000
    owner = np.repeat(np.arange(len(lengths)), lengths)
    gap = rng.integers(1, 600_000, n)
    total = np.cumsum(gap)
    first = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    time_ms = start_ms + total - (total[first] - gap[first])[owner]
    return Events.of(
        lengths, item=item, action=rng.integers(1, 8, n), surface=rng.integers(0, 8, n), time=time_ms
    )


def make_bundle(path: Path, width: int, layers: int, seeds: int = SummarizerConfig.seeds) -> Path:
    """A bundle with random weights: time does not depend on what they are."""
    config = ModelConfig(
        width=width,
        embedding=EmbeddingConfig(rows=65_536),
        slots=SlotConfig(),
        summarizer=SummarizerConfig(layers=layers, heads=2, seeds=seeds),
    )
    items = bundle.items_table(np.array([0]), np.array([0]), np.array([1]))
    return bundle.save(path, VistaModel(config), bundle.Meta(actions=config.actions), items)


def make_tables(path: Path, buckets: int, users: int, mean: int) -> Warehouse:
    """Tables with one sorted file per bucket."""
    tables = Warehouse(path).create(num_buckets=buckets)
    ids = np.arange(users, dtype=np.int64)
    append(tables, ids, histories(lengths_of(users, mean, seed=1), seed=2), bucket_of(ids, buckets))
    return tables


def _loop(path: str, buckets: list[list[Any]], window: int, gate: Any, out: Any) -> None:
    """One process of the bare loop: load, wait for the others, then time the model alone."""
    torch.set_num_threads(1)
    model = bundle.load(path).model
    held: list[list[UserBatch]] = [list(read_bucket(files, max_rows=window)) for files in buckets]
    few = [UserBatch(b.users[:4], b.events.select(np.arange(4))) for b in held[0][:1]]
    for _ in summarize_stream(model, iter(few)):
        pass
    gate.wait()
    start, cpu = time.perf_counter(), time.process_time()
    for batches in held:
        for _ in summarize_stream(model, iter(batches), None, window):
            pass
    out.send((time.perf_counter() - start, time.process_time() - cpu))


def loop_seconds(path: Path, files: dict[int, list[Any]], workers: int, window: int) -> tuple[float, float]:
    """Wall seconds of the slowest of ``workers`` processes over all buckets, and CPU seconds of all."""
    order = sorted(files.values(), key=lambda found: -sum(f.rows for f in found))
    seconds = at_once(_loop, [(str(path), order[k::workers], window) for k in range(workers)])
    return max(wall for wall, _ in seconds), sum(cpu for _, cpu in seconds)


@sized(events=300_000, repeats=1)
def run(
    quick: bool,
    events: int = 3_000_000,
    mean: int = 1_000,
    buckets: int = 8,
    width: int = 64,
    layers: int = 2,
    seeds: int = SummarizerConfig.seeds,
    window: int = 65_536,
    workers: tuple[int, ...] | int = (1, 2),
    repeats: int = 3,
) -> Result:
    """Measure both sides in turn for each number of workers.

    Args:
        events: in all.
        mean: per user.
        window: events held at a time, on both sides.
    """
    workers = (workers,) if isinstance(workers, int) else workers
    result = Result({"cores": os.cpu_count()})
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = make_bundle(root / "bundle", width, layers, seeds)
        tables = make_tables(root / "tables", buckets, max(events // mean, 8), mean)
        Warehouse(root / "empty").create(num_buckets=buckets)
        files = tables.bucket_files()
        rows = sum(f.rows for row in files.values() for f in row)
        options = summarize.SummarizeOptions(
            warehouse=str(root / "tables"), bundle=str(model), store=str(root / "store"), run_dir=str(root / "run"),
            max_events_in_memory=window, progress=False,
        )  # fmt: skip

        def job(count: int, warehouse: str) -> tuple[float, float, dict[str, float]]:
            shutil.rmtree(root / "store", ignore_errors=True)
            shutil.rmtree(root / "run", ignore_errors=True)
            everyone = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
            start, cpu = time.perf_counter(), cpu_seconds(*everyone)
            record = summarize.run(
                dataclasses.replace(options, warehouse=str(root / warehouse)), Runner(workers=count).arguments()
            )  # fmt: skip
            return time.perf_counter() - start, cpu_seconds(*everyone) - cpu, record.timings

        for count in workers:
            took: dict[str, list[Any]] = {"loop": [], "tables": [], "empty": []}
            for _, side in turns(took, repeats):
                took[side].append(
                    loop_seconds(model, files, count, window) if side == "loop" else job(count, side)
                )
            (base, base_cpu), (all_s, all_cpu), (empty, empty_cpu) = (
                np.array([seconds[:2] for seconds in side]).T for side in took.values()
            )
            work_s, work_cpu = all_s - np.median(empty), all_cpu - np.median(empty_cpu)
            if np.median(empty) > np.median(all_s) / 3:  # a difference of two large numbers tells nothing
                work_s = all_s
                result.notes.append(
                    f"{count} workers: starting takes more than a third of the job; of_model_loop has it in. "
                    f"Measure with more events"
                )
            suffix = "" if count == 1 else f"_{count}_workers"
            result.figures |= {
                f"of_model_loop{suffix}": ratio(base, work_s, target=TARGET),
                f"cpu_of_model_loop{suffix}": ratio(base_cpu, work_cpu),
                f"of_model_loop_with_startup{suffix}": ratio(base, all_s),
                f"startup_s{suffix}": median(empty, "s", at_least=False),
                f"loop_rate{suffix}": median(rows / base, "events/s"),
                f"job_rate{suffix}": median(rows / all_s, "events/s"),
            }
            for name in ("read", "model", "write"):
                share = np.median([s[name] / max(s["total"], 1e-9) for _, _, s in took["tables"]])
                result.figures[f"{name}_share{suffix}"] = Figure(float(share), at_least=name == "model")
    return result
