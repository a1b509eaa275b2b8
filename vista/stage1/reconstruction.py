"""Reconstruction loss: the seeds should tell what is in the history (arXiv 2510.22049, section 3.3).

``(t_1 .. t_k, v_1 .. v_M) = Decoder(s_1 .. s_k, u_1 .. u_M)``, causal, with ``sum_i |v_i - u_(i+1)|^2`` over
the items ``u`` of the history. What the paper leaves open is decided here: the decoder is one block; targets
are L2-normalised item vectors without gradient, or the error could fall by shrinking the embeddings; the error
is a mean, about 1 before training whatever the window; a history gives one window of consecutive items.

With ``reconstruction = "seeds"`` the decoder sees the seeds and how long ago (in events) each asked item was,
and none of the items, so it cannot predict an item from its neighbours.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vista.config import ModelConfig
from vista.data.events import Events
from vista.embedding.encoders import ItemEncoder

_EPS = 1e-8


def _norm(x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=_EPS)


class ReconstructionDecoder(nn.Module):
    """One attention block from item places to seeds (and, in the causal form, to earlier items)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        s, width = config.summarizer, config.width
        self.heads, self.window = s.heads, s.reconstruction_window
        self.causal = s.reconstruction == "causal"
        self.place = nn.Linear(2, width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, width)
        with torch.no_grad():
            self.head.weight.mul_(0.1)

    def forward(
        self,
        seeds: torch.Tensor,
        items: ItemEncoder,
        events: Events,
        cuts: np.ndarray,
        user_of: np.ndarray,
        generator: np.random.Generator | None = None,
    ) -> torch.Tensor:
        """Mean squared error per item asked for; seeds [K, S, D], see ``Summarizer.reconstruction_loss``."""
        asked = np.flatnonzero(cuts >= 2)
        if not len(asked):
            return seeds.sum() * 0.0
        length = np.minimum(cuts[asked], self.window)
        slack = cuts[asked] - length
        start = slack if generator is None else generator.integers(0, slack + 1)
        place = np.arange(int(length.max()))
        inside = place < length[:, None]
        offset = start[:, None] + np.minimum(place, length[:, None] - 1)
        rows = events.offsets[:-1][user_of[asked], None] + offset
        device = seeds.device
        vectors = items.vector(torch.from_numpy(events.item[rows]).to(device))
        ago = torch.from_numpy(cuts[asked, None] - offset).to(device=device, dtype=vectors.dtype)
        seeds = seeds[torch.from_numpy(asked).to(device)]
        mask = torch.from_numpy(inside).to(device)
        places = self.place(torch.stack([torch.log(ago), ago.rsqrt()], dim=-1))
        if self.causal:
            predicted = self._decode(seeds, vectors + places, True)[:, :-1]
            target, mask = vectors[:, 1:], mask[:, 1:]
        else:
            predicted, target = self._decode(seeds, places, False), vectors
        error = (predicted - target.detach()).square().sum(-1)
        return (error * mask).sum() / mask.sum()

    def _decode(self, seeds: torch.Tensor, x: torch.Tensor, see_items: bool) -> torch.Tensor:
        """Vectors predicted at the places: seeds [G, S, D], x [G, M, D] -> [G, M, D]."""
        both = torch.cat([seeds, x], dim=1)
        s, m = seeds.shape[1], x.shape[1]
        q, k, v = self.qkv(_norm(both)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        index = torch.arange(s + m, device=x.device)
        visible = index[None, :] <= index[s:, None] if see_items else (index < s).expand(m, -1)
        read = F.scaled_dot_product_attention(q[:, :, s:], k, v, attn_mask=visible)
        x = x + self.out(read.transpose(1, 2).flatten(-2))
        x = x + self.down(F.silu(self.up(_norm(x))))
        return self.head(_norm(x))
