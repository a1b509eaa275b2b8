"""``UserState``: what of one history is kept so that new events cost only themselves.

Kept at the last full chunk boundary: the encoder's state, the slot masses, the key of the event there. Kept
raw: the tail, the events after the boundary (fewer than C). New events that sort into the tail are merged
with it; an event older than the boundary is *late*, and its user must be summarised again from the whole
history.

Bytes: XXH3-64 of the rest (8 bytes), then msgpack of a map; arrays are little-endian. Tail columns are
offsets from their minimum in the narrowest unsigned type; slot masses are stored sparse where that is
smaller.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
import xxhash

from vista.data.events import COLUMNS, ORDER, Events
from vista.errors import VistaError

VERSION = 1
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
        memory: float32, the encoder's state at the boundary (its shape is the encoder's); None if ``count`` is 0 or
            the model has no seeds.
        slot_index: int32 [n], buckets of the slot memory with any mass at the boundary, ascending.
        slot_mass: float32 [n, horizons], their masses as of the boundary event.
        tail: one history of fewer than C events, those after the boundary.
    """

    signature: str
    count: int = 0
    boundary: EventKey | None = None
    memory: np.ndarray | None = None
    slot_index: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    slot_mass: np.ndarray = field(default_factory=lambda: np.zeros((0, 1), np.float32))
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
            "m": None if self.memory is None else (list(self.memory.shape), _little(self.memory, "<f4")),
            "i": _little(self.slot_index, "<i4"),
            "w": self.slot_mass.shape[1],
            "x": _little(self.slot_mass, "<f4"),
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
            if f["v"] != VERSION:
                raise StateError(
                    f"user state: expected version {VERSION}, found {f['v']}; run vista summarize"
                )
            columns = {
                name: _unpack_column(c).astype(t)
                for (name, t), c in zip(COLUMNS.items(), f["t"], strict=True)
            }
            return UserState(
                signature=f["s"],
                count=f["n"],
                boundary=None if f["b"] is None else tuple(f["b"]),
                memory=None if f["m"] is None else _array(f["m"][1], "<f4").reshape(f["m"][0]),
                slot_index=_array(f["i"], "<i4"),
                slot_mass=_array(f["x"], "<f4").reshape(-1, f["w"]),
                tail=Events.of([len(columns["time"])], **columns),
            )
        except (KeyError, TypeError, ValueError, IndexError, msgpack.UnpackException) as error:
            raise StateError(
                f"user state: expected the fields of version {VERSION}, found {error!r}; run vista summarize"
            ) from error


def event_key(events: Events, row: int) -> EventKey:
    """Contract key of one row."""
    return tuple(int(getattr(events, name)[row]) for name in ORDER)


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
