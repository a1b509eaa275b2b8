"""What deduplication is worth in stage 2: the same weights and outputs, the request's data once or per row.

Serving: one request, 1,000 candidates. *expanded* computes a context per candidate row, as a model does
whose rows carry their user's data (in chunks of 128 rows, which was its fastest); *copied* computes it once
and copies its keys and values to every candidate; ours does neither. Training: forward and backward of the
ranking loss at 16 candidates per user, and at fewer and more, to see where the gain ends. Last, what a
request of 600 candidates costs with more recent events read raw.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from beam_jobs.generation.bucket_task import torch_threads
from tools.bench.harness import Figure, Result, in_turn, median, ratio, sized
from tools.bench.summarize import HASHED
from vista.config import ModelConfig, RankerConfig, SlotConfig, SummarizerConfig, TokenConfig
from vista.data.events import Events
from vista.model import VistaModel
from vista.ops import crossing

DAY_MS = 86_400_000
NOW_MS = 20_000 * DAY_MS
ITEMS = 100_000
CHUNK = 128
HISTORY = 4_096
"""Events that a summary is made of: enough to fill it."""


def request(model: VistaModel, users: int, seed: int = 0, recent: int | None = None) -> dict[str, Any]:
    """Arguments of ``Ranker.context`` for ``users`` users with summaries of random events and full recent windows."""
    rng = np.random.default_rng(seed)
    config = model.config
    r = config.ranker.recent if recent is None else recent
    n = users * r
    past = Events.of(
        [HISTORY] * users,
        item=rng.integers(0, ITEMS, users * HISTORY),
        time=np.tile(NOW_MS - np.arange(HISTORY)[::-1] * 600_000, users),
    )
    tokens = {name: torch.from_numpy(x) for name, x in model.summarizer.summarize(past).tokens.items()}
    events = Events.of(
        [r] * users,
        item=rng.integers(0, ITEMS, n),
        action=rng.integers(0, 4, n),
        time=np.tile(NOW_MS - np.arange(r)[::-1] * 60_000, users),
    )
    now = np.full(users, NOW_MS)
    return {"tokens": tokens, "usable": None, "recent": events, "now_ms": now, "last_event_ms": now - DAY_MS}


def rows(inputs: dict[str, Any], user: np.ndarray) -> dict[str, Any]:
    """The same request once per row: what a batch looks like that is not deduplicated."""
    return {
        "tokens": {name: x[user] for name, x in inputs["tokens"].items()},
        "usable": None,
        "recent": inputs["recent"].select(user),
        "now_ms": inputs["now_ms"][user],
        "last_event_ms": inputs["last_event_ms"][user],
    }


def chunked(inputs: dict[str, Any], user: np.ndarray) -> list[tuple[slice, dict[str, Any]]]:
    """:func:`rows` in pieces of :data:`CHUNK` rows."""
    return [(slice(i, i + CHUNK), rows(inputs, user[i : i + CHUNK])) for i in range(0, len(user), CHUNK)]


@sized()
def run(
    quick: bool,
    width: int = 64,
    layers: int = 2,
    heads: int = 2,
    seeds: int = 0,
    recent: int = 32,
    candidates: int = 1_000,
    train_users: int = 32,
    threads: int = 1,
    slots: bool = False,
    tokens: bool = True,
) -> Result:
    """Figures ``serving_speedup`` (at 1:``candidates``) and ``training_speedup`` (at 1:16), and their sweep."""
    config = ModelConfig(
        width=width,
        summarizer=SummarizerConfig(seeds=seeds),
        ranker=RankerConfig(layers=layers, heads=heads, recent=recent),
        tokens=TokenConfig() if tokens else TokenConfig(items=0),
        slots=SlotConfig(buckets=HASHED if slots else 0),
    )
    result = Result({"context_tokens": seeds + recent + 1})
    with torch_threads(threads):
        model = VistaModel(config).eval()
        _serving(model, result, candidates, 3 if quick else 9)
        _recent(model, result, 3 if quick else 15, (32, 128) if quick else (32, 128, 256, 512, 1_024))
        _training(model, result, train_users, 3 if quick else 7, (16,) if quick else (1, 2, 4, 8, 16, 64))
    return result


def _serving(model: VistaModel, result: Result, candidates: int, repeats: int) -> None:
    ranker = model.ranker
    inputs = request(model, 1)
    items = torch.from_numpy(np.random.default_rng(1).integers(0, ITEMS, candidates))
    whole, each = np.array([0, candidates]), np.arange(candidates + 1)
    user = np.zeros(candidates, np.int64)
    expanded_inputs = chunked(inputs, user)  # made outside the clock: such a batch arrives expanded

    former = VistaModel(_hashed(model.config)).eval()
    given, batch = request(former, 1), request(model, 8, 2)

    def deduplicated() -> torch.Tensor:
        return ranker.rank(ranker.context(**inputs), items, whole)

    def copied() -> torch.Tensor:
        return ranker.rank(ranker.context(**inputs).select(user), items, each)

    def expanded() -> torch.Tensor:
        parts = [
            ranker.rank(ranker.context(**given), items[part], np.arange(len(items[part]) + 1))
            for part, given in expanded_inputs
        ]
        return torch.cat(parts)

    def hashed() -> torch.Tensor:
        return former.ranker.rank(former.ranker.context(**given), items, whole)

    with torch.inference_mode():
        first = deduplicated()
        apart = max(float((first - other()).abs().max()) for other in (copied, expanded))
        fast = in_turn({"deduplicated": deduplicated, "copied": copied, "hashed": hashed}, repeats * 3)
        slow = in_turn({"deduplicated": deduplicated, "expanded": expanded}, repeats)
        many = torch.from_numpy(np.random.default_rng(3).integers(0, ITEMS, 8 * candidates))
        offsets = crossing.Plan.of(np.arange(9) * candidates)
        whole_batch = {"batch": lambda: ranker.rank(ranker.context(**batch), many, offsets)}
        batched = in_turn(whole_batch, repeats)["batch"]
    figures, eight = result.figures, float(np.median(slow["expanded"]) * 8 / np.median(batched))
    figures["serving_speedup"] = ratio(slow["expanded"], slow["deduplicated"], target=10.0)
    figures["serving_speedup_against_copied"] = ratio(fast["copied"], fast["deduplicated"])
    figures["serving_batch_of_8_against_expanded"] = Figure(eight)
    figures["serving_rate"] = median(candidates / fast["deduplicated"], "candidates/s")
    # of a request, to that of the record until version 0.1: 16 seeds and hashed slots
    figures["cost_to_hashed"] = ratio(fast["deduplicated"], fast["hashed"], target=1.15, at_least=False)
    figures["serving_latency"] = median(fast["deduplicated"], "s")
    figures["largest_difference"] = Figure(apart, "logit", target=1e-3, at_least=False)


def _hashed(config: ModelConfig) -> ModelConfig:
    """The same model on the record as it was until version 0.1."""
    return replace(
        config,
        tokens=TokenConfig(items=0),
        slots=SlotConfig(buckets=HASHED),
        summarizer=replace(config.summarizer, seeds=16, rows="events"),
    )


def _recent(model: VistaModel, result: Result, repeats: int, lengths: tuple[int, ...]) -> None:
    """Seconds of context and ranking by R; the model's own R is no limit, it knows events by age."""
    items = torch.from_numpy(np.random.default_rng(6).integers(0, ITEMS, 600))

    def ranked(inputs: dict[str, Any]) -> Tensor:
        return model.ranker.rank(model.ranker.context(**inputs), items, np.array([0, len(items)]))

    given = {str(r): functools.partial(ranked, request(model, 1, recent=r)) for r in lengths}
    with torch.inference_mode():
        for name, seconds in in_turn(given, repeats).items():
            result.figures[f"request_at_recent_{name}"] = median(seconds, "s")


