"""Attention by torch's FlexAttention, which writes the kernel itself: what rows read of their contexts, in serving.

On CUDA it is compiled, at the first call; elsewhere it runs as plain torch, which tests it. It records no gradient
there, so training has the other forms.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

_NARROWEST = 16
"""Columns that a head has at least in the kernel that torch writes."""


def read(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax attention with a bias to tokens.

    Args:
        q: [U, H, M, E], scaled; k: [U, H, T, E]; v: [U, H, T, F].
        bias: [U, T], added to the scores; -inf hides a token, and may hide all.

    Returns:
        [U, H, M, F], and the logarithm of the sum of e^score, [U, H, M]: 0 and -inf where nothing is there to read.
    """
    if not k.shape[2]:
        return v.new_zeros(*q.shape[:-1], v.shape[-1]), q.new_full(q.shape[:-1], -torch.inf)
    if not q.is_cuda:
        return _read(q, k, v, bias)
    wide = [F.pad(x, (0, max(0, _NARROWEST - x.shape[-1]))) for x in (q, k, v)]
    found, lse = _compiled()(*wide, bias)
    return found[..., : v.shape[-1]], lse


def _read(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    def tilted(score: Tensor, user: Tensor, head: Tensor, row: Tensor, token: Tensor) -> Tensor:
        return score + bias[user, token]

    # float32 as in crossing_triton: without tensor cores it would fill registers and compile for minutes
    how: Any = {"FLOAT32_PRECISION": "'tf32x3'"}
    found, more = flex_attention(
        q, k, v, score_mod=tilted, scale=1.0, return_aux=AuxRequest(lse=True), kernel_options=how
    )
    assert more.lse is not None  # asked for
    return found, more.lse


@functools.cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(_read, dynamic=True)
