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
_LAST_ID = torch.iinfo(torch.int64).max


def waves(x: Tensor, low: int = -4, high: int = FREQUENCIES - 4) -> Tensor:
    """Fourier features of ``log1p(x)``: [...] -> [..., 2 * FREQUENCIES], smooth from seconds to years; some octaves of
    them."""
    steps = math.pi / 4 * torch.logspace(low, high - 1, high - low, 2.0, device=x.device)
    angle = torch.log1p(x.float().clamp_min(0))[..., None] * steps
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
    """Exact tokens, addressed: the candidate's own entry, its cluster's counter, and those of clusters near it.

    With ``ranker.ages`` the own entry's mass is also told as a share of all the user did, how much that is, and whether
    there is an entry at all. Of newest touches, where records tell them: how long ago, by events and by the clock; of
    the own entry's also with which action. Of the cluster's ``ranker.cluster_ages`` numbers.

    Args:
        neighbours: reads the clusters near it; None for none.
    """

    def __init__(
        self, tokens: ExactTokens, rows: slice, config: ModelConfig, neighbours: Neighbours | None
    ) -> None:
        self.tokens, self.rows, self.neighbours = tokens, rows, neighbours
        self.shares, self.actions = config.ranker.ages, len(config.actions)
        self.cluster_ages = {4: (1, False), 10: (4, False), 20: (1, True)}[config.ranker.cluster_ages]
        self.keys = 1 + (tokens.clusters > 0)
        near = 0 if neighbours is None else len(neighbours.SHARPNESS)
        self.last = AGES + self.actions if tokens.facts["items"] else 0
        self.features = (2 * tokens.horizons - 1) * (self.keys + near) + self.last
        self.features += config.ranker.cluster_ages if self.last and tokens.clusters else 0
        self.features += self.shares * (2 * tokens.horizons + 1)

    def start(self, wide: Tensor) -> None:
        h = self.tokens.horizons
        wide[:, :h] = 1.0 / h
        # of the neighbours nothing: the cluster's own counter says it already
        wide[:, h : self.keys * h] = 0.25 / h

    def __call__(self, ctx: ContextKV, item: Tensor, vector: Tensor, plan: Plan) -> Tensor:
        tokens, row = self.tokens, plan.user
        held = tokens.unpack(ctx.slots[:, self.rows])
        at = found_at(held.item, item, plan).clamp_max(held.item.shape[1] - 1)
        at += row * held.item.shape[1]  # what is flat is picked several times faster than by two indices
        hit = held.item.flatten().index_select(0, at) == item
        found = F.embedding(at, held.mass.flatten(0, 1)) * hit[:, None]
        masses = [found[:, None]]
        if tokens.clusters:
            own = tokens.cluster(item)
            cluster = tokens.candidate_cluster(item, own)
            cluster = cluster + row * held.cluster.shape[1]
            masses.append(F.embedding(cluster, held.cluster.flatten(0, 1))[:, None])
            if self.neighbours is not None:
                masses.append(self.neighbours(held.cluster, own, row))
        mass = torch.cat(masses, 1)
        log, late = torch.log1p(mass), recency(mass)
        told = [log[:, : self.keys].flatten(1), late[:, : self.keys].flatten(1)]
        if self.shares:
            whole = torch.log1p((held.cluster if tokens.clusters else held.mass).sum(1)).index_select(0, row)
            told += [torch.log(found + 1e-3) - whole, 0.25 * whole, (found[:, :1] > 0).float()]
        if self.last:
            since = ctx.elapsed_ms.index_select(0, row) / 3_600_000
            entry = F.embedding(at, held.last.flatten(0, 1))
            action = action_of(entry[:, 2])[:, None] == torch.arange(self.actions, device=item.device)
            age = ages(entry[:, :2], since)
            told.append(torch.where(hit[:, None], torch.cat([age, action.to(age)], -1), 0.0))
            if tokens.clusters:
                newest = F.embedding(cluster, held.cluster_last.flatten(0, 1))
                told.append(ages(newest, since, *self.cluster_ages) * (newest[:, :1] > 0))
        return torch.cat([*told, log[:, self.keys :].flatten(1), late[:, self.keys :].flatten(1)], -1)


AGES = 20
"""Numbers of :func:`ages`, unless told otherwise."""


def ages(newest: Tensor, since: Tensor, scales: int = 1, smooth: bool = True) -> Tensor:
    """How long ago touches were, by events and by the clock: of records' newest touches [n, 2], and the hours [n] that
    went by since the record's end. As logarithms; as nearness at ``scales``, each 20 times the one before; ``smooth``:
    also as waves. [n, 2 + 2 scales + 16 smooth]."""
    number, hours = newest[:, 0], newest[:, 1] + since
    age = torch.stack([number, hours], -1)
    shares = torch.logspace(0, 1 - scales, scales, 20.0, device=age.device)
    told = [torch.log1p(age) / 8, (1 / (1 + age[..., None] * shares)).flatten(1)]
    if smooth:
        told.append(waves(torch.stack([number, hours * 3_600], -1), -1, 3).flatten(1))
    return torch.cat(told, -1)


