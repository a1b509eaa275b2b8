"""A context before its first layer: recent events on the device, and all tokens in a row."""

from __future__ import annotations

from typing import NamedTuple, Unpack

import torch
from torch import Tensor

from vista.data.events import Events
from vista.embedding.encoders import gaps
from vista.stage2.context_kv import TENSORS, ContextKV, Origin


class RecentEvents(NamedTuple):
    """Columns of the recent events of U users on the device, [N] end to end or [U * R] with room at each user's end.

    Attributes:
        lengths: int64 [U].
        most: R, of the longest or more.
        gap: milliseconds since the event before.
    """

    lengths: Tensor
    most: int
    item: Tensor
    time: Tensor
    action: Tensor
    surface: Tensor
    gap: Tensor

    @staticmethod
    def of(events: Events, device: torch.device) -> RecentEvents:
        columns = (events.item, events.time, events.action, events.surface, gaps(events))
        lengths, *tensors = (torch.as_tensor(c, device=device) for c in (events.lengths, *columns))
        return RecentEvents(lengths, int(events.lengths.max(initial=0)), *tensors)


class Sequences(NamedTuple):
    """Contexts before the first layer, x [U, T, D] and ``summary`` = S; the rest is as in :class:`ContextKV`."""

    x: Tensor
    mask: Tensor
    summary: int
    slots: Tensor
    token: Tensor
    token_mass: Tensor
    taste: Tensor
    elapsed_ms: Tensor
    recent_item: Tensor
    recent_age_ms: Tensor
    summarized: Tensor

    def context(
        self,
        keys: Tensor,
        values: Tensor,
        query: Tensor,
        hidden: Tensor | None = None,
        **origin: Unpack[Origin],
    ) -> ContextKV:
        """What candidates read, with the layers' keys and values."""
        read = {name: getattr(self, name) for name in TENSORS if name in self._fields}
        return ContextKV(keys=keys, values=values, query=query, hidden=hidden, **read, **origin)
