"""One run of one variant: train on the shared batches, answer the shared questions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tools.studies.contexts import Contest, Fed, Feed, Variant, product
from tools.studies.protocol import Data, Questions
from tools.studies.tokens import Space
from vista.training import metrics
from vista.training.batches import Batch


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


def build(data: Data, space: Space, variant: Variant, fed: Sequence[Fed], seed: int = 0) -> Contest:
    """A fresh model for the variant, with the content vectors of the training period.

    Args:
        fed: what it will read; tells how many features it addresses and how many tokens it attends to.
    """
    model = product(variant, data.actions, data.content.shape[1], seed)
    model.items.set_content(data.catalogue.item, data.content)
    with torch.no_grad():
        # An item's own row is noise until it was trained, and where items seldom come twice it never is.
        model.items.weight.mul_(0.3)
        assert model.items.project is not None
        torch.nn.init.orthogonal_(model.items.project.weight, generator=torch.Generator().manual_seed(seed))
    if model.clusters:
        model.set_clusters(data.catalogue.item, space.clusters(model.clusters))
    return Contest(model, variant, fed, seed)


class Average:
    """Weights averaged over the newest third or so of the steps: what a falling rate would give, at any step."""

    def __init__(self, model: torch.nn.Module, power: float = 6.0) -> None:
        self.model, self.power, self.steps = model, power, 0
        self.held = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def add(self) -> None:
        self.steps += 1
        share = (self.power + 1) / (self.power + self.steps)
        for mean, now in zip(self.held, self.model.parameters(), strict=True):
            mean.lerp_(now, min(share, 1.0))

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averaged weights with those in training."""
        for mean, now in zip(self.held, self.model.parameters(), strict=True):
            kept = now.clone()
            now.copy_(mean)
            mean.copy_(kept)


def train(
    contest: Contest,
    batches: Sequence[Batch],
    fed: Sequence[Fed],
    lr: float = 5e-3,
    lr_embedding: float = 2e-3,
    at: dict[int, Callable[[], None]] | None = None,
    watch: Callable[[int, float], None] | None = None,
) -> float:
    """Listwise softmax over each slate's candidates (one positive), one pass over ``batches``; CPU seconds it took.

    The weights at the end are averages (:class:`Average`).

    Args:
        at: by number of steps: what to do with the averaged weights of that moment in place.
    """
    contest.train()
    table = contest.model.items.weight
    rest = [p for p in contest.parameters() if p is not table and p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": [table], "peak": lr_embedding, "weight_decay": 0.0}, {"params": rest, "peak": lr}],
        lr=lr,
        betas=(0.9, 0.98),
        weight_decay=0.01,
        fused=True,
    )
    average = Average(contest)
    spent = 0.0
    for step, (batch, given) in enumerate(zip(batches, fed, strict=True)):
        began = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(1.0, (step + 1) / 30)
        optimizer.zero_grad(set_to_none=True)
        loss = listwise(contest(batch, given).logsumexp(-1), batch)
        if contest.lost:
            loss = loss + contest.variant.options["distil"] * torch.stack(contest.lost).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(contest.parameters(), 1.0)
        optimizer.step()
        average.add()
        spent += time.process_time() - began
        if watch is not None:
            watch(step, loss.item())
        if at and step + 1 in at:
            average.swap()
            at[step + 1]()
            average.swap()
            contest.train()
    average.swap()
    return spent


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
def answer(contest: Contest, questions: Questions, fed: Sequence[Fed]) -> Answers:
    """Ranks under what serving would read, cut exactly."""
    contest.eval()
    rank, auc = [], []
    for batch, given in zip(questions.batches, fed, strict=True):
        scores = contest(batch, given).logsumexp(-1).numpy()
        positive = batch.action != 0
        rank.append(metrics.positive_ranks(scores, positive, batch.offsets)[0])
        auc.append(metrics.slate_metrics(scores, positive, batch.offsets, ks=())["auc"])
    return Answers(np.concatenate(rank), np.concatenate(auc))


def feeds(data: Data, space: Space, variant: Variant, batches: Sequence[Batch], exact: bool) -> list[Fed]:
    """What a variant reads for each batch."""
    made = Feed(variant, space, data.group_size)
    return [made(batch, exact) for batch in batches]
