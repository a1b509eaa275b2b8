"""One model for both tasks against one each; masked action modelling and same-user masking, on and off.

Every side is the product's own training with one thing changed: the same batches, steps, random negatives and first
weights, judged on the same held-out requests. Batches are bucketed as in production, a visit's slates side by side,
which is what same-user masking is for; ``same_user_negatives`` tells how many of a positive's in-batch negatives are
its own user's. The visits of a whole epoch are shuffled, so a short run still sees all users.

- Ranking, among the slate's candidates, drawn by popularity: ``mrr``, ``gauc``, and ``ne``, the log loss of all
  actions over that of their base rates, at the share of negatives trained with; lower is better.
- Retrieval, in the whole catalogue: ``recall@10``, ``recall@100`` and ``retrieval_mrr`` of engaged items.
- Ranking as in service, ``offered_recall@10``, ``offered_recall@100`` and ``offered_mrr``: where an engaged item ends
  up when the side orders the 600 items that retrieval offers, the joint side's list of that seed for all sides. An item
  that is not offered counts as not found.
- ``action_auc``: which action it was, *given* an engagement: each action's share of the probabilities; what masked
  action modelling is meant to teach.

A side's figure has the range over its seeds as ``low`` and ``high``; a difference has its 95 % interval over users of
the mean over seeds, and the notes list it seed by seed.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch

from tools.bench.harness import Figure, Result
from tools.studies.protocol import Data, generated, load
from vista.config import (
    EmbeddingConfig,
    ModelConfig,
    RankerConfig,
    SlotConfig,
    SummarizerConfig,
    TokenConfig,
    fingerprint,
)
from vista.model import VistaModel
from vista.serving.index import ItemIndex
from vista.training import metrics
from vista.training.batches import Batch, collate
from vista.training.config import TrainingConfig
from vista.training.evaluate import NEGATIVES, Scored, held_out, score
from vista.training.examples import ExampleConfig
from vista.training.loader import Loader, LoaderConfig, Part, grouped
from vista.training.losses import action_labels
from vista.training.objective import ObjectiveConfig
from vista.training.trainer import Trainer

SIDES = {
    "joint": ObjectiveConfig(),
    "ranking_only": ObjectiveConfig(item=0.0),
    "retrieval_only": ObjectiveConfig(action=0.0),
    "without_masked_actions": ObjectiveConfig(mask_actions=0.0),
    "without_user_mask": ObjectiveConfig(mask_same_user=False),
}
OFFERED, OFFERED_SLATES = 600, 2_000
"""Items that retrieval offers, as ``Recommender`` does by default, and for how many of the held-out requests."""
PER_USER = 16
"""Held-out slates of one user, so that a few busy ones do not decide."""


@dataclasses.dataclass(frozen=True)
class PerUser:
    """A measure as a weighted mean over rows: owner int64 [n], value and weight float64 [n]."""

    owner: np.ndarray
    value: np.ndarray
    weight: np.ndarray

    def mean(self) -> float:
        return float(np.average(self.value, weights=self.weight))


def run(
    quick: bool,
    data: str | None = None,
    seeds: int = 3,
    steps: int = 800,
    slates: int = 4_000,
    names: str | None = None,
    keep: str | None = None,
) -> Result:
    """Train every side and compare.

    Args:
        data: a warehouse or Parquet events; the generated set without it.
        seeds, steps: of every side.
        slates: held-out requests judged.
        names: sides beside the joint one, comma separated.
        keep: folder for each side's predictions; a side that is there is not trained again.
    """
    torch.set_num_threads(1)
    if quick:
        seeds, steps, slates = 1, min(steps, 30), min(slates, 200)
    chosen = list(dict.fromkeys(["joint", *(names.split(",") if names else SIDES)]))
    result = Result(
        params=dict(data=Path(data).name if data else "generated", seeds=seeds, steps=steps, slates=slates)
    )
    judged: dict[str, list[dict[str, PerUser | float]]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(keep) if keep else Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        found = histories(data, quick, Path(scratch))
        for seed in range(seeds):
            lists = None
            for name in chosen:
                config = configuration(found, SIDES[name], steps, seed)
                scored, offered, told = side(folder, name, config, found, slates, lists)
                lists = offered.items if lists is None else lists
                judged[name].append(measured(scored, offered, found.actions))
                result.notes.append(f"{name} {seed}: {told}")
    _figures(result, judged)
    return result


def histories(data: str | None, quick: bool, scratch: Path) -> Data:
    """A warehouse or Parquet events; without a path, generated histories."""
    if data:
        return load(data)
    return generated(scratch / "events", *((8, 24_000) if quick else (40, 160_000)))


def configuration(found: Data, objective: ObjectiveConfig, steps: int, seed: int) -> TrainingConfig:
    """Small enough for one core; 16 slates of a user share a pass over at most 1,024 events before them."""
    return TrainingConfig(
        model=ModelConfig(
            actions=found.actions,
            embedding=EmbeddingConfig(rows=32_768, content_width=found.content.shape[1]),
            tokens=TokenConfig(items=0),
            slots=SlotConfig(buckets=1_024, clusters=256),
            summarizer=SummarizerConfig(layers=1, seeds=16, chunk=128),
            ranker=RankerConfig(recent=32),
            seed=seed,
        ),
        examples=ExampleConfig(slates_per_visit=16, max_history=1_024, negatives=8),
        loader=LoaderConfig(slates=96, events=32_768, shuffle_visits=1 << 16),
        objective=objective,
        max_steps=steps,
        seed=seed,
    )


@dataclasses.dataclass(frozen=True)
class Offered:
    """Lists of the first requests in one side's order: items int64 [K, OFFERED]; owner int64 [P], rank float64 [P]
    of each engaged item among those not engaged with, infinite where the list does not have it."""

    items: np.ndarray
    owner: np.ndarray
    rank: np.ndarray


def side(
    folder: Path, name: str, config: TrainingConfig, found: Data, slates: int, lists: np.ndarray | None
) -> tuple[Scored, Offered, str]:
    """Predictions of one trained side, from ``folder`` if they are there, and how they came about.

    Args:
        lists: int64 [K, OFFERED], what retrieval offers; None lets the side retrieve.
    """
    key = fingerprint(config, f"{found.name} {slates} {OFFERED} {OFFERED_SLATES}".encode())[:12]
    kept = folder / f"{name}-{config.seed}-{key}.npz"
    if not kept.exists():
        trainer, told = train(config, found)
        model, items = trainer.model.eval(), found.catalogue.item
        scored = score(model, questions(config, found, slates), items)
        offered = order_offered(model, questions(config, found, min(slates, OFFERED_SLATES)), items, lists)
        arrays = {f"offered_{n}": x for n, x in vars(offered).items()}
        building = kept.with_suffix(".building.npz")
        np.savez(building, told=np.array(json.dumps(told)), **arrays, **vars(scored))
        building.rename(kept)
    with np.load(kept) as arrays:
        scored = Scored(**{f.name: arrays[f.name] for f in dataclasses.fields(Scored)})
        offered = Offered(**{f.name: arrays[f"offered_{f.name}"] for f in dataclasses.fields(Offered)})
        return scored, offered, str(arrays["told"])


@torch.inference_mode()
def order_offered(
    model: VistaModel, batches: Iterator[Batch], items: np.ndarray, lists: np.ndarray | None
) -> Offered:
    """The side's order of ``lists``; without them of what its own retrieval offers from ``items``."""
    index = ItemIndex.build(model, items)
    offered, owner, rank = [], [], []
    done = 0
    for batch in batches:
        tokens = model.summarizer.prefixes(batch.events, batch.cut, batch.user_of, exact=True)
        ctx = model.ranker.context(tokens, None, batch.recent, batch.now_ms, batch.last_event_ms)
        ids = (
            index.search(ctx.query, min(OFFERED, len(items))).ids
            if lists is None
            else lists[done:][: len(batch)]
        )
        logits = model.ranker.rank(ctx, ids.reshape(-1), np.arange(len(batch) + 1) * ids.shape[1])
        given = torch.sigmoid(logits).sum(-1).view(ids.shape).numpy()
        for k in range(len(batch)):
            rows = slice(batch.offsets[k], batch.offsets[k + 1])
            engaged = batch.item[rows][batch.action[rows] != 0]
            others = given[k][~np.isin(ids[k], engaged)]
            for item in engaged:
                own = given[k][ids[k] == item]  # of length one, or none
                behind = (others > own).sum() + (others == own).sum() / 2 if len(own) else np.inf
                rank.append(1 + behind)
            owner += [batch.owner[batch.user_of[k]]] * len(engaged)
        offered.append(ids)
        done += len(batch)
    return Offered(np.concatenate(offered), np.array(owner, np.int64), np.array(rank, np.float64))


