"""How much of a history can be told from what stage 2 is given in its place, without any recent event.

*Items*: of a user's distinct items and as many others of the same surfaces, which half would the ranker name?
The share of the history in that half, from 0 (a coin toss) to 1. *Order*: Kendall's tau between the ranker's
scores of the history's items and their last touches. Both ask the ranker as it was trained, for the next
item, so they are what the model *uses*, a lower bound of what the bytes hold; ``counters`` reads the slots'
own masses instead.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from tools.studies.contexts import Variant, coded, logits, summaries
from tools.studies.protocol import Data, Questions
from vista.data.events import Events
from vista.model import VistaModel
from vista.training.examples import Batch


def _probe(
    data: Data, questions: Questions, users: int, items: int, seed: int
) -> tuple[Batch, list[np.ndarray]]:
    """One slate per user: ``items`` of its history, then as many others; and the last touches of the
    former."""
    rng = np.random.default_rng([seed, 41])
    batches, chosen, touches, asked = questions.batches, [], [], []
    popular = data.candidates()
    for batch in batches:
        for w in range(batch.events.users):
            k = int(np.flatnonzero(batch.user_of == w)[0])
            if len(chosen) >= users or batch.cut[k] < 64:
                continue
            own = batch.events.user(w).rows(0, int(batch.cut[k]))
            distinct, reverse = np.unique(own.item[::-1], return_index=True)
            if len(distinct) < 16:
                continue
            pick = rng.permutation(len(distinct))[:items]
            inside = distinct[pick]
            surface = own.surface[rng.integers(0, len(own), 4 * len(inside))]
            outside = np.setdiff1d(popular.draw(surface, rng), own.item)
            outside = rng.permutation(outside)[: len(inside)]
            inside, last = inside[: len(outside)], (len(own) - 1 - reverse[pick])[: len(outside)]
            chosen.append((own, batch.now_ms[k], batch.last_event_ms[k], batch.owner[w]))
            touches.append(last)
            asked.append(np.concatenate([inside, outside]))
    sizes = np.array([len(a) for a in asked])
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    count = len(chosen)
    return Batch(
        Events.concat([c[0] for c in chosen]),
        np.array([c[3] for c in chosen], np.int64),
        np.arange(count),
        np.array([len(c[0]) for c in chosen], np.int64),
        Events.empty(count),
        np.array([c[1] for c in chosen], np.int64),
        np.array([c[2] for c in chosen], np.int64),
        offsets,
        np.concatenate(asked),
        np.zeros(int(offsets[-1]), np.int32),
        np.ones(int(offsets[-1]), bool),
        np.zeros(int(offsets[-1]), np.float32),
    ), touches


def _told(scores: np.ndarray, offsets: np.ndarray, touches: list[np.ndarray]) -> dict[str, float]:
    items, order = [], []
    for u, last in enumerate(touches):
        own = scores[offsets[u] : offsets[u + 1]]
        n = len(last)
        # Ties count half, so constant scores tell nothing.
        inside = own[:n]
        level = np.sort(own)[::-1][n - 1]
        above, at = (inside > level).sum(), (own == level).sum()
        named = above + (n - (own > level).sum()) * ((inside == level).sum() / max(at, 1))
        items.append(2 * named / n - 1)
        sign = np.sign(inside[:, None] - inside[None]) * np.sign(last[:, None] - last[None])
        order.append(sign.sum() / max(n * (n - 1), 1))
    return {"items": float(np.mean(items)), "order": float(np.mean(order))}


@torch.no_grad()
def information(
    model: VistaModel,
    variant: Variant,
    data: Data,
    questions: Questions,
    codecs: dict[str, str] | None = None,
    users: int = 32,
    items: int = 128,
    seed: int = 0,
) -> dict[str, float]:
    """``items`` and ``order`` as the module says; with slots also ``counter_items`` and ``counter_order``."""
    batch, touches = _probe(data, questions, users, items, seed)
    model.eval()
    tokens = summaries(model, variant, batch, exact=True)
    scores = logits(model, replace(variant, recent=1), batch, coded(tokens, codecs or {}))
    found = _told(scores.logsumexp(-1).numpy(), batch.offsets, touches)
    if variant.slots:
        user = torch.from_numpy(np.repeat(np.arange(len(batch)), np.diff(batch.offsets)))
        mass = model.slots.read(
            tokens["slots"], torch.zeros(len(batch), dtype=torch.int64), user, torch.from_numpy(batch.item)
        )
        least = (
            mass.unflatten(1, (-1, model.slots.horizons))[:, : model.slots.rows].amin(1).numpy()
        )  # [B, horizons]
        found["counter_items"] = _told(least[:, 0], batch.offsets, touches)["items"]
        # The shortest horizon is nearly the last touch alone, until it fades; then the one before it tells.
        level = np.log2(np.maximum(least, 2.0**-11))
        lately = level[:, -1] + 0.05 * level[:, -2]
        found["counter_order"] = _told(lately, batch.offsets, touches)["order"]
    return found
