"""``UserState``: what of one history is kept so that new events cost only themselves.

Kept at the last full chunk boundary: what each group of tokens needs to go on, as named arrays, and the key of the
event there. Kept raw: the tail, the events after the boundary (fewer than C). New events that sort into the tail are
merged with it; an event older than the boundary is *late*, and its user must be summarised again from the whole
history.

Bytes: XXH3-64 of the rest (8 bytes), then msgpack of a map; arrays are little-endian. Integers are offsets from their
minimum in the narrowest unsigned type. Version 1, which had no parts but the encoder's memory and slot masses, is
still read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
import xxhash

from vista.data.events import COLUMNS, ORDER, Events
from vista.errors import VistaError

VERSION = 2
_NARROW = ("<u1", "<u2", "<u4", "<u8")

EventKey = tuple[int, ...]
"""(time, request, item, action, surface): the contract order of events."""


class StateError(VistaError):
    """A resumable state is damaged, of another version, or was made by another model."""


@dataclass(slots=True)
class UserState:
    """Resumable state of one user.

    Attributes:
        signature: configuration and weights that made it, :meth:`vista.stage1.summarizer.Summarizer.signature`.
        count: events folded in, a multiple of C.
        boundary: key of the last event folded in, None if there is none.
        parts: what the groups of tokens keep as of the boundary, by ``GROUP.NAME`` (``vista.stage1.groups``): int64
            or float32 arrays; nothing where ``count`` is 0.
        tail: one history of fewer than C events, those after the boundary.
    """

    signature: str
    count: int = 0
    boundary: EventKey | None = None
    parts: dict[str, np.ndarray] = field(default_factory=dict)
    tail: Events = field(default_factory=lambda: Events.empty(1))

    @property
    def total(self) -> int:
        """Events of the whole history."""
        return self.count + len(self.tail)

    @property
    def last_key(self) -> EventKey | None:
        """Key of the newest event, None for an empty history."""
        return event_key(self.tail, len(self.tail) - 1) if len(self.tail) else self.boundary

    def to_bytes(self) -> bytes:
        """The state as bytes; :meth:`from_bytes` gives it back exactly."""
        fields: dict[str, Any] = {
            "v": VERSION,
            "s": self.signature,
            "n": self.count,
            "b": self.boundary,
            "p": {name: _pack(array) for name, array in self.parts.items()},
            "t": [_pack_column(getattr(self.tail, name)) for name in COLUMNS],
        }
        body = msgpack.packb(fields)
        return xxhash.xxh3_64_digest(body) + body

    @staticmethod
    def from_bytes(data: bytes) -> UserState:
        """Inverse of :meth:`to_bytes`.

        Raises:
            StateError: too short, checksum wrong, another version, or fields that do not fit together.
        """
        data = bytes(data)
        if len(data) < 9 or xxhash.xxh3_64_digest(data[8:]) != data[:8]:
            raise StateError(
                f"user state: expected the checksum of {len(data)} bytes to match, found damage; "
                "check the store with vista verify, then run vista summarize"
            )
        try:
            f = msgpack.unpackb(data[8:])
            if f["v"] not in (1, VERSION):
                raise StateError(
                    f"user state: expected version 1 or {VERSION}, found {f['v']}; run vista summarize"
                )
            columns = {
                name: _unpack_column(c).astype(t)
                for (name, t), c in zip(COLUMNS.items(), f["t"], strict=True)
            }
            signature, count = f["s"], f["n"]
            boundary = None if f["b"] is None else tuple(f["b"])
            if not isinstance(signature, str) or type(count) is not int or not 0 <= count < 1 << 62:
                raise ValueError(f"signature {str(signature)[:40]!r}, count {str(count)[:40]!r}")
            if boundary is not None and (
                len(boundary) != len(ORDER)
                or not all(type(x) is int and -(1 << 63) <= x < 1 << 63 for x in boundary)
            ):
                raise ValueError(f"boundary {str(boundary)[:80]}")
            return UserState(
                signature=signature,
                count=count,
                boundary=boundary,
                parts=_parts_1(f) if f["v"] == 1 else {name: _unpack(x) for name, x in f["p"].items()},
                tail=Events.of([len(columns["time"])], **columns),
            )
        except (
            KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError, RecursionError,
            VistaError, msgpack.UnpackException,
        ) as error:  # fmt: skip
            if isinstance(error, StateError):
                raise
            raise StateError(
                f"user state: expected the fields of version {VERSION}, found {error!r}; run vista summarize"
            ) from error


def event_key(events: Events, row: int) -> EventKey:
    """Contract key of one row."""
    return tuple(int(getattr(events, name)[row]) for name in ORDER)


def _parts_1(f: dict[str, Any]) -> dict[str, np.ndarray]:
    """The parts of a state of version 1."""
    parts = {}
    if f["m"] is not None:
        parts["seeds.memory"] = _array(f["m"][1], "<f4").reshape(f["m"][0])
    if f["n"] and f["w"]:
        parts["slots.index"] = _array(f["i"], "<i4").astype(np.int64)
        parts["slots.mass"] = _array(f["x"], "<f4").reshape(-1, f["w"])
    return parts


def _pack(array: np.ndarray) -> tuple[list[int], Any]:
    """Shape, then bytes of float32, or what :func:`_pack_column` makes of each row of int64."""
    if array.dtype == np.int64:
        rows = array.reshape(int(np.prod(array.shape[:-1])), array.shape[-1])
        return list(array.shape), [_pack_column(row) for row in rows]
    return list(array.shape), _little(array, "<f4")


def _unpack(packed: Any) -> np.ndarray:
    shape, data = packed
    if isinstance(data, bytes):
        return _array(data, "<f4").reshape(shape)
    return np.concatenate([_unpack_column(c) for c in data]).reshape(shape)


def _little(array: np.ndarray, dtype: str) -> bytes:
    return np.ascontiguousarray(array, dtype).tobytes()


def _array(data: bytes, dtype: str) -> np.ndarray:
    return np.frombuffer(data, dtype).astype(np.dtype(dtype).newbyteorder("="))


def _pack_column(column: np.ndarray) -> tuple[int, int, bytes]:
    """(width code, minimum, offsets from it): modular in 64 bits, so any int64 column fits."""
    if not len(column):
        return 0, 0, b""
    # the ufuncs themselves: the methods of an array cost as much again, and this is called for every user
    low, high = np.minimum.reduce(column), np.maximum.reduce(column)
    top = int(high) - int(low)
    code = next(i for i, bits in enumerate((8, 16, 32, 64)) if top < 1 << bits)
    return code, int(low), _little(np.subtract(column, low, dtype=np.int64), _NARROW[code])


def _unpack_column(packed: list) -> np.ndarray:
    code, low, data = packed
    return (_array(data, _NARROW[code]).astype(np.uint64) + np.int64(low).view(np.uint64)).view(np.int64)