def _training(model: VistaModel, result: Result, users: int, repeats: int, sweep: tuple[int, ...]) -> None:
    ranker = model.ranker
    rng = np.random.default_rng(4)
    inputs = request(model, users, 5)
    for per_user in sweep:
        b = users * per_user
        items = torch.from_numpy(rng.integers(0, ITEMS, b))
        label = torch.from_numpy(rng.integers(0, 2, (b, len(model.config.actions)))).float()
        whole = [(slice(None), inputs, np.arange(users + 1) * per_user)]
        each = [
            (part, given, np.arange(given["recent"].users + 1))
            for part, given in chunked(inputs, np.repeat(np.arange(users), per_user))
        ]

        def step(parts: Any, items: Tensor = items, label: Tensor = label) -> None:
            model.zero_grad(set_to_none=True)
            for part, given, offsets in parts:
                logits = ranker.rank(ranker.context(**given), items[part], offsets)
                torch.nn.functional.binary_cross_entropy_with_logits(
                    logits, label[part], reduction="sum"
                ).backward()

        sides = {"deduplicated": functools.partial(step, whole), "expanded": functools.partial(step, each)}
        times = in_turn(sides, repeats)
        key, target = ("", 4.0) if per_user == 16 else (f"_at_{per_user}", None)
        result.figures[f"training_speedup{key}"] = ratio(
            times["expanded"], times["deduplicated"], target=target
        )
    result.notes.append(
        "The gain ends at one candidate per user, where nothing is shared. It grows with the candidates per "
        "user until their own layers outweigh the context, and tends to (context + candidate) / candidate work."
    )
