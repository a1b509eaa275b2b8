"""A card that is not there: tensors of the CPU that say they are on ``cuda:0``, so that the branches for one run.

Arithmetic is the CPU's. What a card would refuse is refused: operands on two devices, NumPy arrays of its memory, and
within a recording every question to the device and every copy that is not from pinned memory. A recording keeps its
operations and repeats them on the memory where they ran. Streams keep clocks: what one writes, another may only touch
after it has waited. Kernels are run by Triton's interpreter, on arguments that are all on the card. It says nothing of
compilers, of speed, and of how memory is given back.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from tests.vista.asking import QUESTIONS

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")


class CardError(RuntimeError):
    """What CUDA would have refused, or would not have noticed: a race."""


class Stream:
    """Work in order. ``clock`` holds what is known to be done: stream to tick."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.clock: Counter[int] = Counter()
        self.device = CUDA

    def wait_event(self, event: Event) -> None:
        self.clock |= event.clock

    def wait_stream(self, other: Stream) -> None:
        self.clock |= other.clock

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        CARD.host().clock |= self.clock


class Event:
    def __init__(self, *_: Any, **__: Any) -> None:
        self.clock: Counter[int] = Counter()

    def record(self, stream: Stream | None = None) -> None:
        self.clock = Counter((stream or CARD.stream()).clock)

    def synchronize(self) -> None:
        CARD.host().clock |= self.clock

    def wait(self, stream: Stream | None = None) -> None:
        (stream or CARD.stream()).wait_event(self)


class Graph:
    """Operations as they were recorded; ``replay`` repeats them where they ran."""

    def __init__(self) -> None:
        self.steps: list[tuple[Callable[..., Any], tuple, dict, Any]] = []

    def replay(self) -> None:
        with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
            for func, args, kwargs, out in self.steps:
                fresh = func(*args, **kwargs)
                for old, new in zip(tree_leaves(out), tree_leaves(fresh), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class Card:
    """What lies on the card, and who touched it last."""

    def __init__(self) -> None:
        self.storages: dict[int, StorageWeakRef] = {}  # held, so that no address comes twice
        self.pinned: dict[int, StorageWeakRef] = {}
        self.written: dict[int, tuple[int, int]] = {}
        self.default = Stream()
        self.local = threading.local()
        self.asked: Counter[str] = Counter()
        self.recording: Graph | None = None
        self.launched: Counter[str] = Counter()

    def stream(self) -> Stream:
        return getattr(self.local, "stream", None) or self.default

    def host(self) -> Stream:
        if not hasattr(self.local, "host"):
            self.local.host = Stream()
        return self.local.host

    def holds(self, x: Any) -> bool:
        if x.layout is not torch.strided:
            return self.holds(x._values())
        return x.untyped_storage()._cdata in self.storages

    def is_pinned(self, x: torch.Tensor) -> bool:
        return x.untyped_storage()._cdata in self.pinned

    def take(self, out: Any) -> Any:
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                x = x if x.layout is torch.strided else x._values()
                ref = StorageWeakRef(x.untyped_storage())
                self.storages.setdefault(ref.cdata, ref)
        return out

    def ask(self, what: str) -> None:
        if self.recording is not None:
            raise CardError(f"{what}: operation not permitted when stream is capturing")
        self.asked[what] += 1

    def touch(self, tensors: list[torch.Tensor], out: list[torch.Tensor]) -> None:
        """This stream touches these: it must have waited for whoever wrote them."""
        stream = self.stream()
        stream.clock[id(stream)] += 1
        for x in tensors + out:
            x = x if x.layout is torch.strided else x._values()
            key = x.untyped_storage()._cdata
            who, tick = self.written.get(key, (0, 0))
            if stream.clock[who] < tick:
                raise CardError(
                    f"a stream touches {tuple(x.shape)} {x.dtype} without waiting for what wrote it"
                )
        for x in out:
            key = (x if x.layout is torch.strided else x._values()).untyped_storage()._cdata
            self.written[key] = (id(stream), stream.clock[id(stream)])

    def done(self) -> None:
        """The host waits for all streams."""
        self.ask("synchronize")


CARD = Card()


class Placed(TorchDispatchMode):
    """Every operation: all operands on the card or none."""

    back = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
            ours = [x for x in given if CARD.holds(x)]
            name = func.overloadpacket.__name__
            if name == "_has_compatible_shallow_copy_type":
                return True
            if ours and not getattr(CARD.local, "passing", False):
                by_index = name in ("index", "index_put", "index_put_", "_index_put_impl_")
                strangers = [x for x in given if x.dim() and not CARD.holds(x)]
                if by_index and strangers and all(any(x is y for y in args[1]) for x in strangers):
                    CARD.ask("an index from the host")
                    strangers = []
                if strangers:
                    raise CardError(
                        f"{func}: expected all tensors to be on the same device, found cuda:0 and cpu "
                        f"{[tuple(x.shape) for x in strangers]}"
                    )
                if name in QUESTIONS or str(func) == "aten.repeat_interleave.Tensor":
                    CARD.ask(name)
                if by_index and any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]):
                    CARD.ask(f"{name} by a mask")
            out = func(*args, **kwargs)
            found = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
            made = not given and getattr(CARD.local, "backward", False)
            if (ours or made) and not getattr(CARD.local, "passing", False):
                CARD.take(out)
                places = {x.untyped_storage()._cdata for x in ours if x.layout is torch.strided}
                looks = found and all(
                    x.layout is torch.strided and x.untyped_storage()._cdata in places for x in found
                )
                if not looks or name.endswith("_"):  # a view reads nothing
                    CARD.touch(ours, found)
            if CARD.recording is not None and (ours or not given):
                CARD.recording.steps.append((func, args, kwargs, out))
            return out


