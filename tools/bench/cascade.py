"""What sharing one context is worth: retrieve and rank over it, against two forwards that share nothing.

The same model, index, requests and cores on every side; the retrieved items are checked to be the same.

- *shared*: context, query, search, ranking over the same keys and values, item vectors as the index
  returned them.
- *separate*: the retrieval forward, then the ranking forward as a service does it that has no cache: one
  masked sequence [context ; candidates] through all layers (UniPinRec's baseline, arXiv 2606.00422).
- *recomputed*: the retrieval forward, then the context again and the crossing: a ranking service with our
  deduplicated attention that still shares nothing. The strictest other side.

The main setting is UniPinRec's own (n = 992 context tokens, about 600 candidates); ``shorter`` contexts show
where the gain ends.

``processes``: retrieval and ranking in two processes, requests in flight, contexts through the pool against
*separate* and *recomputed*.
"""

from __future__ import annotations

import functools
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from beam_jobs.generation.bucket_task import torch_threads
from tools.bench.harness import Figure, Result, in_turn, ratio
from tools.bench.rank import NOW_MS, request
from tools.drills.drill import memory_folder
from vista.config import ModelConfig, RankerConfig, SummarizerConfig
from vista.model import VistaModel
from vista.serving.index import Found, ItemIndex
from vista.serving.kv_pool import KVPool
from vista.stage2.context_kv import ContextKV
from vista.stage2.naive import rank_sequence

SIDES = ("shared", "separate", "recomputed")


class Cascade:
    """Model, index and the halves of each side, for one user per request."""

    def __init__(self, params: dict[str, Any]) -> None:
        torch.set_num_threads(params["threads"])
        config = ModelConfig(
            width=params["width"],
            summarizer=SummarizerConfig(seeds=params["seeds"]),
            ranker=RankerConfig(layers=params["layers"], heads=params["heads"], recent=params["recent"]),
        )
        self.model = VistaModel(config).eval()
        self.ranker = self.model.ranker
        # An untrained head hardly looks at what was attended to, and every side would agree.
        last = self.ranker.head[-1]
        assert isinstance(last, torch.nn.Linear)
        last.weight.mul_(30)
        self.candidates = params["candidates"]
        self.requests = [request(self.model, 1, seed) for seed in range(params["requests"])]
        for number, inputs in enumerate(self.requests):
            inputs["owner"] = np.array([number])

    def build(self, items: int, kind: str) -> None:
        self.index = ItemIndex.build(self.model, np.arange(items, dtype=np.int64), kind)

    def context(self, inputs: dict[str, Any], missing: np.ndarray | None = None) -> ContextKV:
        return self.ranker.context(**inputs)

    def retrieve(self, inputs: dict[str, Any]) -> tuple[ContextKV, Found]:
        ctx = self.context(inputs)
        return ctx, self.index.search(self.ranker.query(ctx), self.candidates)

    def rank_shared(self, ctx: ContextKV, found: Found) -> torch.Tensor:
        items, vectors = torch.from_numpy(found.ids[0]), torch.from_numpy(found.vectors[0])
        return self.ranker.rank(ctx, items, np.array([0, len(items)]), vectors=vectors)

    def rank_separate(self, inputs: dict[str, Any], query: torch.Tensor, ids: np.ndarray) -> torch.Tensor:
        return rank_sequence(self.ranker, inputs, query, ids)

    def rank_recomputed(self, inputs: dict[str, Any], ids: np.ndarray) -> torch.Tensor:
        return self.ranker.rank(self.ranker.context(**inputs), ids, np.array([0, len(ids)]))

    def serve(self, side: str, inputs: dict[str, Any]) -> tuple[np.ndarray, torch.Tensor]:
        ctx, found = self.retrieve(inputs)
        ids = found.ids[0]
        if side == "shared":
            return ids, self.rank_shared(ctx, found)
        if side == "separate":
            return ids, self.rank_separate(inputs, ctx.query, ids)
        return ids, self.rank_recomputed(inputs, ids)


