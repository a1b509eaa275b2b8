"""Law 12: what a request costs downstream does not depend on how long the user's history is.

Users with histories of three lengths are summarised by stage 1 and published to a real store; each is then
served in turn: lookup, context, search, ranking. ``cost_ratio`` is the dearest median over the cheapest.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np

from beam_jobs.generation.bucket_task import torch_threads
from cache_store import Group, RecordSchema, Store
from cache_store.testing import stored
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
    with torch_threads(threads), tempfile.TemporaryDirectory() as folder:
        model = VistaModel(ModelConfig()).eval()
        histories = [history(n, items, seed) for seed, n in enumerate(lengths)]
        with publish(Path(folder) / "store", model, histories) as store:
            index = ItemIndex.build(model, np.arange(items, dtype=np.int64), fingerprint=FINGERPRINT)
            service = Recommender(store.lookup, model, index, fingerprint=FINGERPRINT)
            newest = [h.rows(max(len(h) - 32, 0), len(h)) for h in histories]

            def serve(u: int) -> None:
                found = service.recommend(np.array([u]), newest[u], NOW_MS, 10, candidates=candidates)
                assert found.summarized.all() and len(found.item) == 10

            sides = {str(n): functools.partial(serve, u) for u, n in enumerate(lengths)}
            seconds = in_turn(sides, repeats, warmup=5)
    times = np.stack(list(seconds.values()))  # [3, repeats]
    rng = np.random.default_rng(0)
    draws = [_spread(times[:, rng.integers(0, repeats, repeats)]) for _ in range(200)]
    low, high = np.percentile(draws, [5, 95])
    figures = {
        "cost_ratio": Figure(_spread(times), low=float(low), high=float(high), target=1.03, at_least=False),
        **{f"request_at_{name}": Figure(float(np.median(values)), "s") for name, values in seconds.items()},
    }
    notes = ["cost_ratio: low and high are the 5 % and 95 % points over resampled repeats"]
    return Result(figures=figures, notes=notes)


def _spread(times: np.ndarray) -> float:
    medians = np.median(times, axis=1)
    return float(medians.max() / medians.min())


def publish(path: Path, model: VistaModel, histories: list[Events]) -> Store:
    """A store with one generation: user u is the u-th history."""
    tokens = [summarised(model, h) for h in histories]
    schema = RecordSchema(tuple(Group(*group) for group in model.groups))
    whole = {name: np.concatenate([t[name] for t in tokens]) for name in schema.slices}
    return stored(path, schema, whole, fingerprint=FINGERPRINT, last_event_ms=NOW_MS)
