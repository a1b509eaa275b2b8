"""What one batch costs: both heads and both stages in one pass, ``L = L_item + L_action + w L_reconstruct``.

The loss of a data-parallel step is that of the joined batch, exactly: every mean is taken over the counts of
all processes, and the in-batch negatives of all processes form one pool. Gradients are *summed* over
processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from vista.config import _check
from vista.jagged import owners_of
from vista.model import VistaModel
from vista.ops.upload import uploaded
from vista.training import losses
from vista.training.batches import Batch
from vista.training.count_min import CountMin
from vista.training.losses import NO_USER, Negatives, Positives


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights and knobs of the loss.

    Attributes:
        item, action, reconstruction: weights of the three terms.
        next_item: weight, within the item term, of predicting the next item at every recent event that the
            summary does not cover (UniPinRec trains all positions; a covered one has seen its future).
        actions: one weight per action of the model; empty weighs all alike.
        mask_actions: p of masked action modelling.
        random_negatives: items drawn uniformly from the catalogue per step.
        mask_same_user: see :func:`vista.training.losses.negative_mask`.
    """

    item: float = 1.0
    action: float = 1.0
    reconstruction: float = 0.1
    next_item: float = 0.5
    actions: tuple[float, ...] = ()
    mask_actions: float = 0.2
    random_negatives: int = 256
    mask_same_user: bool = True

    def __post_init__(self) -> None:
        for name in ("item", "action", "reconstruction", "next_item", "random_negatives"):
            _check(getattr(self, name) >= 0, f"objective.{name}", "0 or more", getattr(self, name))
        _check(0 <= self.mask_actions <= 1, "objective.mask_actions", "0 to 1", self.mask_actions)
        _check(all(w >= 0 for w in self.actions), "objective.actions", "weights of 0 or more", self.actions)


class _GatherRows(torch.autograd.Function):
    """Rows of all processes, one after the other; the gradient of a row goes back to the process it came
    from."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        sizes = _counts(len(rows))
        ctx.start, ctx.stop = sum(sizes[: dist.get_rank()]), sum(sizes[: dist.get_rank() + 1])
        most = max(sizes)
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded)
        return torch.cat([part[:size] for part, size in zip(found, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[ctx.start : ctx.stop]


def _counts(n: int) -> list[int]:
    found: list[int] = [0] * dist.get_world_size()
    dist.all_gather_object(found, n)
    return found


def parallel() -> bool:
    """Whether this is one of several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather(rows: Tensor) -> Tensor:
    """Rows of all processes in rank order; the rows themselves in a single process."""
    return _GatherRows.apply(rows) if parallel() else rows


def shares(counts: dict[str, float], device: torch.device) -> dict[str, float]:
    """This process's share of each global count; 1 in a single process."""
    if not parallel():
        return dict.fromkeys(counts, 1.0)
    total = torch.tensor(list(counts.values()), dtype=torch.float64, device=device)
    mine = total.tolist()
    dist.all_reduce(total)
    return {n: m / t if t else 0.0 for n, m, t in zip(counts, mine, total.tolist(), strict=True)}


@dataclass(frozen=True)
class Candidates:
    """Candidates of a batch.

    Attributes:
        vector: float [B, D].
        slate, owner: int64 [B], the request they are of and its user.
        engaged: int64 [P], which of them somebody engaged with.
    """

    vector: Tensor
    slate: np.ndarray
    owner: np.ndarray
    engaged: np.ndarray


@dataclass(frozen=True)
class Past:
    """Recent events of a batch.

    Attributes:
        query: float [N, Q, D].
        owner: int64 [N].
        follows: bool [N], whether the next event is asked for.
    """

    query: Tensor
    owner: np.ndarray
    follows: np.ndarray