def run(
    quick: bool,
    width: int = 64,
    layers: int = 2,
    heads: int = 2,
    seeds: int = 64,
    recent: int = 928,
    candidates: int = 600,
    items: int = 100_000,
    index: str = "exact",
    threads: int = 1,
    processes: bool = True,
) -> Result:
    """Figures ``qps_gain`` and ``latency_ratio`` (shared against separate), and against recomputed."""
    params: dict[str, Any] = {
        "width": width, "layers": layers, "heads": heads, "seeds": seeds, "recent": recent, "candidates": candidates,
        "items": 2_000 if quick else items, "index": index, "threads": threads, "requests": 4 if quick else 24,
    }  # fmt: skip
    with torch_threads(threads):
        with torch.inference_mode():
            cascade = Cascade(params)
            cascade.build(params["items"], index)
            result = Result(params={**params, "context_tokens": seeds + recent + 1})
            _one_process(cascade, result, 2 if quick else 5)
            for shorter in () if quick else (256, 32):
                less = Result()
                other = Cascade({**params, "recent": shorter})
                other.index = cascade.index  # the same weights: no size depends on R
                _one_process(other, less, 5)
                for key in ("qps_gain", "latency_ratio", "qps_gain_against_recomputed"):
                    result.figures[f"{key}_at_{seeds + shorter + 1}"] = replace(
                        less.figures[key], target=None
                    )
            _half_pool(cascade, result)
        if processes:
            _two_processes(params, result, 2 if quick else 5)
    return result


def _one_process(cascade: Cascade, result: Result, repeats: int) -> None:
    same, apart = True, 0.0
    for inputs in cascade.requests[:4]:
        ids, logits = cascade.serve("shared", inputs)
        for side in SIDES[1:]:
            other_ids, other = cascade.serve(side, inputs)
            same &= bool((ids == other_ids).all())
            apart = max(apart, float((logits - other).abs().max()))
    latency: dict[str, list[float]] = {side: [] for side in SIDES}

    def work(side: str) -> None:
        for inputs in cascade.requests:
            start = time.perf_counter()
            cascade.serve(side, inputs)
            latency[side].append(time.perf_counter() - start)

    seconds = in_turn({side: functools.partial(work, side) for side in SIDES}, repeats)
    p50 = {s: np.median(np.reshape(v, (-1, len(cascade.requests)))[1:], axis=1) for s, v in latency.items()}
    f = result.figures
    f["qps_gain"] = ratio(seconds["separate"], seconds["shared"], target=1.8)
    f["latency_ratio"] = ratio(p50["shared"], p50["separate"], target=0.75, at_least=False)
    f["qps_gain_against_recomputed"] = ratio(seconds["recomputed"], seconds["shared"], target=1.8)
    to_recomputed = ratio(p50["shared"], p50["recomputed"], target=0.75, at_least=False)
    f["latency_ratio_against_recomputed"] = to_recomputed
    for side in SIDES:
        f[f"qps_{side}"] = Figure(len(cascade.requests) / float(np.median(seconds[side])), "requests/s")
        f[f"p50_{side}"] = Figure(float(np.median(p50[side])), "s")
    made = [cascade.retrieve(inputs) for inputs in cascade.requests]
    parts: dict[str, Callable[[], Any]] = {
        "context": lambda: [cascade.ranker.context(**inputs) for inputs in cascade.requests],
        "search": lambda: [cascade.index.search(ctx.query, cascade.candidates) for ctx, _ in made],
        "rank": lambda: [cascade.rank_shared(ctx, found) for ctx, found in made],
    }
    for name, values in in_turn(parts, repeats).items():
        f[f"part_{name}"] = Figure(float(np.median(values)) / len(cascade.requests), "s")
    f["same_items"] = Figure(float(same), "1 = yes", target=1.0)
    f["largest_difference"] = Figure(apart, "logit", target=1e-3, at_least=False)
    context, search, rank = (f[f"part_{n}"].value for n in ("context", "search", "rank"))
    result.notes.append(
        f"Against a recomputed context the gain cannot pass (2 context + search + rank) / (context + search + "
        f"rank) = {(2 * context + search + rank) / (context + search + rank):.2f} here: candidates are as many "
        f"tokens as the context, and its last layer is skipped but for keys and values."
    )


