"""Cost and memory of stage 1 against the length of one history, streamed in batches as a job would read it.

Events are made batch by batch while they are read, so a history is never whole in memory. Times are of
complete summaries of the default model, each length as often as makes about as many events. Peak memory is that
of a fresh process, above what it held after the model was built and one short history summarised.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from tools.bench.harness import Figure, Result, in_turn, median, ratio, sized
from vista.config import EmbeddingConfig, ModelConfig, SummarizerConfig
from vista.data.events import Events, UserBatch
from vista.embedding.encoders import EventEncoder, ItemEncoder
from vista.stage1.stream import summarize_stream
from vista.stage1.summarizer import Summarizer


def built(width: int, chunk: int) -> Summarizer:
    """The default model at a width, weights of seed 0."""
    config = ModelConfig(
        width=width, embedding=EmbeddingConfig(rows=65_536), summarizer=SummarizerConfig(chunk=chunk)
    )
    torch.manual_seed(0)
    return Summarizer(config, EventEncoder(config, ItemEncoder(config)))


ITEMS = 300_000
"""Distinct items that a history is drawn from."""


def history(events: int, batch: int) -> Iterator[UserBatch]:
    """One user of random events, in batches."""
    for number, start in enumerate(range(0, events, batch)):
        n = min(batch, events - start)
        random = np.random.default_rng(number)
        time = 1_600_000_000_000 + np.arange(start, start + n) * 60_000
        columns = {"item": random.integers(0, ITEMS, n), "action": random.integers(1, 8, n)}
        yield UserBatch(np.zeros(1, np.int64), Events.of([n], time=time, **columns), start + n < events)


def peak_bytes(events: int, batch: int, width: int, chunk: int) -> int:
    """Growth of this process' resident memory while it summarises one history."""
    model = built(width, chunk)
    list(summarize_stream(model, history(1_000, batch), None, batch))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    list(summarize_stream(model, history(events, batch), None, batch))
    return _status("VmHWM") - before


def _status(field: str) -> int:
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) * 1024 for row in rows if row.startswith(field + ":"))


@sized(longest=100_000)
def run(
    quick: bool, longest: int = 1_000_000, batch: int = 8_192, width: int = 64, chunk: int = 256
) -> Result:
    lengths = [n for n in (1_000, 10_000, 100_000) if n < longest] + [longest]
    model = built(width, chunk)

    def work(n: int, times: int) -> None:
        for _ in range(times):
            list(summarize_stream(model, history(n, batch), None, batch))

    times = {n: max(1, min(longest, 100_000) // n) for n in lengths}
    sides = {str(n): (lambda n=n: work(n, times[n])) for n in lengths}
    seconds = in_turn(sides, repeats=3 if quick else 5, warmup=0 if longest > 100_000 else 1)
    cost = {n: seconds[str(n)] / (n * times[n]) for n in lengths}

    figures = {
        "cost_ratio": ratio(cost[longest], cost[1_000], target=1.1, at_least=False),
        "cost_ratio_from_10000": ratio(cost[longest], cost[10_000], target=1.1, at_least=False),
        **{f"microseconds_per_event_{n}": median(cost[n] * 1e6, "us") for n in lengths},
    }
    if not os.path.exists("/proc/self/clear_refs"):
        return Result({}, figures, ["memory_ratio needs /proc/self/clear_refs (Linux); not measured"])
    peak = {}
    for n in (min(100_000, longest), longest):
        command = [sys.executable, "-m", "tools.bench.length", *map(str, (n, batch, width, chunk))]
        # large blocks go back to the system when freed: the peak is of what lives, not of what malloc keeps
        env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
        peak[n] = json.loads(done.stdout)
    short = peak[min(100_000, longest)]
    figures["memory_ratio"] = Figure(peak[longest] / short, target=1.5, at_least=False)
    figures["peak_mib_100000"] = Figure(short / 2**20, "MiB")
    figures[f"peak_mib_{longest}"] = Figure(peak[longest] / 2**20, "MiB")
    return Result({}, figures)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(peak_bytes(*map(int, sys.argv[1:]))))
