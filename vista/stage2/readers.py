"""What is known of (user, candidate) without attention among tokens: readers side by side.

Each reader looks in one place and gives a few numbers per candidate. They enter the candidate's token and, by a direct
path, its logits: "has this person been here, how often, how lately" is most of what a history tells. A new kind of
tokens that candidates read is one class here and one entry in ``Ranker.readers``.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vista.config import ModelConfig
from vista.ops.crossing import Plan
from vista.stage1.places import PlaceRead
from vista.stage1.slots import SlotMemory, recency
from vista.stage1.tokens import ExactTokens, action_of
from vista.stage2.context_kv import ContextKV

DAY_MS = 86_400_000
FREQUENCIES = 8
_NOTHING = 1e-6
_LARGEST = torch.iinfo(torch.int64).max


def waves(x: Tensor) -> Tensor:
    """Fourier features of ``log1p(x)``: [...] -> [..., 2 * FREQUENCIES], smooth from seconds to years."""
    steps = math.pi * 2.0 ** torch.arange(-4, FREQUENCIES - 4, device=x.device, dtype=torch.float32)
    angle = torch.log1p(x.float().clamp_min(0))[..., None] * steps / 4
    return torch.cat([angle.sin(), angle.cos()], -1)


class Reader(Protocol):
    """One place where candidates look.

    Attributes:
        features: numbers per candidate.
    """

    features: int

    def start(self, wide: Tensor) -> None:
        """Set the weights of the direct path [A, features], zeros as given, so that training starts as matching."""
        ...

    def __call__(self, ctx: ContextKV, item: Tensor, vector: Tensor, plan: Plan) -> Tensor:
        """Features [B, F] of candidates: item int64 [B], vector [B, D] of unit length, grouped as ``plan`` says."""
        ...


class SlotReader:
    """Hashed slots: log masses under the candidate's own keys, after their minimum over hash rows (the count-min
    estimate), and how lately each was touched."""

    def __init__(self, memory: SlotMemory, rows: slice) -> None:
        self.memory, self.rows = memory, rows
        self.features = (2 * memory.horizons - 1) * (memory.key_count + 1)

    def start(self, wide: Tensor) -> None:
        wide[:, : self.memory.horizons] = 1.0 / self.memory.horizons  # count-min estimate per horizon

    def __call__(self, ctx: ContextKV, item: Tensor, vector: Tensor, plan: Plan) -> Tensor:
        memory = self.memory
        mass = memory.read(ctx.slots[:, self.rows], ctx.elapsed_ms, plan.user, item)
        mass = mass.clamp_min(0).unflatten(-1, (memory.key_count, memory.horizons))
        mass = torch.cat([mass[:, : memory.rows].amin(1, keepdim=True), mass], 1)
        return torch.cat([torch.log1p(mass).flatten(1), recency(mass).flatten(1)], -1)


class PlaceReader:
    """Seed tokens of kind ``places``: log odds of what lies near the candidate."""

    def __init__(self, places: PlaceRead, rows: slice) -> None:
        self.places, self.rows = places, rows
        self.features = 2 * places.features

    def start(self, wide: Tensor) -> None:
        wide.fill_(1.0 / self.features)

    def __call__(self, ctx: ContextKV, item: Tensor, vector: Tensor, plan: Plan) -> Tensor:
        odds = self.places(vector, ctx.slots[:, self.rows], plan)
        return torch.cat([0.25 * odds, F.softplus(odds)], -1)  # far from everything, and how much there is


class EntryReader:
    """Exact tokens, addressed: the candidate's own entry and its cluster's counter.

    Args:
        shares: also tell the own entry's mass as a share of all the user did, how much that is, and whether there
            is an entry at all.
        actions: A; of the entry's newest touch, where records tell it, how long ago it was, by events and by the clock,
            and with which action.
    """

    def __init__(self, tokens: ExactTokens, rows: slice, shares: bool, actions: int) -> None:
        self.tokens, self.rows, self.shares, self.actions = tokens, rows, shares, actions
        self.keys = 1 + (tokens.clusters > 0)
        self.last = 4 * FREQUENCIES + 4 + actions if tokens.facts else 0
        self.features = (2 * tokens.horizons - 1) * self.keys + shares * (2 * tokens.horizons + 1) + self.last

    def start(self, wide: Tensor) -> None:
        h = self.tokens.horizons
        wide[:, :h] = 1.0 / h
        wide[:, h : self.keys * h] = 0.25 / h

    def __call__(self, ctx: ContextKV, item: Tensor, vector: Tensor, plan: Plan) -> Tensor:
        held = self.tokens.unpack(ctx.slots[:, self.rows])
        row = plan.user
        at = found_at(held.item, item, plan).clamp_max(held.item.shape[1] - 1)
        hit = held.item[row, at] == item
        found = torch.where(hit[:, None], held.mass[row, at], 0.0)
        parts = [found]
        if self.tokens.clusters:
            parts.append(held.cluster[row, self.tokens.candidate_cluster(item)])
        mass = torch.stack(parts, 1)
        told = [torch.log1p(mass).flatten(1), recency(mass).flatten(1)]
        if self.shares:
            whole = torch.log1p((held.cluster if self.tokens.clusters else held.mass).sum(1))[row]
            told += [torch.log(found + 1e-3) - whole, 0.25 * whole, (found[:, :1] > 0).float()]
        if self.last:
            told.append(self._newest(ctx, held.last, row, at, hit))
        return torch.cat(told, -1)

    def _newest(self, ctx: ContextKV, last: Tensor, row: Tensor, at: Tensor, hit: Tensor) -> Tensor:
        """What is told of the newest touch, [B, L]; most candidates have none."""
        few = hit.nonzero()[:, 0]
        events, hours, code = last[row[few], at[few]].unbind(-1)
        hours = hours + ctx.elapsed_ms[row[few]] / 3_600_000
        ages = torch.stack([torch.log1p(events), torch.log1p(hours)], -1) / 8
        near = torch.stack([1 / (1 + events), 1 / (1 + hours)], -1)
        action = action_of(code)[:, None] == torch.arange(self.actions, device=code.device)
        told = torch.cat([waves(events), waves(3_600 * hours), ages, near, action.to(ages)], -1)
        return told.new_zeros(len(hit), self.last).index_copy(0, few, told)


class NeighbourReader(nn.Module):
    """Counters of the clusters nearest to the candidate's own, itself among them: what a cluster boundary cut apart.

    Their masses are summed with weights ``exp(b (cosine - 1))``, for two learned b. It costs no more than a gather:
    who is near whom is fitted with the clusters.
    """

    SHARPNESS = (6.0, 15.0)

    def __init__(self, tokens: ExactTokens, rows: slice) -> None:
        super().__init__()
        self._tokens, self.rows = (tokens,), rows  # in a tuple: the model owns them
        self.log_sharpness = nn.Parameter(torch.tensor(self.SHARPNESS).log())
        self.features = (2 * tokens.horizons - 1) * len(self.SHARPNESS)

    def start(self, wide: Tensor) -> None:
        pass  # the cluster's own counter says it already

    def forward(self, ctx: ContextKV, item: Tensor, vector: Tensor, plan: Plan) -> Tensor:
        (tokens,) = self._tokens
        counters = tokens.unpack(ctx.slots[:, self.rows]).cluster
        own = tokens.cluster(item)
        row = F.embedding(own, tokens.near) + plan.user[:, None] * counters.shape[1]
        mass = F.embedding(row, counters.flatten(0, 1))  # [B, N, H]
        far = F.embedding(own, tokens.cosine)[:, None] - 1
        weight = (self.log_sharpness.exp()[:, None] * far).exp()  # [B, 2, N]
        near = weight @ mass
        return torch.cat([torch.log1p(near).flatten(1), recency(near).flatten(1)], -1)


def found_at(ids: Tensor, item: Tensor, plan: Plan, right: bool = False) -> Tensor:
    """How many of its user's ascending ``ids`` int64 [U, K] are smaller than each candidate, or, with ``right``, not
    larger: int64 [B]."""
    outputs = []
    for group in plan.groups:
        asked = item.view(plan.users, group.width) if group.rows is None else item[group.rows]
        mine = ids if group.users is None else ids[group.users]
        outputs.append(torch.searchsorted(mine, asked, right=right).flatten())
    at = torch.cat(outputs) if outputs else item.new_zeros(0)
    return at if plan.back is None else at[plan.back]


class NearTokens(nn.Module):
    """Exact tokens as a sequence: what lies near a candidate, as log odds per sharpness and horizon.

    With a sharpness b and an empty place that scores b e::

        odds = sum over tokens of mass * exp(b (cosine(candidate, token) - e))

    which is what softmax attention to the raw events would weigh them with, were those of a cluster all at its vector.
    Cosines are taken after a learned map that starts as the identity.
    """

    SHARPNESS = (12.0, 30.0)
    EMPTY = 0.8

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.match = nn.Parameter(torch.eye(config.width))
        self.log_sharpness = nn.Parameter(torch.tensor(self.SHARPNESS).log())
        self.empty = nn.Parameter(torch.full((len(self.SHARPNESS),), self.EMPTY))
        self.odds = len(self.SHARPNESS) * config.tokens.horizons
        self.features = 2 * self.odds

    def start(self, wide: Tensor) -> None:
        wide.fill_(1.0 / self.features)

    def forward(self, ctx: ContextKV, item: Tensor, vector: Tensor, plan: Plan) -> Tensor:
        x = F.normalize(vector @ self.match, dim=-1)
        keys = F.normalize(ctx.token @ self.match, dim=-1)
        sharpness = self.log_sharpness.exp()
        outputs = []
        for group in plan.groups:
            rows = x.view(plan.users, group.width, -1) if group.rows is None else x[group.rows]
            k, m = (
                (keys, ctx.token_mass)
                if group.users is None
                else (keys[group.users], ctx.token_mass[group.users])
            )
            cosine = rows @ k.transpose(1, 2)  # [G, M, S]
            # in place where it may be: a fresh block of this size costs more than what is done to it
            each = [
                (cosine * b).exp_() @ (m * torch.exp(-b * e))
                for b, e in zip(sharpness, self.empty, strict=True)
            ]
            outputs.append(torch.cat(each, -1).flatten(0, 1))
        out = torch.cat(outputs) if outputs else x.new_zeros(0, self.odds)
        odds = torch.log((out if plan.back is None else out[plan.back]) + _NOTHING)
        return torch.cat([0.25 * odds, F.softplus(odds)], -1)


class RecentReader:
    """Recent events of the candidate's own item: log count; nearness of the newest by rank, by time.

    Args:
        ages: also tell whether there is one, and its rank and age as smooth features.
    """

    def __init__(self, ages: bool = False) -> None:
        self.ages = ages
        self.features = 3 + ages * (3 + 4 * FREQUENCIES)

    def start(self, wide: Tensor) -> None:
        wide[:, :3] = 0.5

    def __call__(self, ctx: ContextKV, item: Tensor, vector: Tensor, plan: Plan) -> Tensor:
        user = plan.user
        r = ctx.recent_item.shape[1]
        if r == 0:
            return torch.zeros(len(item), self.features, device=item.device)
        there = ctx.mask[:, -1 - r : -1]
        lengths = there.sum(-1)[user]
        mine, order = torch.where(there, ctx.recent_item, _LARGEST).sort(dim=1, stable=True)
        first = found_at(mine, item, plan)
        end = torch.minimum(
            found_at(mine, item, plan, right=True), lengths
        )  # padding is of the largest id, too
        count = (end - first).clamp_min(0)
        newest = order[user, (end - 1).clamp_min(0)]  # equal ones keep their order: the last is the newest
        found = (count > 0).float()
        age = ctx.recent_age_ms[user, newest].float()
        rank = (lengths - newest).clamp_min(1).float()  # 1 is the newest
        told = [torch.log1p(count.float()), found / rank, found / (1 + age / DAY_MS)]
        if not self.ages:
            return torch.stack(told, -1)
        told += [found, 0.25 * found * rank.log(), found * torch.log1p(age / 3_600_000) / 8]
        smooth = torch.cat([waves(age / 1000), waves(rank - 1)], -1) * found[:, None]
        return torch.cat([torch.stack(told, -1), smooth], -1)


class ScoreReader:
    """The retrieval score: the candidate beside the best of the user's queries."""

    features = 1

    def start(self, wide: Tensor) -> None:
        wide.fill_(3.0)

    def __call__(self, ctx: ContextKV, item: Tensor, vector: Tensor, plan: Plan) -> Tensor:
        return (ctx.query[plan.user] * vector[:, None]).sum(-1).amax(-1, keepdim=True)
