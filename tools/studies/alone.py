"""The record's sequence and nothing else, as a ranker of one's own reads it: under ``WeightedAttention``."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beam_jobs.generation.summarize import schema_of
from cache_store.torch.sequence import ItemVectors, TokenSequence, sequence, whole_numbers
from vista.model import VistaModel
from vista.ops.weighted_attention import WeightedAttention
from vista.stage1.slots import recency
from vista.stage1.tokens import BITS
from vista.stage2.readers import AGES, ages

CLUSTER_AGES = 4, False
"""How ages of a cluster's newest touch are told: 10 numbers, nearness at four scales."""


class Laid(Protocol):
    """Candidates laid out by request, [V, C], and back."""

    def out(self, x: Tensor) -> Tensor: ...
    def back(self, x: Tensor) -> Tensor: ...


class Alone(nn.Module):
    """A head per sharpness and horizon; how long ago a token was touched biases it. Ids and clusters come along: a
    candidate's own token scores more, and features beside the log odds are its masses and age, and those of the tokens
    of its cluster together. What was read goes to the logits through a small MLP. d: width of the item vectors."""

    def __init__(self, d: int, actions: int, horizons: int) -> None:
        super().__init__()
        each = [WeightedAttention(d) for _ in range(horizons)]
        self.own = nn.Parameter(torch.tensor([[4.0], [0.0]]).repeat(1, horizons))
        self.age = nn.Linear(AGES, horizons)
        self.attention = nn.ModuleList(each)
        heads = sum(len(a.empty) for a in each)
        told = 2 * heads + 2 * 2 * horizons + AGES + 10
        last = nn.Linear(d, actions)
        self.wide = nn.Linear(told, actions)
        self.deep = nn.Sequential(nn.Linear(heads * d + told + d, d), nn.SiLU(), last)
        with torch.no_grad():
            self.wide.weight.zero_()
            self.wide.weight[:, : 2 * heads] = 0.5 / heads
            self.wide.bias.zero_()
            last.weight.mul_(0.1)
            last.bias.zero_()
            self.age.weight.zero_()
            self.age.bias.zero_()

    def forward(
        self,
        found: TokenSequence,
        vectors: ItemVectors,
        laid: Laid,
        asked: Tensor,
        item: Tensor,
        since: Tensor,
    ) -> Tensor:
        """Logits [B, A] of candidates, vectors [B, D] and ids int64 [B], from the sequences of V requests, ``since``
        [V] hours after the newest event that each record has seen. Without a model: of items the table alone."""
        assert found.last is not None
        query, there = laid.out(asked), (found.masses[..., :1] > 0).to(asked)

        def aged(last: Tensor, scales: int = 1, smooth: bool = True) -> Tensor:
            each = since[:, None].expand(last.shape[:2]).flatten()
            return ages(last.flatten(0, 1), each, scales, smooth).unflatten(0, last.shape[:2])

        age = aged(found.last)
        bias = found.masses.log() + self.age(age)
        n = found.items.shape[1]
        own = (laid.out(item)[..., None] == found.items[:, None]).to(query)  # [V, C, S_i]
        each = torch.cat([torch.log1p(found.masses), recency(found.masses), there, age * there], -1)
        told = [torch.bmm(own, each[:, :n])]
        cluster = torch.cat([vectors.cluster_of(found.items), found.places], 1)
        kin = laid.out(vectors.cluster_of(item))[..., None] == cluster[:, None]  # [V, C, S]
        kin &= (there[..., 0] > 0)[:, None] & (cluster >= 0)[:, None]
        mass, some = torch.bmm(kin.to(query), found.masses), kin.any(-1, keepdim=True)
        newest = [torch.where(kin, x[:, None], torch.inf).amin(-1) for x in found.last.unbind(-1)]
        told += [torch.log1p(mass), recency(mass), some.to(query)]
        told.append(torch.where(some, aged(torch.stack(newest, -1), *CLUSTER_AGES), 0.0))
        same = F.pad(own, (0, kin.shape[2] - n))
        read, odds = [], []
        for horizon, attention in enumerate(self.attention):
            more = self.own[0, horizon] * same + self.own[1, horizon] * kin
            r, o = attention(query, found.tokens, bias[:, None, :, horizon] + more)
            read.append(r.flatten(2))
            odds += [0.25 * o, F.softplus(o)]
        known = torch.cat([*odds, *told], -1)
        return laid.back(self.wide(known) + self.deep(torch.cat([*read, known, query], -1)))


class OwnVectors(ItemVectors):
    """The contest's items and clusters in the place of published ones: their vectors train with it."""

    def __init__(self, model: VistaModel) -> None:
        ids, cluster = model.tokens.cluster_of.ids.numpy(), model.tokens.cluster_of.values.numpy()
        super().__init__(ids, np.zeros((len(ids), 1)), cluster, np.zeros((model.tokens.clusters, 1)))
        self.model = (model,)  # its weights are the contest's already
        self.schema = schema_of(model, "int64", {})

    def forward(self, ids: Tensor) -> Tensor:
        return self.model[0].items(ids)

    def sequence(self, groups: dict[str, Tensor]) -> TokenSequence:
        """What a store gives of these groups, float32 [V, S_g, D], under the model's sizes."""
        tokens = self.model[0].tokens
        self.places = nn.functional.normalize(tokens.cluster_vectors, dim=-1)
        numbers = {n: whole_numbers(self.schema, n, x) for n, x in groups.items() if n in BITS}
        mask = torch.ones(len(groups["items"]), dtype=torch.bool)
        sizes = tokens.sequence_length, tokens.sequence_clusters
        return sequence(self.schema, groups, numbers, mask, self, *sizes, ages=True)
