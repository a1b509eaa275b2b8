"""Stage 2 as one masked sequence per user: the definition that context and crossing are tested against.

``[context ; candidates]`` goes through every layer together, under UniPinRec's mask (arXiv 2606.00422,
section 3): the context sees itself as in :mod:`vista.stage2.ranker`, a candidate sees the whole context and
itself. It is also what a ranking service does that shares nothing with retrieval, and so the other side of
``vista bench cascade``: O((T + B) ** 2) scores, the context's layers a second time.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vista.ops import crossing
from vista.stage2.layer import attention_bias
from vista.stage2.ranker import Ranker


def one_sequence(ranker: Ranker, request: dict, item: Tensor | np.ndarray) -> Tensor:
    """Logits [B, A] of ``item`` (int64 [B]) for one user; ``request`` holds the arguments of ``context``."""
    return rank_sequence(ranker, request, ranker.context(**request).query, item)


def rank_sequence(ranker: Ranker, request: dict, query: Tensor, item: Tensor | np.ndarray) -> Tensor:
    """The ranking forward alone; ``query`` [1, Q, D] comes along with the candidates from retrieval."""
    item = torch.as_tensor(item, device=query.device)
    c = ranker.embed(*(request[n] for n in ("tokens", "usable", "recent", "now_ms", "last_event_ms")))
    t = c.x.shape[1]
    none = c.x.new_zeros(len(ranker.layers), 1, t, 0)
    ctx = c.context(none, none, query)
    vectors = ranker.items.vector(item)
    known = ranker.read(ctx, item, vectors, crossing.Plan.of(np.array([0, len(item)]), item.device))
    x = torch.cat([c.x, ranker.candidates(vectors, known)[None]], 1)
    bias = sequence_bias(c.mask, c.summary, len(item))
    for layer in ranker.stack:
        h = layer.before_attention(x)
        q, k, v = (part.transpose(1, 2) for part in layer.project(h))
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = layer.finish(x, read.transpose(1, 2))
    return ranker.logits(x[0, t:], known)


def sequence_bias(mask: Tensor, s: int, candidates: int) -> Tensor:
    """0 or -inf, float32 [1, 1, T + B, T + B]."""
    t = mask.shape[1]
    bias = torch.full((1, 1, t + candidates, t + candidates), -math.inf, device=mask.device)
    bias[..., :t, :t] = attention_bias(mask, s)
    bias[..., t:, :t] = torch.where(mask, 0.0, -math.inf)[:, None, None]
    bias.diagonal(dim1=-2, dim2=-1)[..., t:] = 0
    return bias
