"""Work that asks nothing of the device: no value is read back and no shape depends on one.

On a GPU every such question waits for all that was started before it, and a CUDA graph cannot hold one. On the CPU the
same operations are called, so there they can be seen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

QUESTIONS = {
    "_local_scalar_dense", "equal", "is_nonzero", "item", "nonzero", "nonzero_static", "masked_select", "_unique",
    "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive", "bincount",
}  # fmt: skip


class _NoNumbers(TorchFunctionMode):
    """A tensor of Python's numbers is copied from memory that is not pinned: that waits, and no graph can hold it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.__name__ not in ("tensor", "new_tensor"), f"{func.__name__} waits for the device"
        return func(*args, **(kwargs or {}))


class AskingNothing(TorchDispatchMode):
    """Raises AssertionError at an operation that would have to wait for the device."""

    def __enter__(self) -> AskingNothing:
        self._numbers = _NoNumbers()
        self._numbers.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._numbers.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        assert name not in QUESTIONS, f"{func} waits for the device"
        assert str(func) != "aten.repeat_interleave.Tensor", f"{func} waits for the device"
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masks = [x for x in args[1] if x is not None and x.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"{func} by a mask waits for the device"
        return func(*args, **(kwargs or {}))
