"""One model for both tasks against one each; masked action modelling and same-user masking, on and off.

Every side is the product's own training (same examples, same steps) with one thing changed, judged on the
same held-out requests: ranking MRR among the slate's candidates, retrieval recall in the whole catalogue, and
the AUC of the actions *given* an engagement, which is what masked action modelling is meant to teach. Batches
are bucketed as in production, several slates of a user side by side, which is what same-user masking is for.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import torch

from tools.bench.harness import Figure, Result
from tools.quality.protocol import generated, load
from vista import metrics
from vista.config import EmbeddingConfig, ModelConfig, RankerConfig, SlotConfig, SummarizerConfig
from vista.data.examples import ExampleConfig, collate
from vista.data.loader import Loader, LoaderConfig, grouped
from vista.evaluation import NEGATIVES, Scored, held_out, score
from vista.losses import action_labels
from vista.model import VistaModel
from vista.objective import ObjectiveConfig
from vista.trainer import Trainer
from vista.training_config import TrainingConfig

SIDES = {
    "joint": ObjectiveConfig(),
    "ranking_only": ObjectiveConfig(item=0.0),
    "retrieval_only": ObjectiveConfig(action=0.0),
    "without_masked_actions": ObjectiveConfig(mask_actions=0.0),
    "without_user_mask": ObjectiveConfig(mask_same_user=False),
}
MEASURES = ("mrr", "recall@100", "action_auc")


def run(
    quick: bool,
    data: str | None = None,
    seeds: int = 3,
    steps: int = 300,
    positives: int = 1_000,
    names: str | None = None,
) -> Result:
    """Train every side and compare.

    Args:
        data: a warehouse or Parquet events; the generated set without it.
        seeds, steps: of every side. positives: requests judged. names: sides, comma separated.
    """
    torch.set_num_threads(1)
    if quick:
        seeds, steps, positives = 1, min(steps, 30), 200
    chosen = names.split(",") if names else list(SIDES)
    with tempfile.TemporaryDirectory() as folder:
        found = load(data) if data else generated(Path(folder) / "events", 40, 160_000)
    examples = ExampleConfig(slates_per_visit=16, max_history=1_024, negatives=8)
    model = ModelConfig(
        actions=found.actions,
        embedding=EmbeddingConfig(rows=32_768, content_width=found.content.shape[1]),
        slots=SlotConfig(buckets=1_024, clusters=256),
        summarizer=SummarizerConfig(layers=1, seeds=16, chunk=128),
        ranker=RankerConfig(recent=32),
    )
    scores: dict[tuple[str, str], list[float]] = {}
    for seed in range(seeds):
        for name in chosen:
            config = TrainingConfig(
                model=dataclasses.replace(model, seed=seed),
                examples=examples,
                loader=LoaderConfig(slates=96, events=32_768),
                objective=SIDES[name],
                max_steps=steps,
                seed=seed,
            )
            for measure, value in _side(config, found, positives).items():
                scores.setdefault((name, measure), []).append(value)
    result = Result(
        params=dict(
            data=Path(data).name if data else "generated", seeds=seeds, steps=steps, positives=positives
        )
    )
    for (name, measure), values in scores.items():
        result.figures[f"{name}_{measure}"] = _spread(np.array(values), measure)
    joint = {m: np.array(scores["joint", m]) for m in MEASURES if ("joint", m) in scores}
    for name in chosen:
        for measure, ours in joint.items():
            if name != "joint":
                gain = ours - np.array(scores[name, measure])
                result.figures[f"joint_over_{name}_{measure}"] = _spread(gain, f"{measure} gained")
    return result


def _spread(values: np.ndarray, unit: str) -> Figure:
    return Figure(float(values.mean()), unit, low=float(values.min()), high=float(values.max()))


def _side(config: TrainingConfig, data, positives: int) -> dict[str, float]:
    catalogue = data.catalogue
    trained = VistaModel(config.model)
    catalogue.fit(trained)
    trained.items.set_content(catalogue.item, data.content)
    trainer = Trainer(config, trained, catalogue.item, torch.device("cpu"))
    recent = config.model.ranker.recent
    loader = Loader(
        data.source,
        config.examples,
        config.loader,
        recent,
        catalogue.popular(),
        config.seed,
        before_ms=catalogue.split_ms,
    )
    for epoch, _, batch in loader.batches():
        if trainer.position.step >= config.max_steps:
            break
        trainer.step(batch, epoch)
    judged = dataclasses.replace(config.examples, negatives=NEGATIVES)
    visits = held_out(data.source, judged, recent, catalogue.popular(), catalogue.split_ms, positives, 16)
    batches = (collate(group, recent, judged.recent_pool) for group in grouped(visits, 128, 131_072))
    return _measured(score(trainer.model.eval(), batches, catalogue.item), len(config.model.actions))


def _measured(scored: Scored, actions: int) -> dict[str, float]:
    engaged = scored.action != 0
    per = metrics.slate_metrics(scored.probability.sum(1), engaged, scored.offsets, ks=())
    labels = action_labels(torch.from_numpy(scored.action[engaged]), actions).numpy()
    areas = [metrics.auc(scored.probability[engaged, a], labels[:, a]) for a in range(actions)]
    areas = [a for a in areas if np.isfinite(a)]
    return {
        "mrr": float(per["mrr"].mean()),
        "recall@100": float((scored.rank <= 100).mean()),
        "action_auc": float(np.mean(areas)) if areas else float("nan"),
    }
