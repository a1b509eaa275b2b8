"""The one read-out that every context of the study gets: softmax attention that starts as matching and can count.

A candidate asks a set of tokens, each a unit vector, a bias and a value. Beside them there is an empty place of
learned score, so the share of attention that falls on tokens tells how much there is near the candidate; its log odds
go straight to the logits. The key and query map is shared, so at the start a token of the candidate's own item scores
``SHARPNESS`` and unrelated ones about 0. Raw events have mass one and a bias of their age, learned freely; tokens that
stand for many events have a log mass, by a learned mixture of the horizons.

Letters: K slates (or windows), C candidates, T tokens, H heads, E width of a head, M horizons.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vista.config import ModelConfig

SHARPNESS = (12.0, 30.0)
"""Scores of a token of the candidate's own item under the bluntest and the sharpest head, at the start."""
EMPTY = 0.8
"""Score of the empty place as a share of that."""
_LEAST = 1e-6


class TokenReader(nn.Module):
    """Attention from candidates to tokens, one set of weights per layer of the ranker.

    Args:
        ages: features of an event's age that bias a head; 0 for tokens with masses.
        horizons: masses of a token; 0 for raw events.
    """

    def __init__(self, config: ModelConfig, ages: int = 0, horizons: int = 0) -> None:
        super().__init__()
        r, d = config.ranker, config.width
        self.heads, self.size, self.layers = r.heads, d // r.heads, r.layers
        made = (nn.Linear(d, r.heads * (self.size - 1), bias=False) for _ in range(r.layers))
        self.match = nn.ModuleList(made)
        self.age = nn.ModuleList(nn.Linear(ages, r.heads) for _ in range(r.layers)) if ages else None
        self.share = nn.Parameter(torch.zeros(r.layers, r.heads, horizons)) if horizons else None
        self.amount = nn.Linear(horizons, d) if horizons else None
        scale = torch.linspace(*SHARPNESS, r.heads).expand(r.layers, -1)
        self.log_scale = nn.Parameter(scale.log())
        self.empty = nn.Parameter(scale * EMPTY)
        self.wide = nn.Linear(r.layers * r.heads, len(config.actions))
        with torch.no_grad():
            for match in cast("Iterable[nn.Linear]", self.match):
                nn.init.orthogonal_(match.weight, math.sqrt(d / (d - r.heads)))
            for age in cast("Iterable[nn.Linear]", self.age or ()):
                age.weight.mul_(0.1)
                age.bias.zero_()
            if self.amount is not None:
                self.amount.weight.mul_(0.1)
                self.amount.bias.zero_()
            self.wide.weight.fill_(0.5 / (r.layers * r.heads))
            self.wide.bias.zero_()

    def vectors(self, number: int, x: Tensor) -> Tensor:
        """[..., D] -> unit vectors in each head's space, [..., H, E - 1]."""
        return F.normalize(self.match[number](x).unflatten(-1, (self.heads, self.size - 1)), dim=-1)

    def by_age(self, number: int, features: Tensor) -> Tensor:
        """Bias [..., H] of raw events from features of their ages [..., ages]."""
        assert self.age is not None
        return self.age[number](features)

    def by_mass(self, number: int, mass: Tensor) -> Tensor:
        """Bias [..., H] of tokens from their masses [..., M]: the log of a mixture, so that two tokens of one vector
        weigh what one with their summed masses does."""
        assert self.share is not None
        mixed = mass @ (self.share[number].softmax(-1) * 1.0).T
        return mixed.clamp_min(_LEAST).log()

    def read(
        self, number: int, asked: Tensor, keys: Tensor, bias: Tensor, values: Tensor, seen: Tensor
    ) -> Tensor:
        """What candidates read, [K, C, H, E]; the last channel is the share that fell on tokens.

        Args:
            asked: unit item vectors [K, C, D].
            keys: [K, T, H, E - 1], of :meth:`vectors`.
            bias: [K, T, H].
            values: [K, T, H, E]; the last channel is replaced.
            seen: bool [K, C or 1, T].
        """
        query = self.vectors(number, asked) * self.log_scale[number].exp()[:, None]
        query = torch.cat([query, torch.ones_like(query[..., :1])], -1)
        key = torch.cat([keys, bias[..., None]], -1)
        empty = torch.cat([key.new_zeros(self.heads, self.size - 1), self.empty[number][:, None]], -1)
        key = torch.cat([key, empty.expand(len(key), 1, -1, -1)], 1)
        value = torch.cat([values[..., :-1], torch.ones_like(values[..., :1])], -1)
        value = torch.cat([value, torch.zeros_like(value[:, :1])], 1)
        mask = torch.cat([seen, seen.new_ones(*seen.shape[:2], 1)], 2)[:, None]
        found = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask, scale=1.0
        )
        return found.transpose(1, 2)

    def logits(self, shares: list[Tensor]) -> Tensor:
        """[B, A] from the shares [B, H] of all layers."""
        return self.wide(torch.logit(torch.cat(shares, -1).clamp(1e-6, 1 - 1e-6)))


class Addressed(nn.Module):
    """What a candidate finds under its own keys: log masses [B, F], as logits; starts as their mean."""

    def __init__(self, config: ModelConfig, features: int) -> None:
        super().__init__()
        self.wide = nn.Linear(features, len(config.actions))
        last = nn.Linear(32, len(config.actions))
        self.deep = nn.Sequential(nn.Linear(features, 32), nn.SiLU(), last)
        with torch.no_grad():
            self.wide.weight.fill_(1.0 / max(features, 1))
            self.wide.bias.zero_()
            last.weight.mul_(0.1)
            last.bias.zero_()

    def forward(self, features: Tensor) -> Tensor:
        return self.wide(features) + self.deep(features)
