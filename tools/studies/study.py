"""One run of one variant: train on the shared batches, answer the shared questions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from tools.studies.contexts import BASE, HistoryRead, Variant, coded, logits, model_config, summaries
from tools.studies.protocol import Data, Questions
from vista.config import ModelConfig
from vista.model import VistaModel
from vista.stage1.clusters import kmeans
from vista.training import metrics
from vista.training.examples import Batch


@dataclass(frozen=True)
class Answers:
    """Ranks of the positives among their candidates, 1 is best; float64 [P]. auc: float64 [P], of each
    slate."""

    rank: np.ndarray
    auc: np.ndarray

    def measures(self, questions: Questions) -> dict[str, dict[str, float]]:
        """Slice to MRR, HR@1, AUC and count."""
        found = {}
        for name, mask in questions.slices().items():
            if mask.any():
                rank = self.rank[mask]
                found[name] = {
                    "mrr": float((1 / rank).mean()),
                    "hr@1": float((rank <= 1).mean()),
                    "auc": float(np.nanmean(self.auc[mask])),
                    "positives": int(mask.sum()),
                }
        return found


def build(data: Data, variant: Variant, base: ModelConfig = BASE, seed: int = 0) -> VistaModel:
    """A fresh model for the variant, with the clusters and content vectors of the training period."""
    model = VistaModel(model_config(variant, data.actions, base, data.content.shape[1], seed))
    model.items.set_content(data.catalogue.item, data.content)
    with torch.no_grad():
        # An item's own row is noise until it was trained, and where items seldom come twice it never is.
        model.items.weight.mul_(0.3)
        torch.nn.init.orthogonal_(model.items.project.weight, generator=torch.Generator().manual_seed(seed))
    if variant.attend:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model.history = HistoryRead(model.config)
    model.summarizer.start(data.catalogue.sample)
    if model.clusters:
        clusters(data, model)
    return model


_CLUSTERS: dict[tuple[str, int, int], tuple[np.ndarray, np.ndarray]] = {}


def clusters(data: Data, model: VistaModel) -> None:
    """Clusters by content where there is content, else by co-occurrence; fitted once per data set and
    number."""
    count = model.clusters
    key = (data.name, id(data.events), count)
    if key not in _CLUSTERS:
        known = np.flatnonzero(np.abs(data.content).sum(1) > 0)
        some = np.random.default_rng(0).permutation(known)[: max(64 * count, 4_096)]
        place = assigned(data.content[known], data.content[some], count)
        _CLUSTERS[key] = data.catalogue.item[known], place
    model.set_clusters(*_CLUSTERS[key])


def assigned(vectors: np.ndarray, sample: np.ndarray, count: int) -> np.ndarray:
    """int32 [I]: nearest of ``count`` spherical k-means centres fitted on ``sample``."""
    place = kmeans(sample, count)
    centres = np.zeros((count, vectors.shape[1]), np.float32)
    np.add.at(centres, place, sample)
    centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
    blocks = [vectors[i : i + 65_536] @ centres.T for i in range(0, len(vectors), 65_536)]
    return np.concatenate([b.argmax(1) for b in blocks]).astype(np.int32)


def train(
    model: VistaModel,
    variant: Variant,
    batches: list[Batch],
    lr: float = 2e-3,
    lr_embedding: float = 5e-3,
    watch: Callable[[int, float], None] | None = None,
) -> float:
    """Listwise softmax over each slate's candidates (one positive), one pass over ``batches``; seconds it
    took."""
    model.train()
    tables = [model.items.weight]
    rest = [p for p in model.parameters() if p is not model.items.weight]
    optimizer = torch.optim.AdamW(
        [{"params": tables, "peak": lr_embedding, "weight_decay": 0.0}, {"params": rest, "peak": lr}],
        lr=lr,
        betas=(0.9, 0.98),
        weight_decay=0.01,
        fused=True,
    )
    began = time.process_time()
    for step, batch in enumerate(batches):
        rate = min(1.0, (step + 1) / 30) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / len(batches))))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        optimizer.zero_grad(set_to_none=True)
        scores = logits(model, variant, batch, summaries(model, variant, batch)).logsumexp(-1)
        loss = listwise(scores, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if watch is not None:
            watch(step, loss.item())
    return time.process_time() - began


def listwise(scores: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mean over slates of ``-log softmax`` of the positive among the slate's candidates."""
    slate = torch.from_numpy(np.repeat(np.arange(len(batch)), np.diff(batch.offsets)))
    width = int(np.diff(batch.offsets).max())
    table = scores.new_full((len(batch), width), -math.inf)
    place = torch.arange(len(scores)) - torch.from_numpy(batch.offsets)[slate]
    table = table.index_put((slate, place), scores)
    positive = scores[torch.from_numpy(np.flatnonzero(batch.action != 0))]
    return (table.logsumexp(1) - positive).mean()


@torch.no_grad()
def answer(
    model: VistaModel,
    variant: Variant,
    questions: Questions,
    ways: dict[str, dict[str, str]] | None = None,
) -> dict[str, Answers]:
    """Ranks under the summaries that serving would read, cut exactly, by name of the way of serving.

    Args:
        ways: group to codec, by name; groups without one stay float32. None is one way of no codec, ``""``.
    """
    model.eval()
    ways = ways or {"": {}}
    rank: dict[str, list[np.ndarray]] = {name: [] for name in ways}
    auc: dict[str, list[np.ndarray]] = {name: [] for name in ways}
    for batch in questions.batches:
        tokens = summaries(model, variant, batch, exact=True)
        positive = batch.action != 0
        for name, codecs in ways.items():
            scores = logits(model, variant, batch, coded(tokens, codecs)).logsumexp(-1).numpy()
            rank[name].append(metrics.positive_ranks(scores, positive, batch.offsets)[0])
            auc[name].append(metrics.slate_metrics(scores, positive, batch.offsets, ks=())["auc"])
    return {name: Answers(np.concatenate(rank[name]), np.concatenate(auc[name])) for name in ways}
