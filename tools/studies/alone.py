"""The record's sequence and nothing else, as a ranker of one's own reads it: under ``WeightedAttention``."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vista.model import VistaModel
from vista.ops.weighted_attention import WeightedAttention
from vista.stage1.slots import recency
from vista.stage2.readers import AGES, ages


class Laid(Protocol):
    """Candidates laid out by request, [V, C], and back."""

    def out(self, x: Tensor) -> Tensor: ...
    def back(self, x: Tensor) -> Tensor: ...


class Alone(nn.Module):
    """A head per sharpness and horizon; how long ago a token was touched biases it. Ids come along: a candidate's own
    token scores more, and its masses and age are features beside the log odds. What was read goes to the logits
    through a small MLP."""

    def __init__(self, model: VistaModel) -> None:
        super().__init__()
        d, actions, horizons = model.config.width, len(model.config.actions), model.tokens.horizons
        self.model = (model,)  # a parameter of the contest already
        each = [WeightedAttention(d) for _ in range(horizons)]
        self.own = nn.Parameter(torch.full((horizons,), 4.0))
        self.last = model.config.tokens.last
        self.age = nn.Linear(AGES, horizons) if self.last else None
        self.attention = nn.ModuleList(each)
        heads = sum(len(a.empty) for a in each)
        told = 2 * heads + 2 * horizons + AGES * self.last
        last = nn.Linear(d, actions)
        self.wide = nn.Linear(told, actions)
        self.deep = nn.Sequential(nn.Linear(heads * d + told + d, d), nn.SiLU(), last)
        with torch.no_grad():
            self.wide.weight.zero_()
            self.wide.weight[:, : 2 * heads] = 0.5 / heads
            self.wide.bias.zero_()
            last.weight.mul_(0.1)
            last.bias.zero_()
            if self.age is not None:
                self.age.weight.zero_()
                self.age.bias.zero_()

    def forward(
        self, tokens: dict[str, Tensor], laid: Laid, asked: Tensor, item: Tensor, elapsed_ms: Tensor
    ) -> Tensor:
        (model,) = self.model
        held = model.tokens.unpack(torch.cat([tokens[name] for name in model.tokens.rows], 1))
        found = model.tokens.sequence(held, model.items)
        query, n = laid.out(asked), found.item.shape[1]
        same = (laid.out(item)[..., None] == found.item[:, None]).to(query)  # [V, C, S_i]
        mass, bias = found.mass[:, :n], found.mass.log()
        there = (mass[..., :1] > 0).to(query)
        facts = [torch.log1p(mass), recency(mass), there]
        if self.age is not None:
            hours = (elapsed_ms / 3_600_000)[:, None].expand(found.last.shape[:2])
            age = ages(found.last.flatten(0, 1), hours.flatten()).unflatten(0, hours.shape)
            bias = bias + self.age(age)
            facts.append(age[:, :n] * there)
        own = torch.bmm(same, torch.cat(facts, -1))
        same = F.pad(same, (0, found.mass.shape[1] - n))
        read, odds = [], []
        for horizon, attention in enumerate(self.attention):
            r, o = attention(query, found.vector, bias[:, None, :, horizon] + self.own[horizon] * same)
            read.append(r.flatten(2))
            odds += [0.25 * o, F.softplus(o)]
        told = torch.cat([*odds, own], -1)
        return laid.back(self.wide(told) + self.deep(torch.cat([*read, told, query], -1)))
