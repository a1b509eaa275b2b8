"""Count-min sketch: how often each item was seen in a stream, in fixed memory.

The log-Q correction of the sampled softmax needs the probability with which an item turns up as an in-batch
negative (Yi et al., RecSys 2019; UniPinRec, arXiv 2606.00422, section on losses). Over an open catalogue an
exact table has no bound; a count-min sketch (Cormode and Muthukrishnan 2005) overestimates by at most ``e /
width * total`` with probability ``1 - exp(-depth)``, and never underestimates.
"""

from __future__ import annotations

import numpy as np

from vista.errors import ConfigError
from vista.ops.hashing import mix_numpy


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
        self._rows = range(1, depth + 1)

    def _cells(self, items: np.ndarray) -> np.ndarray:
        """int64 [depth, n]: the counter of each item in each row (SplitMix64 finaliser, one seed per row)."""
        x = np.stack([mix_numpy(items, row) for row in self._rows])
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
