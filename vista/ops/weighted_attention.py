"""Softmax attention to tokens that stand for many events: one module to paste into a model of one's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WeightedAttention(nn.Module):
    """Queries attend to weighted tokens, with an empty token to fall back on::

        seen = SummaryFeature(store)(users).sequence(vectors)
        read, odds = WeightedAttention(width)(vectors(candidates), seen.tokens, seen.log_mass)

    Token t has a vector ``k_t`` and a mass ``m_t``, how many events it stands for. With a sharpness b per head::

        a = softmax over t of (b q.k_t + log m_t), beside an empty token of score b e that has no value

    A token of mass n counts as n tokens of mass 1. Both maps start as the identity, so that before any training a
    query finds the tokens that are like it; and the mass that fell on tokens tells how many there are, which a softmax
    alone forgets: give its log odds to the layer that makes the logit.

    Args:
        width: D of queries and tokens, in one space.
        sharpness: b of each head at the start.
        empty: e at the start.

    Attributes:
        fused: ``vista.ops.flex.read``, for many queries on a GPU: then, where no gradient is recorded, scores are
            never written out. None by default.
    """

    fused: Callable[..., tuple[Tensor, Tensor]] | None = None

    def __init__(self, width: int, sharpness: tuple[float, ...] = (12.0, 30.0), empty: float = 0.8) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        nn.init.eye_(self.query.weight)
        nn.init.eye_(self.key.weight)
        self.log_sharpness = nn.Parameter(torch.tensor(sharpness).log())
        self.empty = nn.Parameter(torch.full((len(sharpness),), empty))

    def forward(self, query: Tensor, tokens: Tensor, log_mass: Tensor) -> tuple[Tensor, Tensor]:
        """query [U, C, D], tokens [U, S, D], log_mass [U, S] (``-inf``: no token) -> what each head read [U, C, H, D],
        and log odds [U, C, H] of the mass that fell on tokens.

        A log mass [U, C, S] is one for each query: where tokens come with ids, add a few (4) to that of its own token.
        """
        q, k = F.normalize(self.query(query), dim=-1), F.normalize(self.key(tokens), dim=-1)
        sharp = self.log_sharpness.exp()[:, None, None]
        empty = sharp * self.empty[:, None, None]  # [H, 1, 1]
        if self.fused is not None and log_mass.ndim == 2 and not torch.is_grad_enabled():
            wide = (len(q), len(sharp), -1, -1)
            keys, values = (x[:, None].expand(wide) for x in (k, tokens))
            read, mass = self.fused(q[:, None] * sharp, keys, values, log_mass.to(q.dtype))
            mass = mass[..., None]
            read = read * torch.sigmoid(mass - empty)
            mass = torch.logaddexp(mass, torch.full_like(mass, -60.0))
        else:
            bias = log_mass if log_mass.ndim == 3 else log_mass[:, None]
            score = torch.bmm(q, k.mT)[:, None] * sharp + bias[:, None]  # [U, H, C, S]
            # With a floor beside them: of no token at all, log(0) has no gradient.
            mass = F.pad(score, (0, 1), value=-60.0).logsumexp(-1, keepdim=True)
            share = torch.exp(score - torch.logaddexp(mass, empty))
            read = torch.bmm(share.flatten(1, 2), tokens).unflatten(1, share.shape[1:3])
        return read.transpose(1, 2), (mass - empty)[..., 0].transpose(1, 2)
