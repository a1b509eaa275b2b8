"""A catalogue column inside a model: sorted item ids and one value row per id, kept with the weights.

The size is that of the catalogue the model was trained on, so it is taken from the file when weights are
loaded (ordinary buffers would refuse another size).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from vista.errors import DataError


class ItemTable(nn.Module):
    """Map from item id to a value row; ids outside the table are reported as unknown.

    Attributes:
        ids: int64 [M], ascending, distinct.
        values: [M, ...] of the dtype given at construction.
    """

    ids: torch.Tensor
    values: torch.Tensor

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype):
        super().__init__()
        self.register_buffer("ids", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("values", torch.zeros((0, *shape), dtype=dtype))

    def set(self, ids: np.ndarray, values: np.ndarray) -> None:
        """Replace the table. ``ids`` int64 [M] in any order, ``values`` [M, ...].

        Raises:
            DataError: shapes disagree or an id appears twice.
        """
        ids = np.asarray(ids, np.int64)
        values = np.asarray(values)
        expected = (len(ids), *self.values.shape[1:])
        if values.shape != expected:
            raise DataError(
                f"item table: expected values of shape {expected}, found {values.shape}; check the catalogue"
            )
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        if len(ids) and bool((ids[1:] == ids[:-1]).any()):
            raise DataError("item table: an item id appears twice; keep one row per item in the catalogue")
        device, dtype = self.values.device, self.values.dtype
        self.ids = torch.from_numpy(ids.copy()).to(device)
        self.values = torch.from_numpy(np.ascontiguousarray(values[order])).to(device=device, dtype=dtype)

    def __len__(self) -> int:
        return len(self.ids)

    def forward(self, item: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Row of each id and whether it is known: int64 [...] and bool [...]; unknown ids point at row 0."""
        if not len(self.ids):
            return torch.zeros_like(item), torch.zeros_like(item, dtype=torch.bool)
        row = torch.searchsorted(self.ids, item).clamp_(max=len(self.ids) - 1)
        known = self.ids[row] == item
        return row * known, known

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("ids", "values"):
            stored = state_dict.get(prefix + name)
            mine = getattr(self, name)
            if stored is not None and stored.shape[1:] == mine.shape[1:]:
                setattr(self, name, torch.empty(stored.shape, dtype=mine.dtype, device=mine.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
