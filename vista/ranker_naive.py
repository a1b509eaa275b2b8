"""Stage 2 as one masked sequence per user: the definition that context and crossing are tested against.

``[context ; candidates]`` goes through every layer together, under UniPinRec's mask (arXiv 2606.00422,
section 3): the context sees itself as in :mod:`vista.ranker`, a candidate sees the whole context and
itself. It is also what a ranking service does that shares nothing with retrieval, and so the other side of
``vista bench cascade``: O((T + B) ** 2) scores, the context's layers a second time.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vista.layer import attention_bias
from vista.ops import crossing
from vista.ranker import Ranker


def one_sequence(
    ranker: Ranker, request: dict, item: Tensor | np.ndarray, vectors: Tensor | None = None
) -> Tensor:
    """Logits [B, A] of B candidates of one user.

    Args:
        request: arguments of ``Ranker.context`` for one user.
        item: int64 [B]. vectors: [B, D] as for ``Ranker.rank``.
    """
    item = torch.as_tensor(item)
    ctx = ranker.context(**request)  # the retrieval query and what is read without attention come from it
    c = ranker.embed(
        request["tokens"], request["status"], request["recent"], request["now_ms"], request["last_event_ms"]
    )
    return rank_with(ranker, ctx, c.x, item, ranker.items.vector(item) if vectors is None else vectors)


def rank_with(ranker: Ranker, ctx, x: Tensor, item: Tensor, vectors: Tensor) -> Tensor:
    """The ranking forward alone: context tokens x [1, T, D] before the first layer, and the candidates."""
    known = ranker.read(ctx, item, vectors, crossing.Plan.of([0, len(item)], item.device))
    x = torch.cat([x, ranker.candidates(vectors, known)[None]], 1)
    bias = sequence_bias(ctx.mask, ctx.length - 1 - ctx.recent_item.shape[1], len(item))
    for layer in ranker.layers:
        h = layer.before_attention(x)
        q, k, v = (layer.split(part(h)).transpose(1, 2) for part in (layer.query, layer.key, layer.value))
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = layer.finish(x, read.transpose(1, 2))
    return ranker.logits(x[0, ctx.length :], known)


def sequence_bias(mask: Tensor, s: int, candidates: int) -> Tensor:
    """0 or -inf, float32 [1, 1, T + B, T + B]."""
    t = mask.shape[1]
    bias = torch.full((1, 1, t + candidates, t + candidates), -math.inf, device=mask.device)
    bias[..., :t, :t] = attention_bias(mask, s)
    bias[..., t:, :t] = torch.where(mask, 0.0, -math.inf)[:, None, None]
    bias.diagonal(dim1=-2, dim2=-1)[..., t:] = 0
    return bias
