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


BIAS = 1 << 26
"""Entries of attention bias held at once, 256 MiB; more users than that are attended block after block."""


class Sight:
    """Attention under :func:`attention_bias`; the bias is made once for all layers where it fits.

    Where nothing is hidden, as in a request with a summary, no bias is made: all but the first ``s`` rows are
    causal, which the kernel knows how to do in half the time.

    Args:
        asks: whether the device may be asked if anything is hidden; a CUDA graph cannot.
    """

    def __init__(self, mask: Tensor, s: int, asks: bool = True) -> None:
        users, t = mask.shape
        step = max(1, BIAS // (t * t))
        self.mask, self.s, self.complete = mask, s, asks and bool(mask.all())
        self.blocks = [slice(i, i + step) for i in range(0, users, step)]
        fits = len(self.blocks) <= 1 and not self.complete
        self.whole = attention_bias(mask, s) if fits else None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [U, P, H, E] of all P = T tokens or of the last one, k and v [U, T, H, E] -> [U, P, H, E]."""
        if self.complete:
            return self._attend_complete(q, k, v)
        if self.whole is not None:
            return self._attend(q, k, v, self.whole)
        parts = [self._attend(q[b], k[b], v[b], attention_bias(self.mask[b], self.s)) for b in self.blocks]
        return torch.cat(parts)

    def _attend_complete(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v, s = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), self.s
        if q.shape[2] == 1:
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        read = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if s:
            summary = F.scaled_dot_product_attention(q[:, :, :s], k[:, :, :s], v[:, :, :s])
            read = torch.cat([summary, read[:, :, s:]], 2)
        return read.transpose(1, 2)

    @staticmethod
    def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        read = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias[..., -q.shape[1] :, :]
        )
        return read.transpose(1, 2)


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

    def project(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values [..., H, E] of normalised tokens [..., D], by one product."""
        weight = torch.cat([self.query.weight, self.key.weight, self.value.weight])
        return [self.split(part) for part in F.linear(x, weight).chunk(3, -1)]

    def split(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., H, E]."""
        return x.unflatten(-1, (self.heads, -1))

    def finish(self, x: Tensor, read: Tensor) -> Tensor:
        """Residual of what was read ([..., H, E]), then the feed-forward; [..., D]."""
        x = self.out(read.flatten(-2)).add_(x)
        h = self.before_feed(x)
        # Two products, not halves of one: what follows reads each from end to end; in place, if no gradient forbids it.
        gate, up = self.gate_up.weight.chunk(2)
        if torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type):
            return self.down(F.silu(F.linear(h, gate)) * F.linear(h, up)).add_(x)
        fed = F.silu(F.linear(h, gate), inplace=True).mul_(F.linear(h, up))
        return x.view(-1, x.shape[-1]).addmm_(fed.flatten(0, -2), self.down.weight.T).view_as(x)
