"""The context of a request as CUDA graphs, with room for so many recent events of every user that shapes come again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import numpy as np
from torch import Tensor

from vista.data.events import Events
from vista.embedding.encoders import gaps
from vista.jagged import owners_of, places_of
from vista.ops.upload import uploaded
from vista.serving.captured import Captured, cuda_graph
from vista.stage2.context_kv import ContextKV, Origin
from vista.stage2.ranker import Ranker
from vista.stage2.sequences import RecentEvents

_BROUGHT = ("usable", "now", "last", "lengths", *RecentEvents._fields[2:])


class ContextGraph:
    """``ranker.context`` by graphs. The device is not asked whether anything is masked, so attention is never halved.

    Args:
        room: recent events of a user, at most.
        record: as of :class:`Captured`.
    """

    def __init__(self, ranker: Ranker, room: int, record: Callable[..., Any] = cuda_graph) -> None:
        self._ranker, self._room = ranker, room
        self.step: Captured[dict[str, Tensor]] = Captured(self._tensors, record)

    def __call__(
        self,
        tokens: dict[str, Tensor],
        usable: np.ndarray | None,
        recent: Events,
        now_ms: np.ndarray,
        last_event_ms: np.ndarray | None,
        **origin: Unpack[Origin],
    ) -> ContextKV:
        """Arguments as of ``Ranker.context``; ``recent`` has at most ``room`` events of each user."""
        columns = (recent.item, recent.time, recent.action, recent.surface, gaps(recent))
        room = [np.zeros((recent.users, self._room), c.dtype) for c in columns]
        at = owners_of(recent.lengths), places_of(recent.lengths)
        for into, column in zip(room, columns, strict=True):
            into[at] = column
        usable = np.ones(recent.users, bool) if usable is None else usable
        last = now_ms if last_event_ms is None else np.asarray(last_event_ms, np.int64)
        arrays = [usable, now_ms, last, recent.lengths, *(c.reshape(-1) for c in room)]
        device = self._ranker.now_token.device
        brought = dict(zip(_BROUGHT, uploaded(arrays, device), strict=True))
        brought |= {f"tokens {name}": x.to(device) for name, x in tokens.items()}
        found: dict[str, Any] = self.step(None, lambda: None, **brought)
        return ContextKV(**found, **origin)

    def _tensors(self, plan: None, **brought: Tensor) -> dict[str, Tensor]:
        usable, now, last, lengths, *columns = (brought[name] for name in _BROUGHT)
        tokens = {n.removeprefix("tokens "): x for n, x in brought.items() if n not in _BROUGHT}
        recent = RecentEvents(lengths, self._room, *columns)
        return self._ranker.context(tokens, usable, recent, now, last, asks=False).tensors()
