"""Law 12: what a request costs downstream does not depend on how long the user's history is.

Users with histories of three lengths are summarised by stage 1 and published to a real store; each is then
served in turn: lookup, context, search, ranking. ``cost_ratio`` is the dearest median over the cheapest.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import torch

from cache_store import Group, Publication, RecordSchema, ShardWriter, Store
from tools.bench.harness import Figure, Result, in_turn, sized
from vista.config import ModelConfig
from vista.data.events import Events
from vista.model import VistaModel
from vista.serving.index import ItemIndex
from vista.serving.recommender import Recommender

NOW_MS = 1_700_000_000_000
MINUTE_MS = 60_000
WINDOW = 65_536
FINGERPRINT = "bench-flat"


def history(length: int, items: int, seed: int) -> Events:
    """One user's events, a minute apart up to now."""
    rng = np.random.default_rng(seed)
    time = NOW_MS - np.arange(length)[::-1] * MINUTE_MS
    return Events.of(
        [length], item=rng.integers(0, items, length), action=rng.integers(1, 8, length), time=time
    )


def summarised(model: VistaModel, events: Events) -> dict[str, np.ndarray]:
    """Tokens [1, S_g, D] of one user, window after window at constant memory."""
    states = None
    for start in range(0, len(events), WINDOW):
        done = model.summarizer.summarize(events.rows(start, min(start + WINDOW, len(events))), states)
        states = done.states
    return {name: np.asarray(tokens) for name, tokens in done.tokens.items()}


@sized(lengths=(100, 1_000, 10_000), items=2_000, repeats=20)
def run(
    quick: bool,
    lengths: tuple[int, ...] = (1_000, 100_000, 1_000_000),
    candidates: int = 600,
    items: int = 100_000,
    repeats: int = 400,
    threads: int = 1,
) -> Result:
    """Figures ``cost_ratio`` (at most 1.03) and the median seconds per request of every length."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = VistaModel(ModelConfig()).eval()
        histories = [history(n, items, seed) for seed, n in enumerate(lengths)]
        with tempfile.TemporaryDirectory() as folder:
            with publish(Path(folder) / "store", model, histories) as store:
                index = ItemIndex.build(model, np.arange(items, dtype=np.int64), fingerprint=FINGERPRINT)
                service = Recommender(store.lookup, model, index, fingerprint=FINGERPRINT)
                newest = [h.rows(max(len(h) - 32, 0), len(h)) for h in histories]

                def serve(u: int) -> None:
                    found = service.recommend(np.array([u]), newest[u], NOW_MS, 10, candidates=candidates)
                    assert found.summarized.all() and len(found.item) == 10

                seconds = in_turn(
                    {str(n): functools.partial(serve, u) for u, n in enumerate(lengths)}, repeats, warmup=5
                )
    finally:
        torch.set_num_threads(before)
    times = np.stack(list(seconds.values()))  # [3, repeats]
    rng = np.random.default_rng(0)
    draws = [_spread(times[:, rng.integers(0, repeats, repeats)]) for _ in range(200)]
    low, high = np.percentile(draws, [5, 95])
    result = Result()
    result.figures["cost_ratio"] = Figure(
        _spread(times), low=float(low), high=float(high), target=1.03, at_least=False
    )
    for name, values in seconds.items():
        result.figures[f"request_at_{name}"] = Figure(float(np.median(values)), "s")
    result.notes.append("cost_ratio: low and high are the 5 % and 95 % points over resampled repeats")
    return result


def _spread(times: np.ndarray) -> float:
    medians = np.median(times, axis=1)
    return float(medians.max() / medians.min())


def publish(path: Path, model: VistaModel, histories: list[Events]) -> Store:
    """A store with one generation: user u is the u-th history."""
    tokens = [summarised(model, h) for h in histories]
    schema = RecordSchema(tuple(Group(name, size, width, codec) for name, size, width, codec in model.groups))
    users = np.arange(len(histories))
    store = Store.create(path, user_kind="int64", num_shards=1)
    staging = store.stage("bench")
    with ShardWriter(staging, 0, 1, schema, False, fingerprint=FINGERPRINT) as writer:
        writer.add(
            users,
            {name: np.concatenate([t[name] for t in tokens]) for name in schema.slices},
            np.array([len(h) for h in histories]),
            np.array([h.time[-1] for h in histories]),
            NOW_MS,
        )
        receipt = writer.finish().as_dict()
    store.publish(
        staging, [receipt], Publication(fingerprint=FINGERPRINT, watermark_ms=NOW_MS, expected=len(histories))
    )
    return Store.open(path, fingerprint=FINGERPRINT)