def _is_cuda(x: Any) -> bool:
    return isinstance(x, (str, torch.device)) and str(x).startswith("cuda")


class Told(TorchFunctionMode):
    """Every call of torch from Python: where tensors are, and what brings them there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        owner = getattr(func, "__self__", None)
        if name == "__get__" and owner in GETTERS and isinstance(args[0], torch.Tensor):
            return GETTERS[owner](args[0])
        if name == "_parse_to" or func is torch.device:
            return func(*args, **kwargs)
        if func in CALLS:
            return CALLS[func](*args, **kwargs)
        if func is torch.Tensor.backward:
            CARD.local.backward = CARD.holds(args[0])
            try:
                with self:
                    return torch.autograd.backward(args[0], *args[1:], kwargs.get("gradient"))
            finally:
                CARD.local.backward = False
        pinned = kwargs.pop("pin_memory", False)
        wanted = [x for x in (*args, *kwargs.values()) if _is_cuda(x)]
        args, kwargs = tree_map(lambda x: CPU if _is_cuda(x) else x, (args, kwargs))
        source = next((x for x in tree_leaves(args) if isinstance(x, torch.Tensor)), None)
        here = source is not None and CARD.holds(source)
        moves = name in ("to", "cpu", "cuda", "type", "as_tensor", "tensor")
        leaves = name == "cpu" or (
            moves and not wanted and any(isinstance(x, torch.device) for x in (*args, *kwargs.values()))
        )
        if moves and here and leaves:
            return _moved(func, args, kwargs, on_card=False, source=source)
        if moves and (wanted or name == "cuda") and not here:
            return _moved(func, args, kwargs, on_card=True, source=source)
        if here and name in ("numpy", "__array__"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if here and name in ("tolist", "__bool__", "__int__", "__float__", "__index__", "item"):
            CARD.ask(name)
            with torch.no_grad():
                args = (args[0].detach(), *args[1:])
            return _outside(func, args, kwargs)
        if here and name == "new_tensor":
            CARD.ask("numbers from the host")
            return CARD.take(func(*args, **kwargs))
        # what torch's own Python makes beside its arguments lies where they do
        before, CARD.local.backward = (
            getattr(CARD.local, "backward", False),
            here and isinstance(func, FunctionType),
        )
        try:
            out = func(*args, **kwargs)
        finally:
            CARD.local.backward = before
        if wanted or (here and name == "__deepcopy__"):
            CARD.take(out)
            CARD.touch([], [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)])
        if pinned:
            ref = StorageWeakRef(out.untyped_storage())
            CARD.pinned[ref.cdata] = ref
        return out


def _outside(func: Any, args: Any, kwargs: Any) -> Any:
    CARD.local.passing = True
    try:
        return func(*args, **kwargs)
    finally:
        CARD.local.passing = False


def _moved(func: Any, args: Any, kwargs: Any, on_card: bool, source: torch.Tensor | None) -> Any:
    """A copy to or from the card; what is not from pinned memory, or is waited for, asks the device."""
    waits = not kwargs.get("non_blocking") or source is None or not CARD.is_pinned(source)
    if not on_card:
        CARD.touch([source], [])
    if waits:
        CARD.ask("copy to the card" if on_card else "copy from the card")
    if getattr(func, "__name__", "") in ("cpu", "cuda"):
        func, args = torch.Tensor.to, (args[0], CPU)
    out = _outside(func, args, kwargs)
    if source is None or out.untyped_storage()._cdata == source.untyped_storage()._cdata or source.dim() == 0:
        out = _outside(torch.clone, (out,), {})
    if on_card:
        CARD.take(out)
        CARD.touch([], [out])
    return out


def _copy(into: torch.Tensor, source: Any, non_blocking: bool = False) -> torch.Tensor:
    crosses = CARD.holds(into) != CARD.holds(source)
    if not crosses:
        return into.copy_(source)
    if not (non_blocking and CARD.is_pinned(source if CARD.holds(into) else into)):
        CARD.ask("copy across")
    if CARD.holds(into):
        CARD.touch([], [into])
    else:
        CARD.touch([source], [])
    return _outside(torch.Tensor.copy_, (into, source), {})


def _deep(x: torch.Tensor, memo: dict) -> torch.Tensor:
    out = _outside(torch.Tensor.__deepcopy__, (x, memo), {})
    return CARD.take(out) if CARD.holds(x) else out


GETTERS = {
    torch.Tensor.is_cuda: lambda x: CARD.holds(x),
    torch.Tensor.is_cpu: lambda x: not CARD.holds(x),
    torch.Tensor.device: lambda x: CUDA if CARD.holds(x) else CPU,
}
CALLS: dict[Any, Callable[..., Any]] = {
    torch.Tensor.copy_: _copy,
    torch.Tensor.is_pinned: lambda x: CARD.is_pinned(x),
    torch.Tensor.__deepcopy__: _deep,
}


@contextlib.contextmanager
def placed() -> Iterator[None]:
    """Within it this thread's torch has the card."""
    with Placed(), Told():
        yield