class Neighbours(nn.Module):
    """Counters of the clusters nearest to the candidate's own, itself among them: what a cluster boundary cut apart.

    Their masses are summed with weights ``exp(b (cosine - 1))``, for two learned b. It costs no more than a gather:
    who is near whom is fitted with the clusters.
    """

    SHARPNESS = (6.0, 15.0)

    def __init__(self, tokens: ExactTokens) -> None:
        super().__init__()
        self._tokens = (tokens,)  # in a tuple: the model owns them
        self.log_sharpness = nn.Parameter(torch.tensor(self.SHARPNESS).log())

    def forward(self, counters: Tensor, own: Tensor, user: Tensor) -> Tensor:
        """Masses [B, 2, H] near clusters ``own`` [B] among ``counters`` [U, clusters, H] of users [B]."""
        (tokens,) = self._tokens
        row = F.embedding(own, tokens.near) + user[:, None] * counters.shape[1]
        far = F.embedding(own, tokens.cosine) - 1
        # Of unknown clusters next to nothing: floats too small to be normal take a CPU a hundred times as long.
        weights = [(b * far).clamp_min(-40).exp() for b in self.log_sharpness.exp()]  # [B, N] each
        masses = counters.flatten(0, 1)
        return torch.stack(
            [F.embedding_bag(row, masses, per_sample_weights=w, mode="sum") for w in weights], 1
        )


def found_at(ids: Tensor, item: Tensor, plan: Plan, right: bool = False) -> Tensor:
    """Where each candidate would stand in its user's ascending ``ids`` int64 [U, K]: int64 [B], 0 to K."""
    return plan.each(lambda asked, mine: torch.searchsorted(mine, asked, right=right), [item], [ids])


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

        def near(rows: Tensor, keys: Tensor, mass: Tensor) -> Tensor:
            cosine = rows @ keys.mT  # [G, M, S]
            # in place where it may be: a fresh block of this size costs more than what is done to it
            each = zip(sharpness, self.empty, strict=True)
            return torch.cat([(cosine * b).exp_() @ (mass * torch.exp(-b * e)) for b, e in each], -1)

        odds = torch.log(plan.each(near, [x], [keys, ctx.token_mass]) + _NOTHING)
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
        lengths = there.sum(-1)
        # Padding comes last, after events of an equal id, and no candidate looks that far.
        ids, order = torch.where(there, ctx.recent_item, _LAST_ID).sort(dim=1, stable=True)
        count = torch.arange(1, r + 1, device=item.device) - torch.searchsorted(
            ids, ids
        )  # from its item's first on
        rank = (lengths[:, None] - order).clamp_min(1)  # 1 is the newest
        events = torch.stack([count, rank, ctx.recent_age_ms.gather(1, order)], -1).float().flatten(0, 1)
        # equal ones keep their order: the last is the newest
        most = lengths.index_select(0, user)
        at = torch.minimum(found_at(ids, item, plan, right=True), most).sub_(1).clamp_min_(0)
        row = user * r + at
        found = (ids.flatten().index_select(0, row) == item) & (most > 0)
        if len(item) < len(events):
            told = self._tell(F.embedding(row, events))
        else:
            told = F.embedding(row, self._tell(events))
        return told * found[:, None]

    def _tell(self, events: Tensor) -> Tensor:
        """Features [N, F] of events whose item came ``count`` times, ``rank``-th from the newest, ``age`` ms ago."""
        count, rank, age = events.unbind(-1)
        told = [torch.log1p(count), 1 / rank, 1 / (1 + age / DAY_MS)]
        if not self.ages:
            return torch.stack(told, -1)
        told += [torch.ones_like(rank), 0.25 * rank.log(), torch.log1p(age / 3_600_000) / 8]
        return torch.cat(
            [torch.stack(told, -1), waves(torch.stack([age / 1000, rank - 1], -1)).flatten(1)], -1
        )


class ScoreReader:
    """The retrieval score: the candidate beside the best of the user's queries."""

    features = 1

    def start(self, wide: Tensor) -> None:
        wide.fill_(3.0)

    def __call__(self, ctx: ContextKV, item: Tensor, vector: Tensor, plan: Plan) -> Tensor:
        return plan.each(lambda v, query: v @ query.mT, [vector], [ctx.query]).amax(-1, keepdim=True)
