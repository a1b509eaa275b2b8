"""Arrays to a device: as many as a step needs in one copy, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_EDGE = 16
"""Bytes that every array begins at a multiple of, so that it can be seen as its own type."""


def uploaded(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """The arrays as tensors on ``device``; on the CPU their own memory.

    Elsewhere they are laid end to end in pinned memory and copied at once, in the order of the current stream. The
    pinned memory may go at once: torch's allocator gives it to nobody before the copy is done.
    """
    if device.type == "cpu":
        return [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]
    host, starts = laid_out(arrays, pinned=device.type == "cuda")
    return taken_apart(host.to(device, non_blocking=True), arrays, starts)


def laid_out(arrays: Sequence[np.ndarray], pinned: bool) -> tuple[Tensor, list[int]]:
    """All arrays in one uint8 tensor, and where each begins."""
    starts, size = [], 0
    for a in arrays:
        starts.append(size)
        size += -(-a.nbytes // _EDGE) * _EDGE
    host = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    into = host.numpy()
    for a, at in zip(arrays, starts, strict=True):
        into[at : at + a.nbytes] = np.ascontiguousarray(a).reshape(-1).view(np.uint8)
    return host, starts


def taken_apart(flat: Tensor, arrays: Sequence[np.ndarray], starts: Sequence[int]) -> list[Tensor]:
    """Inverse of :func:`laid_out`, views of ``flat``."""
    return [
        flat[at : at + a.nbytes].view(torch.from_numpy(a[:0].copy()).dtype).view(a.shape)
        if a.size
        else flat.new_empty(a.shape, dtype=torch.from_numpy(a).dtype)
        for a, at in zip(arrays, starts, strict=True)
    ]