@contextlib.contextmanager
def _on(stream: Stream) -> Iterator[None]:
    before = getattr(CARD.local, "stream", None)
    CARD.local.stream = stream
    try:
        yield
    finally:
        CARD.local.stream = before


@contextlib.contextmanager
def _recorded(graph: Graph, *_: Any, **__: Any) -> Iterator[None]:
    CARD.recording = graph
    try:
        yield
    finally:
        CARD.recording = None


@contextlib.contextmanager
def pretended() -> Iterator[Card]:
    """The card, in this thread and in those that it starts."""
    global CARD
    CARD = Card()
    with pytest.MonkeyPatch.context() as patch:
        cuda: dict[str, Any] = {
            "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
            "synchronize": lambda *_: CARD.done(), "Stream": Stream, "Event": Event, "CUDAGraph": Graph,
            "current_stream": lambda *_: CARD.stream(), "stream": _on, "graph": _recorded,
            "get_device_properties": lambda *_: SimpleNamespace(
                name="a card that is not there", total_memory=80 << 30, multi_processor_count=132
            ),
        }  # fmt: skip
        for name, value in cuda.items():
            patch.setattr(torch.cuda, name, value)
        autocast = torch.autocast
        patch.setattr(torch, "autocast", lambda kind, *a, **k: autocast("cpu", *a, **k))
        patch.setattr(torch.Tensor, "record_stream", lambda x, stream: None)
        run = threading.Thread.run

        def with_card(self: threading.Thread) -> None:
            with placed():
                run(self)

        patch.setattr(threading.Thread, "run", with_card)
        _interpreted(patch)
        from vista.ops import flex

        def compiled(*args: Any) -> Any:
            with _disable_current_modes(), torch._C.DisableTorchFunction():
                return CARD.take(flex._read(*args))

        patch.setattr(flex, "_compiled", lambda: compiled)
        with placed():
            yield CARD


def _interpreted(patch: pytest.MonkeyPatch) -> None:
    from triton.runtime.interpreter import InterpretedFunction

    for name in ("cache_store.torch.decode_triton", "vista.ops.crossing_triton", "vista.ops.qla_triton"):
        importlib.import_module(name)
    patch.delenv("TRITON_INTERPRET")  # chosen by now; what is on the CPU takes the plain form
    run = InterpretedFunction.run

    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            tensors = [x for x in args if isinstance(x, torch.Tensor)]
            if any(not CARD.holds(x) for x in tensors):
                raise CardError(
                    f"{self.fn.__name__}: Pointer argument cannot be accessed from Triton (cpu tensor?)"
                )
            CARD.touch(tensors, [])
            CARD.launched[self.fn.__name__] += 1

            def again() -> None:
                with _disable_current_modes(), torch.no_grad(), pytest.MonkeyPatch.context() as once:
                    once.setenv("TRITON_INTERPRET", "1")
                    run(self, *args, **kwargs)

            again()
            if CARD.recording is not None:
                CARD.recording.steps.append((again, (), {}, None))

    patch.setattr(InterpretedFunction, "run", launch)
