"""Whether summaries tell users apart: what ranking loses with another user's, and how alike learned tokens are.

Learned tokens may become the same for everybody while every loss falls: what the newest events say hides it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def partners(owner: np.ndarray) -> np.ndarray:
    """Another row for each row of ``owner`` int64 [K], of another user where there is one."""
    order = np.argsort(owner, kind="stable")
    _, sizes = np.unique(owner, return_counts=True)
    found = np.empty_like(order)
    found[order] = np.roll(order, -int(sizes.max(initial=0)))
    return found


@dataclass
class Alike:
    """Energy of learned tokens, whole and of their mean over users, and the rank of a user's tokens; batch by batch."""

    rows: int = 0
    energy: float = 0.0
    rank: float = 0.0
    total: Tensor | None = None

    def add(self, tokens: Tensor) -> None:
        """Tokens [K, S, D] of K slates; those without any are left out."""
        x = tokens.double()[(tokens != 0).flatten(1).any(1)]
        if not len(x):
            return
        weight = torch.linalg.svdvals(x)
        weight = weight / weight.sum(1, keepdim=True)
        self.rank += float(torch.exp(-(weight * weight.clamp_min(1e-12).log()).sum(1)).sum())
        self.rows, self.energy = self.rows + len(x), self.energy + float(x.square().sum())
        self.total = x.sum(0) + (0 if self.total is None else self.total)

    def measures(self) -> np.ndarray:
        """float64 [2]: personal share of the tokens' energy, 0 to 1, and effective rank of a user's tokens, 1 to S; not
        numbers where there were none."""
        if self.total is None or not self.energy:
            return np.full(2, np.nan)
        common = float(self.total.square().sum()) / self.rows
        return np.array([1 - common / self.energy, self.rank / self.rows])
