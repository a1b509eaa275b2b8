"""Which form of an operation runs: the Triton kernels on CUDA devices, plain PyTorch elsewhere."""

from __future__ import annotations

import contextlib
import importlib
import os
from types import ModuleType

import torch


def on_device(x: torch.Tensor, name: str) -> ModuleType | None:
    """Module ``vista.ops.NAME`` where its kernels run: where ``x`` is on CUDA, or under Triton's interpreter.

    None where Triton is not installed or ``x`` is elsewhere; the caller then takes the plain form.
    """
    if x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1":
        with contextlib.suppress(ImportError):
            return importlib.import_module(f"vista.ops.{name}")
    return None
