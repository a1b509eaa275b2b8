"""Layers compiled by torch.compile: on a GPU norms, gates and residuals are bound by memory, and one kernel moves their
rows once.

Each part is tried on a few rows, forward and backward, before it is taken: what cannot be compiled stays as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vista.model import VistaModel
from vista.stage1.seeds import QLALayer


def compile_layers(model: VistaModel, backend: str = "inductor") -> str | None:
    """Compile what rows go through after attention, in both stages; why not, where it does not work.

    Args:
        model: its layers' methods are replaced; its weights stay what they are.
        backend: of torch.compile.
    """
    heads, width = model.config.ranker.heads, model.config.width
    parts: list[tuple[Any, str, tuple[int, ...]]] = [
        (layer, "finish", (heads, width // heads)) for layer in model.ranker.stack
    ]
    for module in model.summarizer.modules():
        if isinstance(module, QLALayer):
            parts.append((module, "_mix", (module.heads, width // module.heads)))
    try:
        found = [
            _tried(getattr(layer, name), layer, name, read, width, backend) for layer, name, read in parts
        ]
    except Exception as error:  # a compiler that is not there, or does not take this: any of a dozen types
        told = " ".join(str(error).split())[:300] or type(error).__name__
        warnings.warn(f"training goes on without torch.compile: {told}", RuntimeWarning, stacklevel=3)
        return told
    for (layer, name, _), part in zip(parts, found, strict=True):
        setattr(layer, name, part)
    return None


def _tried(
    work: Callable[..., Tensor], layer: Any, name: str, read: tuple[int, ...], width: int, backend: str
) -> Callable[..., Tensor]:
    part = torch.compile(work, dynamic=True, backend=backend)
    weight = next(layer.parameters())
    for rows in (3, 5):
        x = torch.ones(2, rows, width, device=weight.device, dtype=weight.dtype, requires_grad=True)
        more = [x.detach()] if name == "_mix" else []
        part(x, x.detach().unflatten(-1, read), *more).sum().backward()
    layer.zero_grad(set_to_none=True)
    return part
