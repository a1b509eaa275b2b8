"""Summaries as tensors against the store's own lookup: what the module and each place of decoding cost.

Batches of 512 random users; records of 32 KiB; warm. ``host_of_lookup`` is the rate of ``SummaryFeature`` that decodes
in the store, ``device_of_lookup`` of the one that decodes in torch (on a CPU without a GPU), both over
``Store.lookup`` into a fresh array in the same run. ``ahead`` is how much of the lookups' time ``SummaryLoader`` hides
behind a consumer that is as slow as a lookup: 1 would be all of it, and needs a second core.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache_store import Group, RecordSchema
from cache_store.testing import stored
from cache_store.torch.feature import SummaryFeature, SummaryLoader
from tools.bench.harness import Figure, Result, in_turn, median, ratio, sized

BATCH = 512


@sized(users=2_000, repeats=5)
def run(
    quick: bool, users: int = 8_000, codec: str = "float16", device: str = "cpu", repeats: int = 40
) -> Result:
    """Figures for one codec; tokens [512, S, 64] of about 32 KiB a record."""
    torch.set_num_threads(1)
    width = 64
    tokens = {"float16": 255, "bfloat16": 255, "int8": 481, "int4": 900, "log8": 510, "float32": 127}[codec]
    figures: dict[str, Figure] = {}
    with tempfile.TemporaryDirectory() as folder:
        schema = RecordSchema((Group("tokens", tokens, width, codec),))
        store = stored(Path(folder) / "store", schema, random_tokens(users, schema))
        rng = np.random.default_rng(1)
        batches = [rng.choice(users, BATCH, replace=False) for _ in range(16)]
        turn = itertools.cycle(batches)
        host = SummaryFeature(store, on_device=False).to(device) if device == "cpu" else None
        on_device = SummaryFeature(store, on_device=True).to(device)

        def by_device() -> None:
            on_device(next(turn))
            if device != "cpu":
                torch.cuda.synchronize(device)

        sides: dict[str, Callable[[], Any]] = {
            "lookup": lambda: store.lookup(next(turn)),
            "device": by_device,
        }
        if host is not None:
            sides["host"] = lambda: host(next(turn))
        seconds = in_turn(sides, repeats, warmup=3)
        for name in sides.keys() - {"lookup"}:
            figures[f"{name}_of_lookup"] = ratio(seconds["lookup"], seconds[name])
        for name, times in seconds.items():
            figures[f"{name}_p50"] = median(times * 1000, "ms")
        feature = host or on_device
        figures["ahead"] = _ahead(feature, batches, 2 if quick else 6, float(np.median(seconds["lookup"])))
    return Result({"batch": BATCH, "record_bytes": store.manifest.schema.record_bytes}, figures)


def _ahead(feature: SummaryFeature, batches: list[np.ndarray], passes: int, busy: float) -> Figure:
    """Share of the lookups' time that is hidden behind a consumer who is busy for ``busy`` seconds a batch."""

    def consume(found: Iterable[Any]) -> None:
        for _ in found:
            time.sleep(busy)  # a consumer that computes elsewhere, such as on a GPU

    sides = {
        "plain": lambda: consume(map(feature, batches)),
        "ahead": lambda: consume(SummaryLoader(batches, feature, lambda b: b, depth=2)),
        "consume": lambda: consume(batches),
    }
    seconds = in_turn(sides, passes)
    hidden = (seconds["plain"] - seconds["ahead"]) / (seconds["plain"] - seconds["consume"])
    return median(hidden, "x")


def random_tokens(users: int, schema: RecordSchema) -> dict[str, np.ndarray]:
    """Positive numbers, which every codec takes."""
    rng = np.random.default_rng(0)
    return {
        g.name: np.abs(rng.standard_normal((users, g.tokens, g.width), np.float32)) for g in schema.groups
    }
