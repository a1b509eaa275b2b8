"""A pool of contexts in shared memory: one process retrieves and writes, others rank and read.

The pool is one memory-mapped file, best on a memory file system (``/dev/shm``); its path is all that the
processes share. A plain mapped file rather than ``multiprocessing.shared_memory``, whose tracker unlinks the
memory of a living writer when a reader started elsewhere exits (CPython before 3.13). The file::

    magic    24 bytes  "vista-kvpool 3", zero padded
    layout   4,072 bytes  JSON, zero padded: slots, slot_bytes, device, and the shapes of a context
    headers  one HEADER record per slot
    payload  slots x slot_bytes; on a GPU pool absent: the payload lies in device memory there, and the
             file ``PATH.cuda`` carries its CUDA IPC handle

A slot holds the context of one user. The one writer takes slots round-robin (UniPinRec, arXiv 2606.00422,
serving: [L, S, H, n, D] slots, round-robin, the reader copies). That work says nothing about a slot that is
reused while it is read; here it cannot serve:

1. the writer makes ``sequence`` odd, writes, then makes it even; every write has a number of its own (counted
   from a random start, so that a pool made anew repeats none), and a :class:`Ticket` names slot and number;
2. a reader copies header and payload and looks again: another sequence, another number, or a sum over the
   payload that differs from the header's means a miss (the sum also covers processors that reorder
   stores);
3. owner, generation and model fingerprint must be those the reader asks for.

A miss is an ordinary answer: :meth:`KVPool.get_or_compute` computes that context again and counts why.
A writer that dies in the middle of a write leaves an odd sequence, which is a miss until the slot's turn.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vista.errors import DataError, VistaError
from vista.stage2.context_kv import FIELDS, LAYERED, TENSORS, ContextKV

if TYPE_CHECKING:
    from vista.model import VistaModel

MAGIC = b"vista-kvpool 3"
_MAGIC_BYTES, _LAYOUT_BYTES, _NAME_BYTES, _OWNER_BYTES = 24, 4_072, 64, 512

HEADER = np.dtype(
    [
        ("sequence", "<u8"),
        ("number", "<u8"),
        ("used", "<i8"),
        ("sum", "<i8"),
        ("length", "<i8"),
        ("recent", "<i8"),
        ("owner_bytes", "<i8"),
        ("generation_bytes", "<i8"),
        ("fingerprint_bytes", "<i8"),
        ("owner", "u1", (_OWNER_BYTES,)),
        ("generation", "u1", (_NAME_BYTES,)),
        ("fingerprint", "u1", (_NAME_BYTES,)),
    ]
)
"""What is known of a slot; names are UTF-8 with their length beside them, -1 for none."""

DTYPES = {name: field.dtype for name, field in FIELDS.items()}


class PoolError(VistaError):
    """A pool file is missing, of another version, or made for another model's shapes."""


class Ticket(NamedTuple):
    """Where a context was put, and in which write; plain numbers, to be sent to another process."""

    slot: int
    number: int


