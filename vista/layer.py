"""One layer of stage 2, and who sees whom among a context's tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def attention_bias(mask: Tensor, s: int) -> Tensor:
    """Who sees whom among the T context tokens, to be added to scores: 0 or -inf, float32 [U, 1, T, T].

    The first ``s`` tokens see each other, the others see them and, causally, themselves; ``mask`` [U, T]
    hides tokens from everyone but themselves (a row without any key would not be finite).
    """
    t = mask.shape[1]
    reach = torch.full((t, t), -math.inf, device=mask.device).triu_(1)
    reach[:s, :s] = 0
    hidden = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -math.inf)
    bias = reach + hidden[:, None, None]
    bias.diagonal(dim1=-2, dim2=-1).zero_()
    return bias


class Layer(nn.Module):
    """Pre-norm attention and a SwiGLU feed-forward, used by context and candidates with the same weights."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        inner = 8 * math.ceil(width * 8 / 3 / 8)
        self.before_attention = nn.RMSNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.before_feed = nn.RMSNorm(width)
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)
        # Similar tokens attend to each other from the first step on: the read-out starts as matching.
        with torch.no_grad():
            nn.init.orthogonal_(self.query.weight, 1.2)
            self.key.weight.copy_(self.query.weight)

    def split(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., H, E]."""
        return x.unflatten(-1, (self.heads, -1))

    def finish(self, x: Tensor, read: Tensor) -> Tensor:
        """Residual of what was read ([..., H, E]), then the feed-forward; [..., D]."""
        x = x + self.out(read.flatten(-2))
        gate, up = self.gate_up(self.before_feed(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)
