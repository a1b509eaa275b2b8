"""Seed tokens: quasi-linear attention over a history, read by virtual seeds (arXiv 2510.22049, section 3).

A layer, for a row x (an event or a seed), pre-norm and residual::

    q, k, v, g = norm(x) W                     norm: root mean square without weights
    x <- x + (headnorm(qla(q, k, v)) * (1 + g)) Wo
    x <- x + ((norm(x) W1) * (norm(x) W2)) W3  SGLU: simple gated linear unit, no activation, hidden width 2 D

The paper names SGLU (TransNormerLLM, arXiv 2307.14995, equation 13) and prints no formula; this is ours.
Seeds are *target rows*: they read the state after the last event and themselves, so nothing that is kept
depends on them. The last layer needs only keys and values of the events.

A head's state may forget: with half-life h its weights are ``2 ** (-age / h)``, age in events. Ages are
counted from the user's last event, so states stay resumable.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from vista.config import ModelConfig
from vista.embedding.encoders import EventEncoder
from vista.ops.qla import Step, qla_memory, qla_read, qla_states, qla_target
from vista.stage1.groups import SeedEncoder

_EPS = 1e-8


def _norm(x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=_EPS)


def log_decays(config: ModelConfig) -> torch.Tensor:
    """Logarithm of each head's decay per event, float64 [H]; 0 where it keeps everything."""
    s = config.summarizer
    lives = [s.half_lives_events[h % len(s.half_lives_events)] for h in range(s.heads)]
    return torch.tensor([-math.log(2.0) / life for life in lives], dtype=torch.float64)


class QLALayer(nn.Module):
    """One layer over events and seeds; see the module's docstring."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        eye = torch.eye(width)
        random = torch.randn(4, width, width) * width**-0.5
        # values, and the way out, start near the identity: seed tokens begin as mixtures of event vectors
        random[2] = 0.1 * random[2] + eye
        random[3] = 0.1 * random[3]
        self.qkvg = nn.Parameter(random.transpose(0, 1).reshape(width, 4 * width).contiguous())
        self.out = nn.Parameter(0.1 * torch.randn(width, width) * width**-0.5 + eye)
        self.up = nn.Parameter(torch.randn(width, 4 * width) * width**-0.5)
        self.down = nn.Parameter(torch.randn(2 * width, width) * (2 * width) ** -0.5 * 0.1)
        self.gain = nn.Parameter(torch.full((heads,), float(width // heads) ** 0.5))

    def events(
        self,
        x: torch.Tensor,
        step: Step,
        carry: torch.Tensor,
        log_decay: torch.Tensor,
        last: bool,
        keeps: bool = False,
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """Rows of a step through the layer.

        Args:
            x: [rows, D].
            carry: [H, R, E, E].
            last: nothing reads the rows' outputs.
            keeps: no head forgets.

        Returns:
            rows [rows, D] (None if ``last``), state sums and memories, [H, R + P + T, E, E] each.
        """
        width = x.shape[-1]
        normed = _norm(x)
        if last:
            k, v = (normed @ self.qkvg[:, width : 3 * width]).split(width, dim=-1)
        else:
            q, k, v, g = (normed @ self.qkvg).split(width, dim=-1)
        states = qla_states(self._heads(F.silu(k)), self._heads(v), step, carry, log_decay, keeps)
        memory = qla_memory(states, step, self.gain, log_decay)
        if last:
            return None, states, memory
        read = self._read(self._heads(q), self._heads(k), self._heads(v), memory, step)
        return self._mix(x, read, g), states, memory

    def seeds(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """Seeds through the layer: x [G, S, D], memory [H, G, E, E] -> [G, S, D]."""
        q, k, v, g = (_norm(x) @ self.qkvg).split(x.shape[-1], dim=-1)
        read = qla_target(self._heads(F.silu(q)), self._heads(F.silu(k)), self._heads(v), memory)
        return self._mix(x, _norm(read), g)

    def _read(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, memory: torch.Tensor, step: Step
    ) -> torch.Tensor:
        """What events read, [rows, H, E], each head of unit root mean square."""
        return _norm(qla_read(F.silu(q), memory, step))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1))

    def _mix(self, x: torch.Tensor, read: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        x = x + (read.flatten(-2) * (1 + gate)) @ self.out
        a, b = (_norm(x) @ self.up).chunk(2, dim=-1)
        return x + (a * b) @ self.down


class QLAEncoder(SeedEncoder):
    """Layers and seeds. One call runs one packed step.

    Attributes:
        state_shape: shape of one history's state, (L, H, E, E).
    """

    layer = QLALayer
    log_decay: torch.Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        s = config.summarizer
        self.width, self.count = config.width, s.seeds
        self.layers = nn.ModuleList(self.layer(config.width, s.heads) for _ in range(s.layers))
        self.seeds = nn.Parameter(torch.randn(s.seeds, config.width) * config.width**-0.5)
        self.whole_events = s.rows == "events"
        head = config.width // s.heads
        self.state_shape = (s.layers, s.heads, head, head)
        self.register_buffer("log_decay", log_decays(config), persistent=False)
        lives = s.half_lives_events
        self.keeps = all(math.isinf(lives[h % len(lives)]) for h in range(s.heads))

    def rows(self, events: EventEncoder, item: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        return events(item, *others) if self.whole_events else events.items(item)

    def forward(
        self, x: torch.Tensor, step: Step, carry: torch.Tensor, reads: torch.Tensor, kept: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`vista.stage1.groups.SeedEncoder`; states float32 [m, L, H, E, E]."""
        seeds = self.seeds.expand(len(reads), -1, -1)
        states = []
        for number, layer in enumerate(cast("list[QLALayer]", self.layers)):
            before = carry[:, number].transpose(0, 1)
            last = number == len(self.layers) - 1
            rows, after, memory = layer.events(x, step, before, self.log_decay, last, self.keeps)
            if len(reads):
                seeds = layer.seeds(seeds, memory[:, reads])
            states.append(after[:, kept])
            x = x if rows is None else rows
        return _norm(seeds), torch.stack(states).permute(2, 0, 1, 3, 4)