class KVPool:
    """Create it in the retrieving process, attach to it in the ranking ones.

    Attributes:
        counts: what :meth:`get` answered: ``hit``, or why not: ``overwritten`` (the slot was reused before
            or while it was read), ``torn`` (a writer died, or is writing), ``owner``, ``generation``,
            ``fingerprint`` (not what was asked for); and ``recomputed``.
    """

    def __init__(self, path: Path, layout: dict, mapped: mmap.mmap, payload: Tensor, writer: bool) -> None:
        self.path, self.layout, self.writer = path, layout, writer
        self.counts: Counter[str] = Counter()
        self._mapped, self._payload = mapped, payload
        start = _MAGIC_BYTES + _LAYOUT_BYTES
        self._headers = np.frombuffer(mapped, HEADER, layout["slots"], start)
        self._written, self._first = 0, int.from_bytes(os.urandom(7), "big")
        self._lock = threading.Lock()

    @property
    def slots(self) -> int:
        return self.layout["slots"]

    # --- open ------------------------------------------------------------------------------------------

    @staticmethod
    def create(
        path: str | os.PathLike[str],
        model: VistaModel,
        slots: int,
        *,
        recent: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> KVPool:
        """A new pool at ``path`` (replaces a file that is there; readers of the old one keep the old one).

        Args:
            path: on a memory file system if it is to be fast.
            model: whose contexts it will hold; their size follows from its configuration.
            slots: contexts kept. Take several times what can be in flight between the processes.
            recent: recent events a context may have at most; the model's own number by default.
            dtype: of keys and values in the pool: ``float32``, or ``float16`` in half the memory, rounded to
                11 bits. Readers get float32 of either.
            device: ``cpu``, or a CUDA device whose memory the readers map by CUDA IPC.
        """
        if slots < 1:
            raise DataError(f"pool slots: expected at least 1, found {slots}")
        if dtype not in (torch.float32, torch.float16):
            raise DataError(f"pool dtype: expected torch.float32 or torch.float16, found {dtype}")
        config, path = model.config, Path(path)
        recent = config.ranker.recent if recent is None else recent
        seeds = 0 if model.ranker.places else config.summarizer.seeds
        layout = {
            "slots": slots,
            "device": str(device),
            "layers": config.ranker.layers,
            "heads": config.ranker.heads,
            "head_width": config.width // config.ranker.heads,
            "queries": config.ranker.queries,
            "width": config.width,
            "slot_tokens": model.ranker.addressed,
            "sequence": model.ranker.sequence,
            "horizons": model.config.tokens.horizons,
            "seeds": seeds,
            "recent": recent,
            "half": dtype == torch.float16,
        }
        layout["slot_bytes"] = sum(_sizes(layout, seeds + recent + 1, recent).values())
        text = json.dumps(layout).encode()
        on_cpu = torch.device(device).type == "cpu"
        fixed = _MAGIC_BYTES + _LAYOUT_BYTES + slots * HEADER.itemsize
        building = path.with_name(f".{path.name}.{os.getpid()}")
        with open(building, "wb", opener=_private) as file:
            file.write(MAGIC.ljust(_MAGIC_BYTES, b"\0") + text.ljust(_LAYOUT_BYTES, b"\0"))
            file.truncate(fixed + (slots * layout["slot_bytes"] if on_cpu else 0))
        if not on_cpu:
            payload = torch.zeros(slots, layout["slot_bytes"], dtype=torch.uint8, device=device)
            with open(path.with_name(path.name + ".cuda"), "wb", opener=_private) as file:
                file.write(_share(payload))
        os.replace(building, path)
        mapped = _map(path)
        if on_cpu:
            payload = _view(mapped, layout, fixed)
        return KVPool(path, layout, mapped, payload, writer=True)

    @staticmethod
    def attach(path: str | os.PathLike[str]) -> KVPool:
        """The pool that another process created at ``path``, to read from.

        Raises:
            PoolError: no pool there, one of another version, or one that was cut short.
        """
        path = Path(path)
        try:
            mapped = _map(path)
        except (OSError, ValueError) as error:
            raise PoolError(
                f"{path}: expected a pool made by a retrieving process, found {error}; "
                "start that process first (`vista recommend`)"
            ) from error
        found = bytes(mapped[:_MAGIC_BYTES]).rstrip(b"\0")
        if found != MAGIC:
            raise PoolError(
                f"{path}, magic: expected {MAGIC!r}, found {found!r}; start both sides from one version"
            )
        try:
            layout = json.loads(bytes(mapped[_MAGIC_BYTES : _MAGIC_BYTES + _LAYOUT_BYTES]).rstrip(b"\0"))
            fixed = _MAGIC_BYTES + _LAYOUT_BYTES + layout["slots"] * HEADER.itemsize
            if torch.device(layout["device"]).type == "cpu":
                payload = _view(mapped, layout, fixed)
            else:
                payload = _open_shared(path.with_name(path.name + ".cuda").read_bytes())
            return KVPool(path, layout, mapped, payload, writer=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise PoolError(
                f"{path}: expected layout, headers and slots, found {error}; the file was cut short or its "
                "device memory is gone: start the retrieving process again"
            ) from error

    def close(self, unlink: bool | None = None) -> None:
        """Let go of the memory; the writer also removes the file (``unlink`` overrides)."""
        del self._headers, self._payload
        try:
            self._mapped.close()
        except BufferError:
            pass  # a view is still held somewhere; the mapping goes with it
        if self.writer if unlink is None else unlink:
            self.path.unlink(missing_ok=True)
            self.path.with_name(self.path.name + ".cuda").unlink(missing_ok=True)

    # --- write -----------------------------------------------------------------------------------------

    def put(self, ctx: ContextKV) -> list[Ticket]:
        """Write the contexts of all U users, one slot each, over the oldest ones.

        Raises:
            DataError: no owners, more users than slots, contexts of another model's shapes, or longer ones
                than the pool's slots.
        """
        if not self.writer:
            raise DataError(f"{self.path}: only the process that created a pool writes to it")
        if not ctx.users:
            return []
        if ctx.owner is None or ctx.users > self.slots:
            raise DataError(
                f"{self.path}: expected contexts of at most {self.slots} users with their owners, "
                f"found {ctx.users} users, owner {'given' if ctx.owner is not None else 'None'}"
            )
        recent = ctx.recent_item.shape[1]
        sizes = _sizes(self.layout, ctx.length, recent)
        used = sum(sizes.values())
        if used > self.layout["slot_bytes"]:
            raise DataError(
                f"{self.path}, recent: expected at most {self.layout['recent']} events, found {recent}; "
                "create the pool with a larger `recent`"
            )
        tensors = ctx.tensors()
        expected = _shapes(self.layout, ctx.length, recent)
        for name, x in tensors.items():
            shape = x[:, 0].shape if name in LAYERED else x[0].shape
            if tuple(shape) != expected[name]:
                raise DataError(
                    f"{self.path}, {name}: expected {expected[name]} per user, found {tuple(shape)}; create "
                    "the pool with the model that makes the contexts"
                )
        names = [_name(ctx.generation, _NAME_BYTES), _name(ctx.fingerprint, _NAME_BYTES)]
        with self._lock:
            return [self._put_one(ctx, tensors, sizes, names, u) for u in range(ctx.users)]

    def _put_one(
        self,
        ctx: ContextKV,
        tensors: dict[str, Tensor],
        sizes: dict[str, int],
        names: list[bytes | None],
        u: int,
    ) -> Ticket:
        assert ctx.owner is not None
        slot, number = self._written % self.slots, self._first + self._written
        self._written += 1
        header, place = self._headers[slot], self._payload[slot]
        owner = _owner(ctx.owner[u])
        header["sequence"] += np.uint64(1 if header["sequence"] % 2 == 0 else 2)  # odd, also after a crash
        at, dtypes = 0, _dtypes(self.layout)
        for name in TENSORS:
            x = tensors[name][:, u] if name in LAYERED else tensors[name][u]
            raw = x.detach().to(dtypes[name]).contiguous().view(-1).view(torch.uint8)
            place[at : at + raw.numel()].copy_(raw)
            place[at + raw.numel() : at + sizes[name]].zero_()
            at += sizes[name]
        header["number"], header["used"] = number, at
        header["sum"] = int(place[:at].view(torch.int64).sum())  # waits for the device, where there is one
        header["length"], header["recent"] = ctx.length, ctx.recent_item.shape[1]
        for field, text in zip(("owner", "generation", "fingerprint"), (owner, *names), strict=True):
            header[field + "_bytes"] = -1 if text is None else len(text)
            if text:
                header[field][: len(text)] = np.frombuffer(text, np.uint8)
        header["sequence"] += np.uint64(1)
        return Ticket(slot, number)

    # --- read ------------------------------------------------------------------------------------------

    def get(
        self,
        ticket: Ticket,
        owner: int | str,
        *,
        generation: str | None = None,
        fingerprint: str | None = None,
    ) -> ContextKV | None:
        """A copy of the context that ``ticket`` names, or None (and ``counts`` says why).

        Args:
            owner: the user it must be of.
            generation, fingerprint: what it must have been made from; None asks nothing.
        """
        ctx, answer = self._read(ticket, owner, generation, fingerprint)
        self.counts[answer] += 1
        return ctx

    def _read(
        self, ticket: Ticket, owner: int | str, generation: str | None, fingerprint: str | None
    ) -> tuple[ContextKV | None, str]:
        slot, number = ticket
        if not 0 <= slot < self.slots:
            return None, "overwritten"
        header = self._headers[slot : slot + 1].copy()[0]
        if header["sequence"] % 2:
            return None, "torn"
        used = int(header["used"])
        if header["number"] != number:
            return None, "overwritten"
        if not 0 < used <= self.layout["slot_bytes"]:
            return None, "torn"
        copy = self._payload[slot, :used].clone()
        total = int(copy.view(torch.int64).sum())  # waits for the device, where there is one
        again = self._headers[slot : slot + 1].copy()[0]
        if again.tobytes() != header.tobytes():
            return None, "overwritten"
        if total != header["sum"]:
            return None, "torn"
        texts = {name: _text(header, name) for name in ("owner", "generation", "fingerprint")}
        if texts["owner"] != _owner(owner):
            return None, "owner"
        for name, asked in (("generation", generation), ("fingerprint", fingerprint)):
            if asked is not None and texts[name] != asked.encode():
                return None, name
        length, recent = int(header["length"]), int(header["recent"])
        shapes, sizes = _shapes(self.layout, length, recent), _sizes(self.layout, length, recent)
        tensors, at, dtypes = {}, 0, _dtypes(self.layout)
        for name in TENSORS:
            count = int(np.prod(shapes[name], dtype=np.int64)) * dtypes[name].itemsize
            x = copy[at : at + count].view(dtypes[name]).view(shapes[name]).to(DTYPES[name])
            tensors[name] = x.unsqueeze(1 if name in LAYERED else 0)
            at += sizes[name]
        plain = {n: None if t is None else t.decode() for n, t in texts.items() if n != "owner"}
        return ContextKV(**tensors, owner=np.array([owner]), **plain), "hit"

    def get_or_compute(
        self,
        tickets: Sequence[Ticket | None],
        owners: np.ndarray | Sequence[str],
        compute: Callable[[np.ndarray], ContextKV],
        *,
        generation: str | None = None,
        fingerprint: str | None = None,
    ) -> ContextKV:
        """Contexts of U users: from the pool where it still has them, computed where not.

        Args:
            tickets: one per user; None is a miss.
            owners: user ids [U].
            compute: positions int64 [m] of the users that missed -> their :class:`ContextKV`, in that order;
                called with none if there are no users at all.

        Raises:
            DataError: ``compute`` answered for other users than it was asked for.
        """
        found = [
            None
            if ticket is None
            else self.get(ticket, owner, generation=generation, fingerprint=fingerprint)
            for ticket, owner in zip(tickets, owners, strict=True)
        ]
        missed = np.array([u for u, ctx in enumerate(found) if ctx is None], np.int64)
        parts = [ctx for ctx in found if ctx is not None]
        if len(missed) or not parts:
            self.counts["recomputed"] += len(missed)
            made = compute(missed)
            asked = [owners[u] for u in missed]
            if made.users != len(missed) or (made.owner is not None and list(made.owner) != asked):
                raise DataError(
                    f"{self.path}, compute: expected contexts of users {asked}, found {made.users} of "
                    f"{'unnamed users' if made.owner is None else list(made.owner)}"
                )
            parts.append(made)
        joined = ContextKV.concat(parts)
        order = np.concatenate([np.setdiff1d(np.arange(len(found)), missed), missed])
        return joined if (np.diff(order) > 0).all() else joined.select(np.argsort(order))


def _shapes(layout: dict, length: int, recent: int) -> dict[str, tuple[int, ...]]:
    """Shape per user of every tensor of a context with ``length`` tokens, ``recent`` of them events."""
    letters = {
        "L": layout["layers"],
        "T": length,
        "H": layout["heads"],
        "E": layout["head_width"],
        "Q": layout["queries"],
        "D": layout["width"],
        "A": layout["slot_tokens"],
        "S": layout["sequence"],
        "M": layout["horizons"],
        "R": recent,
    }
    return {name: tuple(letters[axis] for axis in field.axes) for name, field in FIELDS.items()}


def _sizes(layout: dict, length: int, recent: int) -> dict[str, int]:
    """Bytes of every tensor in a slot, each padded to 8."""
    shapes, dtypes = _shapes(layout, length, recent), _dtypes(layout)
    return {n: -(-int(np.prod(s, dtype=np.int64)) * dtypes[n].itemsize // 8) * 8 for n, s in shapes.items()}


def _dtypes(layout: dict) -> dict[str, torch.dtype]:
    """As stored; readers get :data:`DTYPES`."""
    return {**DTYPES, **(dict.fromkeys(LAYERED, torch.float16) if layout["half"] else {})}


def _owner(user: int | str) -> bytes:
    text = f"s{user}" if isinstance(user, str) else f"i{int(user)}"
    return _name(text, _OWNER_BYTES) or b""


def _name(text: str | None, limit: int) -> bytes | None:
    if text is None:
        return None
    raw = text.encode()
    if len(raw) > limit:
        raise DataError(f"pool name {text!r}: expected at most {limit} bytes, found {len(raw)}")
    return raw


def _text(header: np.void, name: str) -> bytes | None:
    size = int(header[name + "_bytes"])
    return None if size < 0 else header[name][:size].tobytes()


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


def _map(path: Path) -> mmap.mmap:
    with open(path, "r+b") as file:
        return mmap.mmap(file.fileno(), 0)


def _view(mapped: mmap.mmap, layout: dict, start: int) -> Tensor:
    flat = torch.frombuffer(mapped, dtype=torch.uint8, offset=start)
    return flat.view(layout["slots"], layout["slot_bytes"])


def _share(payload: Tensor) -> bytes:
    """CUDA IPC handle of a device tensor, pickled; the reader maps the same memory."""
    from torch.multiprocessing.reductions import reduce_tensor

    return pickle.dumps(reduce_tensor(payload))


def _open_shared(raw: bytes) -> Tensor:
    rebuild, arguments = pickle.loads(raw)
    return rebuild(*arguments)
