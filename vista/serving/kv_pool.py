"""A pool of contexts in shared memory: one process retrieves and writes, others rank and read.

The pool is one memory-mapped file, best on a memory file system (``/dev/shm``); its path is all that the
processes share. A plain mapped file rather than ``multiprocessing.shared_memory``, whose tracker unlinks the
memory of a living writer when a reader started elsewhere exits (CPython before 3.13). The file::

    magic    24 bytes  "vista-kvpool 4", zero padded
    layout   4,072 bytes  JSON, zero padded: slots (cells of the pool), slot_bytes (of each), device, the shapes of a
             context, and half: keys and values as float32 (false), float16 (true) or bfloat16 ("bfloat16")
    headers  one HEADER record per cell
    payload  all cells; on a GPU pool absent: the payload lies in device memory there, and the file ``PATH.cuda``
             carries its CUDA IPC handle, as numbers in JSON

Files have random names until they are whole, mode 600, and are taken only from one's own user. All numbers of the
layout are compared with the file's size and the range that they may have before anything is mapped.

A cell holds the context of one user. The one writer takes cells round-robin (UniPinRec, arXiv 2606.00422,
serving: [L, S, H, n, D] slots, round-robin, the reader copies). That work says nothing about one that is
reused while it is read; here it cannot serve:

1. the writer makes ``sequence`` odd, writes, then makes it even; every write has a number of its own (counted
   from a random start, so that a pool made anew repeats none), and a :class:`Ticket` names cell and number;
2. a reader copies header and payload and looks again: another sequence, another number, or a sum over the
   payload that differs from the header's means a miss (the sum also covers processors that reorder
   stores);
3. owner, generation and model fingerprint must be those the reader asks for.

A miss is an ordinary answer: :meth:`KVPool.get_or_compute` computes that context again and counts why.
A writer that dies in the middle of a write leaves an odd sequence, which is a miss until the cell's turn.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vista.errors import DataError
from vista.serving import pool_files
from vista.serving.pool_files import Opened, PoolError
from vista.serving.pool_layout import (
    DTYPES,
    HEADER,
    LAYOUT_BYTES,
    MAGIC,
    MAGIC_BYTES,
    NAME_BYTES,
    OWNER_BYTES,
    STORED,
    check_layout,
    damaged,
    dtypes_of,
    file_size,
    handle_of,
    open_handle,
    shapes_of,
    sizes_of,
    view_of,
)
from vista.stage2.context_kv import LAYERED, TENSORS, ContextKV

if TYPE_CHECKING:
    from vista.model import VistaModel


Owner = int | str


class Ticket(NamedTuple):
    """Where a context was put, and in which write; plain numbers, to be sent to another process."""

    cell: int
    number: int


class KVPool:
    """Create it in the retrieving process, attach to it in the ranking ones.

    A reader whose pool was made anew by another process, at the same path, goes on with the new one.

    Attributes:
        counts: what :meth:`get` answered: ``hit``, or why not: ``overwritten`` (the cell was reused before
            or while it was read), ``torn`` (a writer died, or is writing), ``owner``, ``generation``,
            ``fingerprint`` (not what was asked for); and ``recomputed``, ``reattached``.
    """

    def __init__(self, path: Path, layout: dict, opened: Opened, payload: Tensor, writer: bool):
        self.path, self.layout, self.writer = path.absolute(), layout, writer
        self.counts: Counter[str] = Counter()
        self._hold(opened, payload)
        self._written, self._first = 0, int.from_bytes(os.urandom(7), "big")
        self._lock = threading.Lock()

    def _hold(self, opened: Opened, payload: Tensor) -> None:
        (self._mapped, facts), self._payload = opened, payload
        self._file = facts.st_dev, facts.st_ino
        self._headers = np.frombuffer(self._mapped, HEADER, self.cells, MAGIC_BYTES + LAYOUT_BYTES)

    @property
    def cells(self) -> int:
        """Contexts that it keeps."""
        return self.layout["slots"]

    # --- open ------------------------------------------------------------------------------------------

    @staticmethod
    def create(
        path: str | os.PathLike[str],
        model: VistaModel,
        cells: int = 0,
        *,
        slots: int = 0,
        recent: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> KVPool:
        """A new pool at ``path`` (replaces a file that is there; readers of the old one keep the old one).

        Args:
            path: on a memory file system if it is to be fast.
            model: whose contexts it will hold; their size follows from its configuration.
            cells: contexts kept. Take several times what can be in flight between the processes.
            slots: the same; its name until version 0.1.
            recent: recent events a context may have at most; the model's own number by default.
            dtype: of keys and values in the pool: ``float32``, or in half the memory ``float16``, rounded to 11 bits
                and up to 65,504, or ``bfloat16``, rounded to 8 bits. Readers get float32 of each.
            device: ``cpu``, or a CUDA device whose memory the readers map by CUDA IPC.
        """
        cells = cells or slots
        if cells < 1:
            raise DataError(f"pool cells: expected at least 1, found {cells}")
        half = next((name for name, stored in STORED.items() if stored == dtype), None)
        if half is None:
            raise DataError(f"pool dtype: expected one of {[*STORED.values()]}, found {dtype}")
        config, path = model.config, Path(path)
        recent = config.ranker.recent if recent is None else recent
        seeds = 0 if model.ranker.places else config.summarizer.seeds
        layout: dict[str, Any] = {
            "slots": cells,
            "device": str(device),
            "layers": config.ranker.layers,
            "heads": config.ranker.heads,
            "head_width": config.width // config.ranker.heads,
            "queries": config.ranker.queries,
            "width": config.width,
            "slot_tokens": model.ranker.addressed,
            "sequence": model.ranker.sequence,
            "horizons": config.tokens.horizons,
            "seeds": seeds,
            "recent": recent,
            "half": half,
        }
        layout["slot_bytes"] = sum(sizes_of(layout, seeds + recent + 1, recent).values())
        text = json.dumps(layout).encode()
        check_layout(layout, path)
        on_cpu = torch.device(device).type == "cpu"
        begin = MAGIC.ljust(MAGIC_BYTES, b"\0") + text.ljust(LAYOUT_BYTES, b"\0")
        size = file_size(layout, on_cpu)
        if not on_cpu:
            payload = torch.zeros(cells, layout["slot_bytes"], dtype=torch.uint8, device=device)
            handle = handle_of(payload)
            pool_files.make(path.with_name(path.name + ".cuda"), handle, len(handle))
        pool_files.make(path, begin, size)
        opened = pool_files.map_own(path)
        if on_cpu:
            payload = view_of(opened[0], layout)
        return KVPool(path, layout, opened, payload, writer=True)

    @staticmethod
    def attach(path: str | os.PathLike[str]) -> KVPool:
        """The pool that another process created at ``path``, to read from.

        Raises:
            PoolError: no pool there, one of another version or another user, or one that was cut short.
        """
        return KVPool(Path(path), *_attach(Path(path)), writer=False)

    def close(self, unlink: bool | None = None) -> None:
        """Let go of the memory; the writer also removes the file (``unlink`` overrides), if it is still its own."""
        del self._headers, self._payload
        with suppress(BufferError):  # a view is still held somewhere; the mapping goes with it
            self._mapped.close()
        if (self.writer if unlink is None else unlink) and pool_files.identity(self.path) == self._file:
            self.path.unlink(missing_ok=True)
            self.path.with_name(self.path.name + ".cuda").unlink(missing_ok=True)

    def _moved(self) -> bool:
        """Whether another pool has taken the place of this one, which is then read instead.

        Raises:
            PoolError: what is there now is for another model's shapes.
        """
        now = pool_files.identity(self.path)
        if self.writer or now is None or now == self._file:
            return False
        layout, opened, payload = _attach(self.path)
        if layout != self.layout:
            raise PoolError(
                f"{self.path}: expected the shapes {self.layout}, found a pool made anew with {layout}; attach again "
                f"with the model that makes its contexts"
            )
        self._hold(opened, payload)
        self.counts["reattached"] += 1
        return True

    # --- write -----------------------------------------------------------------------------------------

    def put(self, ctx: ContextKV) -> list[Ticket]:
        """Write the contexts of all U users, one cell each, over the oldest ones.

        Raises:
            DataError: no owners, more users than cells, contexts of another model's shapes, longer ones than the
                pool's cells, or numbers that its dtype cannot hold.
        """
        if not self.writer:
            raise DataError(f"{self.path}: only the process that created a pool writes to it")
        if not ctx.users:
            return []
        if ctx.owner is None or ctx.users > self.cells:
            raise DataError(
                f"{self.path}: expected contexts of at most {self.cells} users with their owners, "
                f"found {ctx.users} users, owner {'given' if ctx.owner is not None else 'None'}"
            )
        recent = ctx.recent_item.shape[1]
        sizes = sizes_of(self.layout, ctx.length, recent)
        used = sum(sizes.values())
        if used > self.layout["slot_bytes"]:
            raise DataError(
                f"{self.path}, recent: expected at most {self.layout['recent']} events, found {recent}; "
                "create the pool with a larger `recent`"
            )
        tensors = ctx.tensors()
        expected = shapes_of(self.layout, ctx.length, recent)
        for name, x in tensors.items():
            shape = tuple((x[:, 0] if name in LAYERED else x[0]).shape)
            if shape != expected[name]:
                raise DataError(
                    f"{self.path}, {name}: expected {expected[name]} per user, found {shape}; create the pool with the "
                    f"model that makes the contexts"
                )
        dtypes = dtypes_of(self.layout)
        stored = {name: x.detach().to(dtypes[name]) for name, x in tensors.items()}
        if dtypes["keys"] == torch.float16 and not all(stored[n].isfinite().all() for n in LAYERED):
            raise DataError(
                f"{self.path}: expected keys and values of at most {torch.finfo(torch.float16).max:g}, as float16 has "
                f"them, found larger ones; create the pool with dtype=torch.bfloat16 or torch.float32"
            )
        with self._lock:
            return [self._put_one(ctx, stored, sizes, u) for u in range(ctx.users)]

    def _put_one(self, ctx: ContextKV, tensors: dict[str, Tensor], sizes: dict[str, int], u: int) -> Ticket:
        assert ctx.owner is not None
        cell, number = self._written % self.cells, self._first + self._written
        self._written += 1
        header, place = self._headers[cell], self._payload[cell]
        names = _owner(ctx.owner[u]), _name(ctx.generation, NAME_BYTES), _name(ctx.fingerprint, NAME_BYTES)
        header["sequence"] += np.uint64(1 if header["sequence"] % 2 == 0 else 2)  # odd, also after a crash
        at = 0
        for name in TENSORS:
            x = tensors[name][:, u] if name in LAYERED else tensors[name][u]
            raw = x.contiguous().view(-1).view(torch.uint8)
            place[at : at + raw.numel()].copy_(raw)
            place[at + raw.numel() : at + sizes[name]].zero_()
            at += sizes[name]
        header["number"], header["used"] = number, at
        header["sum"] = int(place[:at].view(torch.int64).sum())  # waits for the device, where there is one
        header["length"], header["recent"] = ctx.length, ctx.recent_item.shape[1]
        for field, text in zip(("owner", "generation", "fingerprint"), names, strict=True):
            header[field + "_bytes"] = -1 if text is None else len(text)
            if text:
                header[field][: len(text)] = np.frombuffer(text, np.uint8)
        header["sequence"] += np.uint64(1)
        return Ticket(cell, number)

    # --- read ------------------------------------------------------------------------------------------

    def get(
        self, ticket: Ticket, owner: Owner, *, generation: str | None = None, fingerprint: str | None = None
    ) -> ContextKV | None:
        """A copy of the context that ``ticket`` names, or None (and ``counts`` says why).

        Args:
            owner: the user it must be of.
            generation, fingerprint: what it must have been made from; None asks nothing.
        """
        ctx, answer = self._read(ticket, owner, generation, fingerprint)
        if ctx is None and self._moved():
            ctx, answer = self._read(ticket, owner, generation, fingerprint)
        self.counts[answer] += 1
        return ctx

    def _read(
        self, ticket: Ticket, owner: Owner, generation: str | None, fingerprint: str | None
    ) -> tuple[ContextKV | None, str]:
        cell, number = ticket
        if not 0 <= cell < self.cells:
            return None, "overwritten"
        header = self._headers[cell : cell + 1].copy()[0]
        if header["sequence"] % 2:
            return None, "torn"
        if header["number"] != number:
            return None, "overwritten"
        used, length, recent = (int(header[name]) for name in ("used", "length", "recent"))
        if not (0 <= recent <= self.layout["recent"] and recent < length <= self.layout["slot_bytes"]):
            return None, "torn"
        if used != sum(sizes_of(self.layout, length, recent).values()) or used > self.layout["slot_bytes"]:
            return None, "torn"
        copy = self._payload[cell, :used].clone()
        total = int(copy.view(torch.int64).sum())  # waits for the device, where there is one
        again = self._headers[cell : cell + 1].copy()[0]
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
        plain: dict[str, Any] = {
            n: None if t is None else t.decode("utf-8", "replace") for n, t in texts.items() if n != "owner"
        }
        return ContextKV(**self._tensors(copy, length, recent), owner=np.array([owner]), **plain), "hit"

    def _tensors(self, copy: Tensor, length: int, recent: int) -> dict[str, Any]:
        """Tensors of one user's context out of the bytes of its cell."""
        shapes, sizes = shapes_of(self.layout, length, recent), sizes_of(self.layout, length, recent)
        tensors, at, dtypes = {}, 0, dtypes_of(self.layout)
        for name in TENSORS:
            count = int(np.prod(shapes[name], dtype=np.int64)) * dtypes[name].itemsize
            raw = copy[at : at + count]
            # A byte of a mask is 0 or 1, whatever the file holds.
            x = raw != 0 if dtypes[name] == torch.bool else raw.view(dtypes[name])
            tensors[name] = x.view(shapes[name]).to(DTYPES[name]).unsqueeze(1 if name in LAYERED else 0)
            at += sizes[name]
        return tensors

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
        if isinstance(owners, (str, bytes)):
            raise DataError(f"owners: expected a list or an array of ids, found one {type(owners).__name__}")
        of: Any = {"generation": generation, "fingerprint": fingerprint}
        found = [
            None if t is None else self.get(t, owner, **of) for t, owner in zip(tickets, owners, strict=True)
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


def _owner(user: Owner) -> bytes:
    text = f"s{user}" if isinstance(user, str) else f"i{int(user)}"
    return _name(text, OWNER_BYTES) or b""


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


def _attach(path: Path) -> tuple[dict, Opened, Tensor]:
    opened = pool_files.map_own(path)
    mapped = opened[0]
    if len(mapped) < MAGIC_BYTES + LAYOUT_BYTES:
        raise damaged(f"{path}, magic", "a pool", f"{len(mapped)} bytes, so it was cut short")
    found = bytes(mapped[:MAGIC_BYTES]).rstrip(b"\0")
    if found != MAGIC:
        raise PoolError(
            f"{path}, magic: expected {MAGIC!r}, found {found!r}; start both sides from one version"
        )
    try:
        layout = json.loads(bytes(mapped[MAGIC_BYTES : MAGIC_BYTES + LAYOUT_BYTES]).rstrip(b"\0"))
    except (ValueError, RecursionError) as error:
        raise damaged(f"{path}, layout", "JSON", error) from error
    layout = check_layout(layout, path)
    on_cpu = torch.device(layout["device"]).type == "cpu"
    if len(mapped) != file_size(layout, on_cpu):
        size = f"{len(mapped)}, so it was cut short"
        raise damaged(f"{path}", f"{file_size(layout, on_cpu)} bytes", size)
    if on_cpu:
        return layout, opened, view_of(mapped, layout)
    return layout, opened, open_handle(path.with_name(path.name + ".cuda"), layout)