def train(config: TrainingConfig, found: Data) -> tuple[Trainer, dict]:
    """The product's training on the events before the split, and how it went (losses by fifths of the run)."""
    catalogue = found.catalogue
    model = VistaModel(config.model)
    catalogue.fit(model)
    model.items.set_content(catalogue.item, found.content)
    trainer = Trainer(config, model, catalogue.item, torch.device("cpu"))
    loader = Loader(
        found.source,
        config.examples,
        config.loader,
        config.model.ranker.recent,
        catalogue.popular(),
        config.seed,
        Part(before_ms=catalogue.split_ms),
    )
    losses, shared, began = [], [], time.process_time()
    for epoch, _, batch in loader.batches():
        if trainer.position.step >= config.max_steps:
            break
        losses.append(trainer.step(batch, epoch))
        shared.append(_same_user(batch))
    parts = np.array_split(np.arange(len(losses)), min(5, len(losses)))
    told = {
        "cpu_seconds": round(time.process_time() - began),
        "epoch": epoch,
        "same_user_negatives": round(float(np.mean(shared)), 3),
        **{
            part: [round(float(np.mean([losses[i][part] for i in rows])), 3) for rows in parts]
            for part in ("action", "past", "item", "next")
        },
    }
    return trainer, told


def _same_user(batch: Batch) -> float:
    """Share of the (positive, other engaged row) pairs of a batch whose two rows are of one user."""
    slate = np.repeat(np.arange(len(batch)), np.diff(batch.offsets))
    counts = np.bincount(batch.user_of[slate[batch.action != 0]]).astype(np.float64)
    total = counts.sum()
    return float((counts * (counts - 1)).sum() / max(total * (total - 1), 1.0))


