"""Other ways to seed tokens, under the interface of :class:`vista.seeds.QLAEncoder`: the choice stays measured.

- ``hybrid``: quasi-linear attention plus softmax attention inside the chunk, as many long-context models mix.
- ``pooled``: learned queries read events by softmax; the state is a mergeable (log-sum-exp, output) pair
  (arXiv 1805.02867). One step; events do not read each other.
- ``sketch``: SequenceO1 (arXiv 2609.08443): every event spreads over prototypes by a softmax *over prototypes*;
  the sums are the sketch. One of its two steps: the second needs all events again, so it could not resume.

All are causal by chunk at most, hence resumable. The paper's own form is ``kind = "qla"`` with ``chunk = 0``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from vista.clusters import kmeans
from vista.config import ModelConfig
from vista.ops.qla import Step, padded, qla_states
from vista.seeds import QLAEncoder, QLALayer, log_decays

_EPS = 1e-8


def _norm(x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=_EPS)


class HybridLayer(QLALayer):
    """Adds what softmax attention among the events of the same chunk reads."""

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads)
        self.local = nn.Parameter(torch.full((heads, 1), 0.5))

    def _read(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, memory: torch.Tensor, step: Step
    ) -> torch.Tensor:
        return super()._read(q, k, v, memory, step) + self.local * _norm(_chunk_softmax(q, k, v, step))


def _chunk_softmax(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, step: Step) -> torch.Tensor:
    """Softmax attention of each piece's rows to that piece's rows, [rows, H, E]."""
    heads, width = q.shape[1:]
    out = []
    if step.chunks:
        rows = step.chunks * step.chunk
        parts = [x[:rows].view(step.chunks, step.chunk, heads, width).transpose(1, 2) for x in (q, k, v)]
        read = F.scaled_dot_product_attention(*parts)
        out.append(read.transpose(1, 2).reshape(rows, heads, width))
    for group in step.groups:
        parts = [padded(x, group).transpose(0, 1) for x in (q, k, v)]
        mask = None if group.place is None else torch.isfinite(group.age)[:, None, None, :]
        read = F.scaled_dot_product_attention(*parts, attn_mask=mask)
        read = read.transpose(1, 2).reshape(-1, heads, width)
        out.append(read if group.place is None else read[group.place])
    return torch.cat(out) if out else torch.zeros_like(q)


class HybridEncoder(QLAEncoder):
    """QLA layers with chunk-local softmax; the state is that of QLA."""

    layer = HybridLayer


class _Read(nn.Module):
    """What sketch and pooled share: seeds + what was read, then a SwiGLU block."""

    def __init__(self, width: int):
        super().__init__()
        self.out = nn.Parameter(torch.eye(width) + 0.1 * torch.randn(width, width) * width**-0.5)
        self.up = nn.Parameter(torch.randn(width, 4 * width) * width**-0.5)
        self.down = nn.Parameter(torch.randn(2 * width, width) * (2 * width) ** -0.5 * 0.1)

    def forward(self, seeds: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        x = seeds + read @ self.out
        a, b = (_norm(x) @ self.up).chunk(2, dim=-1)
        return _norm(x + (F.silu(a) * b) @ self.down)


class SketchEncoder(nn.Module):
    """``A = softmax over prototypes of (P Wq)(X Wk)^T / sqrt(D)``, ``sketch = mean of A X``.

    Beyond SequenceO1: prototypes can start at the centres of real events (:meth:`start`), and a token carries
    its mass, since a mean forgets how often. Masses decay with the half-lives of the heads.

    Attributes:
        state_shape: (S, D + 1 + H): the sums of A X, of A, and of A with each half-life.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, heads = config.width, config.summarizer.heads
        self.seeds = nn.Parameter(torch.randn(config.summarizer.seeds, width))
        self.query = nn.Parameter(torch.eye(width) + 0.1 * torch.randn(width, width) * width**-0.5)
        self.key = nn.Parameter(torch.eye(width) + 0.1 * torch.randn(width, width) * width**-0.5)
        self.sharpness = nn.Parameter(torch.tensor(6.0))
        self.mass = nn.Parameter(torch.randn(heads + 1, width) * 0.1)
        self.place = nn.Parameter(torch.randn(config.summarizer.seeds, width) * 0.1)
        self.read = _Read(width)
        self.state_shape = (config.summarizer.seeds, width + heads + 1)
        log_decay = torch.cat([torch.zeros(1, dtype=torch.float64), log_decays(config)])
        self.register_buffer("log_decay", log_decay, persistent=False)

    def forward(
        self, x: torch.Tensor, step: Step, carry: torch.Tensor, reads: torch.Tensor, kept: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`vista.seeds.QLAEncoder.forward`; states float32 [m, S, D + 1 + H]."""
        x = _norm(x)
        width = x.shape[-1]
        score = (x @ self.key) @ (_norm(self.seeds) @ self.query).T * (self.sharpness * width**-0.5)
        spread = score.softmax(-1).unsqueeze(1)
        sums = qla_states(spread, x.unsqueeze(1), step, carry[None, ..., :width], self.log_decay[:1])[0]
        before = carry[..., width:].permute(2, 0, 1).unsqueeze(-1)
        heads = len(self.log_decay)
        one = x.new_ones(1, 1, 1).expand(len(x), heads, 1)
        mass = qla_states(spread.expand(-1, heads, -1), one, step, before, self.log_decay)
        states = torch.cat([sums, mass.squeeze(-1).permute(1, 2, 0)], dim=-1)
        total = states[reads][..., width:]
        # a prototype the user never came near must not look like one they did
        weight = total[..., :1] / (1 + total[..., :1])
        read = _norm(states[reads][..., :width]) * weight
        seeds = self.place + torch.log1p(total).to(self.mass.dtype) @ self.mass
        return self.read(seeds, read), states[kept]

    @torch.no_grad()
    def start(self, x: torch.Tensor, seed: int = 0) -> None:
        """Put the prototypes where events are: spherical k-means of a sample of event vectors [N, D]."""
        vectors = F.normalize(x.float(), dim=-1).cpu().numpy()
        place = torch.from_numpy(kmeans(vectors, len(self.seeds), seed)).long()
        centres = torch.zeros(len(self.seeds), x.shape[-1]).index_add_(0, place, torch.from_numpy(vectors))
        found = torch.bincount(place, minlength=len(self.seeds)) > 0
        self.seeds[found] = _norm(centres[found]).to(self.seeds)


class PooledEncoder(nn.Module):
    """Seeds read all events by softmax, head by head.

    Attributes:
        state_shape: (H, S, E + 1): normalised output and log-sum-exp; a state without events has the latter at
            the lowest finite score, so that it weighs nothing.
    """

    _EMPTY = -1e30

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, self.heads = config.width, config.summarizer.heads
        self.seeds = nn.Parameter(torch.randn(config.summarizer.seeds, width))
        self.key = nn.Parameter(torch.eye(width) + 0.1 * torch.randn(width, width) * width**-0.5)
        self.value = nn.Parameter(torch.eye(width) + 0.1 * torch.randn(width, width) * width**-0.5)
        self.read = _Read(width)
        self.state_shape = (self.heads, config.summarizer.seeds, width // self.heads + 1)

    def forward(
        self, x: torch.Tensor, step: Step, carry: torch.Tensor, reads: torch.Tensor, kept: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`vista.seeds.QLAEncoder.forward`; states float32 [m, H, S, E + 1]."""
        x = _norm(x)
        width = x.shape[-1] // self.heads
        k, v = ((x @ w).unflatten(-1, (self.heads, width)) for w in (self.key, self.value))
        seeds = self.seeds.unflatten(-1, (self.heads, width)).transpose(0, 1)
        with torch.autocast(x.device.type, enabled=False):
            k, v, seeds = (t.to(carry.dtype) * s for t, s in ((k, 1.0), (v, 1.0), (seeds, width**-0.5)))
            empty = carry[..., -1:] + torch.where(step.count[: len(carry)] > 0, 0.0, self._EMPTY).to(
                carry.dtype
            ).view(-1, 1, 1, 1)
            states = torch.cat([carry[..., :-1], empty], dim=-1)
            if step.chunks:
                rows = step.chunks * step.chunk
                own = self._pool(seeds, *(t[:rows].unflatten(0, (step.chunks, -1)) for t in (k, v)), None)
                pairs = torch.isfinite(step.distance)
                # every chunk merges the chunks of its history so far, and the state that came in
                score = own[..., -1].unsqueeze(0).masked_fill(~pairs[:, :, None, None], self._EMPTY)
                merged = self._merge(
                    score, own[..., :-1].unsqueeze(0).expand(len(pairs), *own[..., :-1].shape)
                )
                states = torch.cat([states, self._pair(states[step.carried], merged)])
            if step.tails:
                own = torch.cat([self._tails(seeds, k, v, group) for group in step.groups])
                states = torch.cat([states, self._pair(states[step.parent], own)])
        read = states[reads][..., :-1].transpose(1, 2).flatten(-2)
        clean = torch.where(states[kept][..., -1:] <= self._EMPTY, 0.0, states[kept])
        return self.read(self.seeds, _norm(read)), clean

    def _pool(
        self, seeds: torch.Tensor, k: torch.Tensor, v: torch.Tensor, inside: torch.Tensor | None
    ) -> torch.Tensor:
        """k, v [G, L, H, E] -> [G, H, S, E + 1]; ``inside`` bool [G, L] marks rows that count."""
        score = torch.einsum("hse,glhe->ghsl", seeds, k)
        if inside is not None:
            score = score.masked_fill(~inside[:, None, None, :], self._EMPTY)
        out = torch.matmul(score.softmax(-1), v.transpose(1, 2))
        return torch.cat([out, score.logsumexp(-1, keepdim=True)], dim=-1)

    def _tails(self, seeds: torch.Tensor, k: torch.Tensor, v: torch.Tensor, group) -> torch.Tensor:
        k, v = (padded(t, group).permute(1, 2, 0, 3) for t in (k, v))
        return self._pool(seeds, k, v, None if group.place is None else torch.isfinite(group.age))

    @staticmethod
    def _merge(score: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Merge along dimension 1: score [X, Y, H, S], out [X, Y, H, S, E] -> [X, H, S, E + 1]."""
        weight = score.softmax(1)
        merged = torch.einsum("xyhs,xyhse->xhse", weight, out)
        return torch.cat([merged, score.logsumexp(1).unsqueeze(-1)], dim=-1)

    def _pair(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        both = torch.stack([one, other], dim=1)
        return self._merge(both[..., -1], both[..., :-1])
