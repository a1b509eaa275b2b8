"""The loss of the one training stage: ``L = L_item + L_action + w * L_reconstruct``.

Sources: UniPinRec (arXiv 2606.00422, losses and masked action modelling) for the form; Yi et al. 2019 for
log-Q; request-level deduplication (Pinterest, 2026-04) for masking what the same user engaged with. The
reconstruction term belongs to the summarizer (VISTA, arXiv 2510.22049, section 3) and arrives here as a
number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

NO_USER = -1
"""Owner of a negative that nobody engaged with: drawn from the catalogue."""


@dataclass(frozen=True)
class Negatives:
    """M candidates of the sampled softmax that are shared by all queries of the batch.

    Attributes:
        vector: float [M, D], L2-normalised.
        item: int64 [M].
        owner: int64 [M]; user whose slate it comes from, ``NO_USER`` for a random draw.
        slate: int64 [M]; for an impression that was shown and not engaged with: its slate; else -1.
        log_q: float [M]; log of how often the item is expected in the pool (see :func:`log_pool_rate`).
    """

    vector: Tensor
    item: Tensor
    owner: Tensor
    slate: Tensor
    log_q: Tensor


@dataclass(frozen=True)
class Positives:
    """P items that somebody engaged with, and the requests they answer.

    Attributes:
        query: float [P, Q, D], L2-normalised.
        vector: float [P, D], L2-normalised.
        item, owner, slate: int64 [P], as in :class:`Negatives`.
        log_q: float [P], too.
    """

    query: Tensor
    vector: Tensor
    item: Tensor
    owner: Tensor
    slate: Tensor
    log_q: Tensor

    def __len__(self) -> int:
        """P."""
        return len(self.item)


def log_pool_rate(
    in_batch: Tensor, in_batch_draws: int, random_draws: int, catalogue: int, smallest: float = 1e-12
) -> Tensor:
    """log Q(c): log of the expected number of times c is in a pool mixed of two sources, float32 [n].

    The pool holds ``in_batch_draws`` items drawn by the stream (probability ``in_batch`` [n], from the
    count-min sketch) and ``random_draws`` drawn uniformly from ``catalogue`` items. Correcting by the
    mixture, not by the source a copy happened to come from, keeps the score of an item independent of its
    source.
    """
    rate = in_batch.double() * in_batch_draws + random_draws / max(catalogue, 1)
    return rate.clamp_min(smallest).log().float()


def negative_mask(positives: Positives, negatives: Negatives, mask_same_user: bool = True) -> Tensor:
    """bool [P, M]: True where negative m may not be used against positive p.

    Always: the same item (it would be its own negative). With ``mask_same_user`` (the default): whatever the
    same user engaged with or was shown, because batches sorted by user make it a false negative about 30 % of
    the time (Pinterest 2026-04), except impressions of the very slate, which are known not to have been
    engaged with.
    """
    masked = positives.item[:, None] == negatives.item[None, :]
    if mask_same_user:
        same_user = positives.owner[:, None] == negatives.owner[None, :]
        own_impression = positives.slate[:, None] == negatives.slate[None, :]
        masked = masked | (same_user & ~own_impression)
    return masked


def sampled_softmax(
    positives: Positives,
    negatives: Negatives,
    inverse_temperature: Tensor | float,
    mask_same_user: bool = True,
    weight: Tensor | None = None,
) -> Tensor:
    """``-log e^s(q,i+) / (e^s(q,i+) + sum_j e^s(q,j))`` with ``s(q,c) = lambda q.c - log Q(c)``, mean over
    positives.

    UniPinRec (arXiv 2606.00422), losses. With several query vectors per request the best matching one of a
    positive answers for it (multi-interest retrieval): s takes the maximum over Q.

    Args:
        inverse_temperature: lambda, a positive scalar.
        weight: float [P]; None weighs positives alike.

    Returns:
        scalar, zero (with a gradient path) when there are no positives.
    """
    query = positives.query
    if len(positives) == 0:
        return query.sum() * 0.0
    # The choice of query vector depends on the positive alone, so that a negative cannot pick an easier one.
    matches = torch.einsum("pqd,pd->pq", query, positives.vector)
    best = matches.argmax(dim=1)
    chosen = query[torch.arange(len(positives), device=query.device), best]  # [P, D]
    own = inverse_temperature * matches.gather(1, best[:, None]) - positives.log_q[:, None]  # [P, 1]
    others = inverse_temperature * (chosen @ negatives.vector.T) - negatives.log_q[None, :]  # [P, M]
    others = others.masked_fill(negative_mask(positives, negatives, mask_same_user), float("-inf"))
    loss = torch.logsumexp(torch.cat([own, others], dim=1).float(), dim=1) - own[:, 0].float()
    if weight is None:
        return loss.mean()
    return (loss * weight).sum() / weight.sum().clamp_min(1e-12)


def action_labels(action: Tensor, actions: int) -> Tensor:
    """float [..., A] of zeros and ones from a bit mask int [...]."""
    bits = torch.arange(actions, device=action.device, dtype=torch.int64)
    return ((action.long()[..., None] >> bits) & 1).float()


def action_bce(logits: Tensor, action: Tensor, weights: Tensor, rows: Tensor | None = None) -> Tensor:
    """``sum_c w_c * mean_j BCE(h_c(z_j), a_j^c)``: one binary cross-entropy per action, weighted.

    UniPinRec (arXiv 2606.00422), L_action; the same form serves candidates and masked past events.

    Args:
        logits: float [B, A].
        action: int [B], bit mask.
        weights: float [A], w_c.
        rows: bool or float [B]; which rows count (and how much). None counts all.

    Returns:
        scalar, zero (with a gradient path) when no row counts.
    """
    if len(action) == 0:
        return logits.sum() * 0.0
    loss = F.binary_cross_entropy_with_logits(
        logits.float(), action_labels(action, logits.shape[-1]), reduction="none"
    )
    per_row = loss @ weights.to(loss)
    if rows is None:
        return per_row.mean()
    rows = rows.to(per_row)
    return (per_row * rows).sum() / rows.sum().clamp_min(1e-12)


def mask_actions(
    owner: np.ndarray, now_ms: np.ndarray, place: np.ndarray, probability: float, seed: int
) -> np.ndarray:
    """bool [N], True where a past event's action is hidden behind the MASK class (masked action modelling).

    UniPinRec (arXiv 2606.00422): p = 0.2 was best of 0, .1, .2, .3. Decided by a hash of the slate and the
    event's place in it, so neither the batch, the device nor the number of workers changes what is hidden.

    Args:
        owner, now_ms, place: int64 [N]; the slate's user and time, and which of its recent events.
        seed: of the epoch; another one hides other events.
    """
    with np.errstate(over="ignore"):
        x = np.zeros(len(owner), np.uint64) + np.uint64(seed & (2**64 - 1))
        for column in (owner, now_ms, place):
            x = (x ^ np.ascontiguousarray(column, np.int64).view(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
            x = (x ^ (x >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            x = x ^ (x >> np.uint64(32))
    return (x >> np.uint64(11)).astype(np.float64) < probability * 2.0**53
