"""Learned tokens, a fair try: a small transformer makes a few tokens of the kept ones, when a record is emitted.

It reads the record's sequence and nothing else, so what it makes is a function of resumable state and costs nothing per
event. It begins as two steps of soft clustering: the heaviest kept tokens are anchors, all kept tokens divide their
mass between them (what is like none goes elsewhere), values are item vectors alone, mass stays apart from direction.

Letters: V records, S kept tokens, L made ones, D width, M horizons, C candidates, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.studies.reader import TokenReader
from vista.model import VistaModel
from vista.stage1.tokens import Sequence
from vista.stage2.readers import AGES, ages

SHARPNESS, ELSEWHERE = 30.0, 0.6
Tokens = tuple[Tensor, Tensor]
"""Vectors [V, T, D] of unit length, and masses [V, T, M]."""


class HeaviestTokens(nn.Module):
    """The rival: as many of the kept tokens, the heaviest, as they are."""

    def __init__(self, model: VistaModel, count: int) -> None:
        super().__init__()
        self.deciding, self.count = model.tokens.deciding, count

    def forward(self, kept: Sequence) -> Tokens:
        top = kept.mass[..., self.deciding].topk(self.count, dim=1)[1][..., None]
        vector, mass = (x.gather(1, top.expand(-1, -1, x.shape[2])) for x in (kept.vector, kept.mass))
        return vector, mass


class LearnedTokens(HeaviestTokens):
    """Two layers over the kept tokens, their masses and ages."""

    def __init__(self, model: VistaModel, count: int) -> None:
        super().__init__(model, count)
        d, m = model.config.width, model.tokens.horizons
        self.layers = nn.ModuleList(_Layer(d, m + AGES) for _ in range(2))
        self.more = nn.Linear(d, m)
        nn.init.zeros_(self.more.weight)
        nn.init.zeros_(self.more.bias)

    def forward(self, kept: Sequence) -> Tokens:
        last, (x, _) = kept.last.flatten(0, 1), super().forward(kept)
        age = ages(last, torch.zeros_like(last[:, 0])).unflatten(0, kept.last.shape[:2])
        told = torch.cat([torch.log1p(kept.mass), age], -1)
        for layer in self.layers:
            x, divided = layer(x, kept.vector, told, kept.mass[..., self.deciding])
        return F.normalize(x, dim=-1), torch.bmm(divided.mT, kept.mass) * self.more(x).exp()


class _Layer(nn.Module):
    """Kept tokens divide themselves between those made; these attend to one another; a small MLP."""

    def __init__(self, d: int, told: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(d, d, bias=False) for _ in range(3))
        self.told = nn.Linear(told, d)
        self.log_sharpness = nn.Parameter(torch.tensor(SHARPNESS).log())
        self.elsewhere = nn.Parameter(torch.tensor(ELSEWHERE))
        self.among = nn.MultiheadAttention(d, 4, batch_first=True)
        last = nn.Linear(2 * d, d)
        self.deep = nn.Sequential(nn.Linear(d, 2 * d), nn.SiLU(), last)
        with torch.no_grad():
            for start in (self.query, self.key, self.value):
                nn.init.eye_(start.weight)
            for small in (self.told, self.among.out_proj, last):
                small.weight.mul_(0.1)
                small.bias.zero_()

    def forward(self, x: Tensor, kept: Tensor, told: Tensor, mass: Tensor) -> Tokens:
        """x [V, L, D], kept [V, S, D], told [V, S, F], mass [V, S] -> x, and how kept ones divide [V, S, L]."""
        q, k = F.normalize(self.query(x), dim=-1), F.normalize(self.key(kept) + self.told(told), dim=-1)
        score = torch.cat([torch.bmm(k, q.mT), self.elsewhere.expand(*k.shape[:2], 1)], -1)
        divided = score.mul(self.log_sharpness.exp()).softmax(-1)[..., :-1]
        read = torch.bmm(divided.mT * mass[:, None], self.value(kept))
        x = F.normalize(read + 1e-3 * x, dim=-1)  # where nothing falls on a token it stays its anchor
        x = x + self.among(x, x, x, need_weights=False)[0]
        return x + self.deep(x), divided


def distilled(reader: TokenReader, number: int, asked: Tensor, made: Tokens, past: Tokens) -> Tensor:
    """How far what candidates [V, C, D] read of the tokens made is from what they read of all distinct items of the raw
    window, which full attention over its events equals: ``(log Z - log Z_full)^2 + |o - o_full|^2`` [V, H, C], beside
    the empty place (after arXiv 2602.16284). The reader itself learns nothing of it."""
    reader.requires_grad_(False)
    query = reader.vectors(number, asked.detach()) * reader.log_scale[number].exp()[:, None]
    empty = reader.empty[number][:, None, None]

    def read(vector: Tensor, mass: Tensor) -> Tokens:
        key = reader.vectors(number, vector)
        bias = reader.by_mass(number, mass).masked_fill(mass[..., :1] == 0, -60.0).permute(0, 2, 1)
        score = torch.einsum("vche,vthe->vhct", query, key) + bias[:, :, None]
        score = torch.cat([empty.expand(*score.shape[:3], 1), score], -1)
        return score.logsumexp(-1), torch.einsum("vhct,vthe->vhce", score.softmax(-1)[..., 1:], key)

    z, o = read(*made)
    with torch.no_grad():
        z_full, o_full = read(*past)
    reader.requires_grad_(True)
    return (z - z_full).square() + (o - o_full).square().sum(-1)
