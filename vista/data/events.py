"""``Events``: histories of many users as one jagged batch of columns, the unit every part exchanges.

Order is part of the contract: within a user, events ascend by ``(time, request, item, action, surface)``.
This order is total over distinct events, so it does not depend on how the events arrived.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vista.errors import DataError
from vista.jagged import offsets_of, owners_of, rows_of

COLUMNS: dict[str, np.dtype] = {
    "item": np.dtype(np.int64),
    "action": np.dtype(np.int32),
    "surface": np.dtype(np.int32),
    "time": np.dtype(np.int64),
    "request": np.dtype(np.int64),
}
"""Column name to dtype. ``action`` is a bit mask over the action vocabulary (bit a set: action a happened);
``time`` is milliseconds since the Unix epoch; ``request`` is 0 where the log has none."""

ORDER: tuple[str, ...] = ("time", "request", "item", "action", "surface")
"""Sort key within a user, most significant first."""


def whole(what: str, given: Any, dtype: DTypeLike = np.int64) -> np.ndarray:
    """Numbers [N] as a contiguous array of ``dtype``, an integer type.

    Raises:
        DataError: names, dates, masked values, numbers that ``dtype`` cannot hold, or floats whose digits were lost.
    """
    if type(given) is np.ndarray and given.dtype == dtype and given.ndim == 1:
        return np.ascontiguousarray(given)
    try:
        column = np.asarray(given)
        if column.dtype.kind == "O":  # what is in it decides
            column = np.array(column.tolist())
    except ValueError as error:
        raise DataError(f"{what}: expected one dimension of {np.dtype(dtype)}, found {error}") from error
    kind, odd = column.dtype.kind, np.ones(column.shape, bool)
    if kind in "fiub" and column.ndim == 1:
        with np.errstate(invalid="ignore"):
            odd = column.astype(dtype) != column
        if kind == "f":
            odd |= np.abs(column) > 2.0 ** (np.finfo(column.dtype).nmant + 1)
        if isinstance(given, np.ma.MaskedArray):
            odd |= np.ma.getmaskarray(given)
    if odd.any() or column.ndim != 1:
        found: Any = "names" if kind in "USTO" else column.shape
        if kind not in "USTO" and column.ndim == 1:
            found = np.ma.asanyarray(given)[odd].flat[0]
        raise DataError(
            f"{what}: expected whole numbers of {np.dtype(dtype)}, found {found}; `Bundle.encode` makes a model's "
            f"numbers of items, actions and surfaces"
        )
    return np.ascontiguousarray(column, dtype)


@dataclass(frozen=True, slots=True)
class Events:
    """Jagged batch of U histories with N events in all.

    Attributes:
        offsets: int64 [U + 1]; the events of user u are rows ``offsets[u]:offsets[u + 1]``.
        item: int64 [N].
        action: int32 [N], bit mask.
        surface: int32 [N].
        time: int64 [N], milliseconds.
        request: int64 [N].
    """

    offsets: NDArray[np.int64]
    item: NDArray[np.int64]
    action: NDArray[np.int32]
    surface: NDArray[np.int32]
    time: NDArray[np.int64]
    request: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.offsets.ndim != 1 or len(self.offsets) < 1 or self.offsets[0] != 0:
            raise ValueError("offsets must be int64 [U + 1] and start at 0")
        for name in COLUMNS:
            if len(getattr(self, name)) != self.offsets[-1]:
                raise ValueError(
                    f"column {name} has {len(getattr(self, name))} rows, offsets end at {self.offsets[-1]}"
                )

    @property
    def users(self) -> int:
        """U."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 [U]: events per user."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        """N, the number of events."""
        return int(self.offsets[-1])

    @property
    def columns(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in COLUMNS}

    @staticmethod
    def empty(users: int = 0) -> Events:
        return Events(np.zeros(users + 1, np.int64), **{n: np.zeros(0, t) for n, t in COLUMNS.items()})

    @staticmethod
    def of(lengths: Sequence[int] | np.ndarray, **columns: np.ndarray) -> Events:
        """Build from per-user lengths and columns; missing ``action``, ``surface``, ``request`` are 1, 0, 0.

        Raises:
            DataError: as :func:`whole`.
            ValueError: a column of another length.
        """
        offsets = offsets_of(lengths)
        for name, value in (("action", 1), ("surface", 0), ("request", 0)):
            if name not in columns:
                columns[name] = np.full(offsets[-1], value)
        return Events(offsets, **{n: whole(f"column {n}", columns[n], t) for n, t in COLUMNS.items()})

    def user(self, u: int) -> Events:
        """The history of one user, as a batch of one (views, no copy)."""
        return self.rows(int(self.offsets[u]), int(self.offsets[u + 1]))

    def rows(self, start: int, stop: int) -> Events:
        """Rows ``start:stop`` as one history (views, no copy)."""
        offsets = np.array([0, stop - start], np.int64)
        return Events(offsets, **{n: c[start:stop] for n, c in self.columns.items()})

    def select(self, users: np.ndarray) -> Events:
        """The histories of ``users`` (int64 [V], any order, repeats allowed), gathered into a new batch."""
        users = np.asarray(users, np.int64)
        starts, lengths = self.offsets[users], self.lengths[users]
        return self.slices(starts, starts + lengths)

    def slices(self, starts: np.ndarray, stops: np.ndarray) -> Events:
        """One history per (start, stop) row range (int64 [V] each), gathered into a new batch."""
        lengths = np.asarray(stops, np.int64) - starts
        index = rows_of(starts, lengths)
        return Events(offsets_of(lengths), **{n: c[index] for n, c in self.columns.items()})

    def sorted(self) -> Events:
        """The same histories with every user's events in contract order."""
        user = owners_of(self.lengths)
        index = np.lexsort([getattr(self, name) for name in reversed(ORDER)] + [user])
        return Events(self.offsets, **{n: c[index] for n, c in self.columns.items()})

    @staticmethod
    def concat(batches: Iterable[Events]) -> Events:
        """Batches one after the other: users of the first, then of the second."""
        batches = list(batches)
        if not batches:
            return Events.empty()
        lengths = np.concatenate([b.lengths for b in batches])
        return Events.of(lengths, **{n: np.concatenate([getattr(b, n) for b in batches]) for n in COLUMNS})

    @staticmethod
    def append(first: Events, second: Events) -> Events:
        """User by user, the events of ``first`` followed by those of ``second`` (both have U users)."""
        if first.users != second.users:
            raise ValueError(f"append joins batches of as many users; got {first.users} and {second.users}")
        both = Events.concat([first, second])
        u = first.users
        order = np.stack([np.arange(u), np.arange(u) + u], axis=1).ravel()
        joined = both.select(order)
        return Events(joined.offsets[::2].copy(), **joined.columns)


@dataclass(frozen=True)
class UserBatch:
    """Consecutive users in key order; ``continues``: the last one goes on as the first of the next batch.

    Attributes:
        users: int64 [U], or object [U] of str.
        events: their histories, U of them, in contract order.
    """

    users: np.ndarray
    events: Events
    continues: bool = False
