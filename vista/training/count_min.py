"""Count-min sketch: how often each item was seen in a stream, in fixed memory.

The log-Q correction of the sampled softmax needs the probability with which an item turns up as an in-batch
negative (Yi et al., RecSys 2019; UniPinRec, arXiv 2606.00422, section on losses). Over an open catalogue an
exact table has no bound; a count-min sketch (Cormode and Muthukrishnan 2005) overestimates by at most ``e /
width * total`` with probability ``1 - exp(-depth)``, and never underestimates.
"""

from __future__ import annotations

import numpy as np

from vista.errors import ConfigError

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class CountMin:
    """Counts of int64 items in ``depth`` rows of ``width`` counters (int64, numpy, on the host).

    Attributes:
        counts: int64 [depth, width].
        total: int, everything added so far.
    """

    def __init__(self, depth: int = 4, width: int = 1 << 16) -> None:
        if depth < 1 or width < 2 or width & (width - 1):
            raise ConfigError(
                f"count-min sketch: expected depth of 1 or more and a power of two as width, found {depth} "
                f"and {width}; "
                "edit the training configuration and run `vista train` again"
            )
        self.counts = np.zeros((depth, width), np.int64)
        self.total = 0
        self._seeds = (np.arange(1, depth + 1, dtype=np.uint64) * _GAMMA)[:, None]

    def _cells(self, items: np.ndarray) -> np.ndarray:
        """int64 [depth, n]: the counter of each item in each row (SplitMix64 finaliser, one seed per row)."""
        with np.errstate(over="ignore"):
            x = np.ascontiguousarray(items, np.int64).view(np.uint64)[None, :] + self._seeds
            x = (x ^ (x >> np.uint64(30))) * _MIX_1
            x = (x ^ (x >> np.uint64(27))) * _MIX_2
            x = x ^ (x >> np.uint64(31))
        return (x & np.uint64(self.counts.shape[1] - 1)).astype(np.int64)

    def add(self, items: np.ndarray) -> None:
        """Count every element of ``items`` (int64 [n]) once more."""
        cells = self._cells(items)
        width = self.counts.shape[1]
        for row, cell in zip(self.counts, cells, strict=True):
            row += np.bincount(cell, minlength=width)
        self.total += len(items)

    def count(self, items: np.ndarray) -> np.ndarray:
        """int64 [n]: at least the true count of each item."""
        cells = self._cells(items)
        return np.take_along_axis(self.counts, cells, axis=1).min(axis=0)

    def probability(self, items: np.ndarray) -> np.ndarray:
        """float64 [n]: estimated share of the stream, add-one smoothed so that an unseen item is rare, not
        absent."""
        return (self.count(items) + 1.0) / (self.total + 1.0)

    def merge(self, other: CountMin) -> None:
        """Add the counts of a sketch of the same shape (of another worker, say)."""
        if other.counts.shape != self.counts.shape:
            raise ConfigError(
                f"count-min sketch: expected shape {self.counts.shape}, found {other.counts.shape}; "
                "train every worker with one configuration (`vista train`)"
            )
        self.counts += other.counts
        self.total += other.total

    def state(self) -> dict[str, np.ndarray | int]:
        """What a checkpoint keeps."""
        return {"counts": self.counts.copy(), "total": self.total}

    def restore(self, state: dict[str, np.ndarray | int]) -> None:
        self.counts = np.array(state["counts"], np.int64)
        self.total = int(state["total"])