def questions(config: TrainingConfig, found: Data, slates: int) -> Iterator[Batch]:
    """Held-out requests, the same for every side and seed."""
    catalogue, recent = found.catalogue, config.model.ranker.recent
    assert catalogue.split_ms is not None
    examples = dataclasses.replace(config.examples, negatives=NEGATIVES)
    visits = held_out(
        found.source, examples, recent, catalogue.popular(), catalogue.split_ms, slates, PER_USER
    )
    return (collate(group, recent, examples.recent_pool) for group in grouped(visits, 128, 131_072))


def measured(
    scored: Scored, offered: Offered, actions: tuple[str, ...], trained_negatives: int = 8
) -> dict[str, PerUser | float]:
    """All measures of one side's predictions."""
    engaged = scored.action != 0
    sizes = np.diff(scored.offsets)
    per = metrics.slate_metrics(scored.probability.sum(1), engaged, scored.offsets, ks=())
    owner = scored.owner[per["group"]]
    split = ~np.isnan(per["auc"])
    weight = sizes[per["group"]].astype(np.float64)
    found: dict[str, PerUser | float] = {
        "mrr": PerUser(owner, per["mrr"], np.ones(len(owner))),
        "gauc": PerUser(owner[split], per["auc"][split], weight[split]),
        "ne": _entropy(scored, len(actions), trained_negatives / NEGATIVES),
    }
    retrieved = ("", "retrieval_", scored.owner[scored.rank_slate], scored.rank)
    for recall, mrr, owner, rank in (retrieved, ("offered_", "offered_", offered.owner, offered.rank)):
        for k in (10, 100):
            found[f"{recall}recall@{k}"] = PerUser(owner, (rank <= k).astype(np.float64), np.ones(len(owner)))
        found[f"{mrr}mrr"] = PerUser(owner, 1 / rank, np.ones(len(owner)))
    labels = action_labels(torch.from_numpy(scored.action[engaged]), len(actions)).numpy()
    share = scored.probability[engaged] / scored.probability[engaged].sum(1, keepdims=True)
    areas = [metrics.auc(share[:, a], labels[:, a]) for a in range(len(actions))]
    found["action_auc"] = float(np.mean([a for a in areas if np.isfinite(a)] or [np.nan]))
    return found


def _entropy(scored: Scored, actions: int, thin: float) -> PerUser:
    """Log loss of each candidate, all actions together, over that of predicting every action's base rate."""
    kept = scored.shown | (np.random.default_rng(13).random(len(scored.shown)) < thin)
    owner = np.repeat(scored.owner, np.diff(scored.offsets))[kept]
    y = action_labels(torch.from_numpy(scored.action[kept]), actions).numpy().astype(np.float64)

    def loss(p: np.ndarray) -> np.ndarray:
        p = np.clip(p.astype(np.float64), 1e-12, 1 - 1e-12)
        return -(y * np.log(p) + (1 - y) * np.log1p(-p)).sum(1)

    base = loss(np.broadcast_to(y.mean(0), y.shape)).mean()
    return PerUser(owner, loss(scored.probability[kept]) / base, np.ones(len(owner)))


def _mean(measure: PerUser | float) -> float:
    return float(measure.mean()) if isinstance(measure, PerUser) else measure


def _figures(result: Result, judged: dict[str, list[dict[str, PerUser | float]]]) -> None:
    numbers = {name: {m: [_mean(r[m]) for r in runs] for m in runs[0]} for name, runs in judged.items()}
    for name, table in numbers.items():
        for measure, values in table.items():
            result.figures[f"{name}_{measure}"] = Figure(
                float(np.mean(values)), measure, low=min(values), high=max(values)
            )
    for name in numbers if "joint" in numbers else ():
        if name == "joint":
            continue
        for measure, ours in numbers["joint"].items():
            gains = np.array(ours) - np.array(numbers[name][measure])
            low, high = float(gains.min()), float(gains.max())
            first = judged["joint"][0][measure]
            if isinstance(first, PerUser):
                pairs = zip(judged["joint"], judged[name], strict=True)
                rows = [(cast(PerUser, a[measure]), cast(PerUser, b[measure])) for a, b in pairs]
                mean = np.mean([a.value - b.value for a, b in rows], axis=0)
                _, low, high = metrics.bootstrap(first.owner, mean, first.weight)
            result.figures[f"joint_over_{name}_{measure}"] = Figure(
                float(gains.mean()), f"{measure} gained", low=low, high=high
            )
            result.notes.append(
                f"joint over {name}, {measure}, by seed: {[round(float(g), 4) for g in gains]}"
            )