def _half_pool(cascade: Cascade, result: Result) -> None:
    """What a float16 pool saves and what it costs in accuracy."""
    apart, slot_bytes = 0.0, {}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in (torch.float32, torch.float16):
            pool = KVPool.create(Path(folder) / "pool", cascade.model, 1, dtype=dtype)
            slot_bytes[dtype] = pool.layout["slot_bytes"]
            for number, inputs in enumerate(cascade.requests[:4]):
                ctx, found = cascade.retrieve(inputs)
                read = pool.get(pool.put(ctx)[0], number)
                assert read is not None
                gap = cascade.rank_shared(read, found) - cascade.rank_shared(ctx, found)
                apart = max(apart, float(gap.abs().max()))
            pool.close()
    result.figures["pool_float16_memory"] = Figure(slot_bytes[torch.float16] / slot_bytes[torch.float32])
    result.figures["pool_float16_difference"] = Figure(apart, "logit")


def _ranking_process(params: dict[str, Any], pool_path: Path, pipe: Connection) -> None:
    with torch.inference_mode():
        cascade = Cascade(params)
        pipe.send("ready")
        pool = None
        while (work := pipe.recv()) is not None:
            side, number, *rest = work
            inputs = cascade.requests[number]
            if side == "shared":
                ticket, found = rest
                pool = KVPool.attach(pool_path) if pool is None else pool
                compute = functools.partial(cascade.context, inputs)
                ctx = pool.get_or_compute([ticket], np.array([number]), compute)
                logits = cascade.rank_shared(ctx, found)
            elif side == "separate":
                logits = cascade.rank_separate(inputs, *rest)
            else:
                logits = cascade.rank_recomputed(inputs, *rest)
            pipe.send((number, logits.numpy()))
        pipe.send(dict(pool.counts) if pool is not None else {})


def _two_processes(params: dict[str, Any], result: Result, repeats: int, in_flight: int = 4) -> None:
    """Retrieval here, ranking in a second process; ``in_flight`` requests are between them at most."""
    spawn = multiprocessing.get_context("spawn")
    mine, theirs = spawn.Pipe()
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder, torch.inference_mode():
        path = Path(folder) / "pool"
        worker = spawn.Process(target=_ranking_process, args=(params, path, theirs))
        worker.start()
        cascade = Cascade(params)
        cascade.build(params["items"], params["index"])
        pool = KVPool.create(path, cascade.model, 4 * in_flight)
        mine.recv()
        latency: dict[str, list[float]] = {side: [] for side in SIDES}

        def work(side: str, in_flight: int = in_flight) -> None:
            started: dict[int, float] = {}

            def finish() -> None:
                number, _ = mine.recv()
                latency[side].append(time.perf_counter() - started.pop(number))

            for number, inputs in enumerate(cascade.requests):
                started[number] = time.perf_counter()
                ctx, found = cascade.retrieve(inputs)
                if side == "shared":
                    mine.send((side, number, pool.put(ctx)[0], found))
                elif side == "separate":
                    mine.send((side, number, ctx.query, found.ids[0]))
                else:
                    mine.send((side, number, found.ids[0]))
                while len(started) >= in_flight or (started and mine.poll()):
                    finish()
            while started:
                finish()

        seconds = in_turn({side: functools.partial(work, side) for side in SIDES}, repeats)
        for values in latency.values():
            values.clear()
        in_turn({side: functools.partial(work, side, 1) for side in SIDES}, repeats, warmup=0)
        mine.send(None)
        counts = mine.recv()
        worker.join()
        pool.close()
    f = result.figures
    p50 = {s: np.median(np.reshape(v, (repeats, -1)), axis=1) for s, v in latency.items()}
    for side in SIDES[1:]:
        more = "" if side == "separate" else f"_against_{side}"
        f[f"processes_qps_gain{more}"] = ratio(seconds[side], seconds["shared"])
        f[f"processes_latency_ratio{more}"] = ratio(p50["shared"], p50[side], at_least=False)
    asked = sum(counts.values()) - counts.get("recomputed", 0)
    f["pool_hit_share"] = Figure(counts["hit"] / max(asked, 1), "1")
    result.params["now_ms"] = NOW_MS