class Objective:
    """The loss as a callable, with what it remembers between steps: the sketch of item frequencies.

    Args:
        catalogue: int64 [I], items that random negatives are drawn from.
        keep_unengaged: share of the logged slates without any engagement that are in the batches; the loss gives
            each the weight of those that were left out, so that probabilities are of the log, not of the sample.
    """

    def __init__(
        self, config: ObjectiveConfig, catalogue: np.ndarray, seed: int = 0, keep_unengaged: float = 1.0
    ) -> None:
        self.keep_unengaged = keep_unengaged
        self.config, self.catalogue, self.seed = config, np.asarray(catalogue, np.int64), seed
        self.sketch = CountMin()

    def __call__(self, model: VistaModel, batch: Batch, step: int, epoch: int = 0) -> dict[str, Tensor]:
        """Scalars ``loss`` (what to minimise) and its parts ``item``, ``action``, ``past``, ``next``,
        ``reconstruction``.

        In a data-parallel run each is this process's share: the sum over processes is the loss of the joined
        batch.
        """
        c = self.config
        device = next(model.parameters()).device
        tokens = model.summarizer.prefixes(batch.events, batch.cut, batch.user_of)
        owner = batch.owner[batch.user_of]
        recent = batch.recent
        slate = owners_of(recent.lengths)
        place = np.arange(len(recent)) - recent.offsets[slate]
        masked = losses.mask_actions(
            owner[slate], batch.now_ms[slate], place, c.mask_actions, self.seed * 1_000_003 + epoch
        )
        # An event that the summary covers has seen its own action and its own future there.
        uncovered = (recent.time > batch.last_event_ms[slate]) | (batch.cut[slate] == 0)

        ctx = model.ranker.context(
            tokens, None, recent, batch.now_ms, batch.last_event_ms, masked=masked, full=True
        )
        weighed = batch.weights(self.keep_unengaged)
        item, action, rate, weight = uploaded([batch.item, batch.action, batch.log_rate, weighed], device)
        vectors = model.items.vector(item)
        logits = model.ranker.rank(ctx, item, batch.offsets, vectors=vectors)
        # A drawn slate shows popular items more often than they are wanted; served logits must not make up for it.
        logits = logits - rate[:, None]
        past_query, past_logits = model.ranker.past(ctx, recent)
        weights = torch.tensor(c.actions or [1.0] * logits.shape[-1], device=device)

        follows = np.zeros(len(recent), bool)  # has a next event in the same slate, itself uncovered
        follows[:-1] = (slate[1:] == slate[:-1]) & uncovered[:-1]
        if not c.next_item:
            follows[:] = False
        hidden = masked & uncovered
        candidate_slate = owners_of(np.diff(batch.offsets))
        engaged = np.flatnonzero(batch.action != 0)
        counts = {
            "candidates": float(weighed.sum()),
            "hidden": int(hidden.sum()),
            "positives": len(engaged),
            "follows": int(follows.sum()),
            "slates": len(batch),
        }
        share = shares(counts, device)

        parts = {
            "action": losses.action_bce(logits, action, weights, weight) * share["candidates"],
            "past": losses.action_bce(
                past_logits,
                torch.from_numpy(recent.action).to(device),
                weights,
                torch.from_numpy(hidden).to(device),
            )
            * share["hidden"],
        }
        candidates = Candidates(vectors, candidate_slate, owner[candidate_slate], engaged)
        past = Past(past_query, owner[slate], follows)
        parts["item"], parts["next"] = self._item_losses(model, batch, ctx.query, candidates, past, step)
        parts["item"], parts["next"] = parts["item"] * share["positives"], parts["next"] * share["follows"]
        parts["reconstruction"] = torch.zeros((), device=device)
        if c.reconstruction and model.config.summarizer.seeds:
            windows = np.random.default_rng([self.seed, step, 1])
            loss = model.summarizer.reconstruction_loss(
                tokens["seeds"], batch.events, batch.cut, batch.user_of, windows
            )
            parts["reconstruction"] = loss * share["slates"]
        total = (
            c.item * (parts["item"] + c.next_item * parts["next"])
            + c.action * (parts["action"] + parts["past"])
            + c.reconstruction * parts["reconstruction"]
        )
        return {"loss": total, **parts}

    def _item_losses(
        self, model: VistaModel, batch: Batch, query: Tensor, candidates: Candidates, past: Past, step: int
    ) -> tuple[Tensor, Tensor]:
        """Sampled softmax at the slate and at the recent events: engaged items of all processes, impressions
        without engagement and random items are the shared negatives."""
        c, device = self.config, candidates.vector.device
        before = sum(_counts(len(batch))[: dist.get_rank()]) if parallel() else 0  # slates of other processes
        negatives, log_q = self._negatives(model, batch, candidates, before, step)
        scale = model.ranker.scale()

        def tensor(values: np.ndarray) -> Tensor:
            return _tensor(values, device)

        rows = candidates.engaged
        at, item = candidates.slate[rows], batch.item[rows]
        own = Positives(
            query[tensor(at)],
            candidates.vector[tensor(rows)],
            tensor(item),
            tensor(candidates.owner[rows]),
            tensor(at + before),
            log_q(item),
        )
        item_loss = losses.sampled_softmax(own, negatives, scale, c.mask_same_user)
        # The gather's backward is a collective: every process must reach it, also one without positives.
        item_loss = item_loss + negatives.vector.sum() * 0.0
        rows = np.flatnonzero(past.follows)
        if not len(rows):
            return item_loss, torch.zeros((), device=device)
        target = batch.recent.item[rows + 1]
        following = Positives(
            past.query[tensor(rows)],
            model.items.vector(tensor(target)),
            tensor(target),
            tensor(past.owner[rows]),
            # An impression skipped in this slate says nothing about an earlier request: it stays masked.
            torch.full((len(rows),), -2, dtype=torch.int64, device=device),
            log_q(target),
        )
        return item_loss, losses.sampled_softmax(following, negatives, scale, c.mask_same_user)

    def _negatives(
        self, model: VistaModel, batch: Batch, candidates: Candidates, before: int, step: int
    ) -> tuple[Negatives, Callable[[np.ndarray], Tensor]]:
        """What the queries of all processes share, and log Q of items in it."""
        c, device = self.config, candidates.vector.device
        skipped = np.flatnonzero((batch.action == 0) & batch.shown)
        rows = np.concatenate([candidates.engaged, skipped])
        slate = np.where(np.isin(rows, skipped), candidates.slate[rows] + before, NO_USER)
        item, owner, known, vector = (
            gather(_tensor(batch.item[rows], device)),
            gather(_tensor(candidates.owner[rows], device)),
            gather(_tensor(slate, device)),
            gather(candidates.vector[_tensor(rows, device)]),
        )
        # their ids are here already, but for those of other processes: to read them back would wait for the device
        ids = item.cpu().numpy() if parallel() else batch.item[rows]
        self.sketch.add(ids)
        draw = np.random.default_rng([self.seed, step])
        size = min(c.random_negatives, len(self.catalogue))
        more = draw.choice(self.catalogue, size) if size else self.catalogue[:0]
        extra = _tensor(more, device)
        nobody = torch.full((size,), NO_USER, dtype=torch.int64, device=device)
        draws = len(item)

        def log_q(items: np.ndarray) -> Tensor:
            p = torch.from_numpy(self.sketch.probability(items))
            return losses.log_pool_rate(p, draws, size, len(self.catalogue)).to(device)

        every = torch.cat([item, extra])
        found = Negatives(
            torch.cat([vector, model.items.vector(extra)]),
            every,
            torch.cat([owner, nobody]),
            torch.cat([known, nobody]),
            log_q(np.concatenate([ids, more])),
        )
        return found, log_q


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return uploaded([np.ascontiguousarray(values, np.int64)], device)[0]
