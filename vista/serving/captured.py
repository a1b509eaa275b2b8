"""A step of serving as CUDA graphs: on a GPU a request is bound by its launches, and a graph is one.

A graph repeats what was recorded, on the memory where it was recorded: so inputs are copied to where the recorded ones
lay, and the result is copied out. One graph serves one set of shapes. It is recorded when these come the second time;
what cannot be recorded runs as it is, and :attr:`Captured.told` says why.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

GRAPHS = 16
"""Graphs kept, the last used; each holds the memory of one step."""

Replay = Callable[[], object]
Work = TypeVar("Work", bound=Tensor | dict[str, Tensor])
"""Result of a step: one tensor, or some by name."""


def cuda_graph(work: Callable[[], Work]) -> tuple[Replay, Work]:
    """Record ``work``; what repeats it, and where its result will be. To be called with a CUDA device current."""
    ahead = torch.cuda.Stream()
    ahead.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(ahead):
        for _ in range(2):  # kernels are compiled and workspaces taken before recording
            work()
    torch.cuda.current_stream().wait_stream(ahead)
    graph = torch.cuda.CUDAGraph()
    # other threads may copy and allocate meanwhile: that is none of this graph's business
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        out = work()
    return graph.replay, out


class Captured(Generic[Work]):
    """``work(plan, **tensors)`` by graphs. Safe to share between threads.

    Args:
        work: a function of tensors on one device that asks nothing of the device.
        record: makes a graph of a call; :func:`cuda_graph`.

    Attributes:
        told: why the last graph that could not be recorded was not; None where all could.
        replayed: calls answered by a graph.
    """

    def __init__(
        self,
        work: Callable[..., Work],
        record: Callable[[Callable[[], Work]], tuple[Replay, Work]] = cuda_graph,
    ) -> None:
        self._work, self._record = work, record
        self._lock = threading.Lock()
        self._graphs: OrderedDict[Any, tuple[dict[str, Tensor], Replay, Work, Any] | None] = OrderedDict()
        self._seen: OrderedDict[Any, None] = OrderedDict()
        self._done: Any = None
        self.told: str | None = None
        self.replayed = 0

    def __call__(self, shape: Any, plan: Callable[[], Any], **tensors: Tensor) -> Work:
        """The result for these tensors.

        Args:
            shape: what beside the tensors' own shapes decides the work; hashable.
            plan: makes the plan of ``shape``; a graph keeps its own.
        """
        # strides are the inputs' own
        key = (shape, *((name, x.shape, x.dtype) for name, x in tensors.items()))
        with self._lock:
            if key not in self._graphs:
                if key not in self._seen:
                    _keep(self._seen, key, None)
                    return self._work(plan(), **tensors)
                _keep(self._graphs, key, self._made(plan(), tensors))
            held = self._graphs[key]
            self._graphs.move_to_end(key)
            if held is None:
                return self._work(plan(), **tensors)
            inputs, replay, out, _ = held
            at = next(iter(inputs.values()))
            stream = torch.cuda.current_stream(at.device) if at.is_cuda else None
            if stream is not None and self._done is not None:  # another thread's stream may still be reading
                stream.wait_event(self._done)
            for name, x in tensors.items():
                inputs[name].copy_(x)
            replay()
            self.replayed += 1
            found: Any = {"": out} if isinstance(out, Tensor) else out
            found = {name: x.clone() for name, x in found.items()}
            if stream is not None:
                self._done = stream.record_event()
            return found.get("", found)

    def _made(
        self, plan: Any, tensors: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], Replay, Work, Any] | None:
        inputs = {name: x.clone() for name, x in tensors.items()}
        try:
            # the plan is held beside: a graph reads its memory and does not own it
            return (inputs, *self._record(lambda: self._work(plan, **inputs)), plan)
        except RuntimeError as error:  # what CUDA refuses while it records, and memory that is not there
            self.told = " ".join(str(error).split())[:300]
            warnings.warn(
                f"a serving step runs without a CUDA graph: {self.told}", RuntimeWarning, stacklevel=3
            )
            return None


def _keep(held: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    held[key] = value
    if len(held) > GRAPHS:
        held.popitem(last=False)
