"""The arithmetic of jagged batches: U owners with some rows each, N rows in all, an owner's rows together.

Three forms say the same and each is made from another here: ``lengths`` int64 [U], ``offsets`` int64 [U + 1] (the rows
of owner u are ``offsets[u]:offsets[u + 1]``), ``owners`` int64 [N] (whose row it is).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Lengths = np.ndarray | Sequence[int]


def offsets_of(lengths: Lengths) -> np.ndarray:
    """int64 [U + 1] from lengths [U]: starts at 0, ends at N."""
    lengths = np.asarray(lengths, np.int64)
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def owners_of(lengths: Lengths) -> np.ndarray:
    """int64 [N] from lengths [U]: 0 as often as the first says, then 1, and so on."""
    return np.repeat(np.arange(len(lengths)), np.asarray(lengths, np.int64))


def places_of(lengths: Lengths) -> np.ndarray:
    """int64 [N] from lengths [U]: the place of each row among those of its owner, from 0."""
    return rows_of(np.zeros(len(lengths), np.int64), lengths)


def rows_of(starts: np.ndarray, lengths: Lengths) -> np.ndarray:
    """int64 [N]: the rows ``starts[u]``, ``starts[u] + 1``, ... of every owner, ``lengths[u]`` of them, end to end."""
    offsets = offsets_of(lengths)
    return np.arange(offsets[-1]) + np.repeat(np.asarray(starts, np.int64) - offsets[:-1], lengths)


def starts_of(*columns: np.ndarray) -> np.ndarray:
    """int64 [U]: the first row of each run of rows that are equal in all of the columns [N]."""
    return np.flatnonzero(is_new(*columns))


def is_new(*columns: np.ndarray) -> np.ndarray:
    """bool [N]: the row differs from the row before in any of the columns [N]; the first row does."""
    new = np.zeros(len(columns[0]), bool)
    new[:1] = True
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return new


def lengths_between(starts: np.ndarray, end: int) -> np.ndarray:
    """int64 [U]: rows from each start to the next one, the last to ``end``."""
    return np.diff(np.append(starts, end))
