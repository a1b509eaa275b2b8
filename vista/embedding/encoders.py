"""Items and events as vectors of width D.

An item is the concatenation of one row from each of ``tables`` hash tables, so two items share a vector only
if they collide in every table, and an item never seen in training has a vector like any other. A catalogue
may add content rows (text, image, ...; ``content``), which are projected to D and added. An item that training has
never seen is its content alone: what the tables hold for it is of other items. So that content can stand alone, a
step of training hides the table rows of every fifth item that has content (as DropoutNet does, NeurIPS 2017).

An event for stage 1 depends on the event itself and on its past (the gap to the previous event), never on
later events or on "now": otherwise layer states could not be kept.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import DTypeLike
from torch import Tensor, nn

from vista.config import ModelConfig
from vista.data.events import Events
from vista.embedding.catalogue_column import ItemTable
from vista.ops.hashing import bucket_torch, buckets_torch

_DAY_MS = 86_400_000
_GAP_SCALES_MS = (1_000.0, 60_000.0, 3_600_000.0, float(_DAY_MS))
_TIME_FEATURES = 4 + len(_GAP_SCALES_MS)
_ITEM_SALT = 0x17E3
_HIDDEN_SALT = 0xC01D
_AT_ONCE = 65_536
HIDDEN = 5
"""One in so many items with content is its content alone for a step of training."""

NO_TIME = np.iinfo(np.int64).min
"""Stands for "no event before" where a time in milliseconds is expected (times before 1970 are negative)."""


def gaps(events: Events, previous_ms: np.ndarray | None = None) -> np.ndarray:
    """Milliseconds since the user's previous event, int64 [N], at least 0.

    ``previous_ms`` int64 [U] is the time of the event before the first row of each user; ``NO_TIME``, or None
    for all, says that there was none, and the first gap is 0.
    """
    gap = np.zeros(len(events), np.int64)
    if not len(events):
        return gap
    gap[1:] = events.time[1:] - events.time[:-1]
    filled = events.lengths > 0
    first = events.offsets[:-1][filled]
    gap[first] = 0
    if previous_ms is not None:
        before = np.asarray(previous_ms, np.int64)[filled]
        known = before != NO_TIME
        gap[first[known]] = events.time[first[known]] - before[known]
    return np.maximum(gap, 0)


class ItemEncoder(nn.Module):
    """Items as vectors: hashed tables, concatenated, plus projected content where the catalogue has it.

    Rows start at N(0, 1/D): vectors of about unit length, nearly orthogonal, so that a read-out by inner
    product finds the same item before any training.

    Attributes:
        turn: number of the step of training, which decides whose table rows it hides; None hides none.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        e = config.embedding
        self.width, self.tables, self.rows = config.width, e.tables, e.rows
        self.sparse_gradients = False  # of the rows; a training step looks them up a dozen times
        rows = torch.randn(e.tables * e.rows, config.width // e.tables)
        self.weight = nn.Parameter(rows * config.width**-0.5)
        self.content = ItemTable((e.content_width,), torch.float32) if e.content_width else None
        self.alone = ItemTable((), torch.bool) if e.content_width else None
        self.project = nn.Linear(e.content_width, config.width, bias=False) if e.content_width else None
        if self.project is not None:  # rows of unit length stay so
            nn.init.normal_(self.project.weight, std=config.width**-0.5)
        self.turn: int | None = None

    def set_content(self, items: np.ndarray, rows: np.ndarray, alone: np.ndarray | None = None) -> None:
        """Content rows of the catalogue: int64 [M], float32 [M, content_width].

        Args:
            alone: bool [M], items that are their content alone; none by default.

        Raises:
            DataError: shapes disagree, an item appears twice, or the configuration has ``content_width`` 0.
        """
        table = self.content if self.content is not None else ItemTable((0,), torch.float32)
        table.set(items, rows)
        if self.alone is not None:
            self.alone.set(items, np.zeros(len(items), bool) if alone is None else alone)

    def forward(self, item: Tensor) -> Tensor:
        """``item`` int64 [...] -> float32 [..., D]."""
        index = buckets_torch(item, range(_ITEM_SALT, _ITEM_SALT + self.tables), self.rows)
        for table, row in enumerate(index.unbind(-1)):
            row += table * self.rows
        vector = F.embedding(index, self.weight, sparse=self.sparse_gradients).flatten(-2)
        if self.content is not None and len(self.content):
            assert self.alone is not None and self.project is not None  # they come together
            row, known = self.content(item)
            # a bundle of before knows of none
            alone = self.alone.values[row] & known if len(self.alone) else torch.zeros_like(known)
            if self.turn is not None:
                alone = alone | ((bucket_torch(item, _HIDDEN_SALT + self.turn, HIDDEN) == 0) & known)
            told = self.project(self.content.values[row]) * known.unsqueeze(-1)
            vector = vector.masked_fill(alone.unsqueeze(-1), 0.0) + told
        return vector

    def vector(self, item: Tensor) -> Tensor:
        """L2-normalised vectors for retrieval and matching, float32 [..., D]."""
        return F.normalize(self(item), dim=-1)

    @torch.inference_mode()
    def vectors(self, items: np.ndarray, dtype: DTypeLike = np.float32) -> np.ndarray:
        """The same of many items (int64 [M]) as an array [M, D] of ``dtype``, some at a time."""
        found = np.empty((len(items), self.width), dtype)
        for a in range(0, len(items), _AT_ONCE):
            some = torch.from_numpy(items[a : a + _AT_ONCE].copy()).to(self.weight.device)
            found[a : a + _AT_ONCE] = self.vector(some).float().cpu().numpy()
        return found


class EventEncoder(nn.Module):
    """Events as vectors: item + action bits (or the MASK class) + surface + time of day, of week, and gap."""

    def __init__(self, config: ModelConfig, items: ItemEncoder):
        super().__init__()
        self._items = (items,)  # in a tuple: the model owns it, and saves it once
        self.actions = len(config.actions)
        self.surfaces = config.embedding.surfaces
        std = 0.3 * config.width**-0.5
        self.surface = nn.Parameter(torch.randn(self.surfaces, config.width) * std)
        # one matrix for all dense features: A action bits, the MASK class, then time
        self.features = nn.Parameter(torch.randn(self.actions + 1 + _TIME_FEATURES, config.width) * std)

    @property
    def items(self) -> ItemEncoder:
        """The item encoder, owned by the model."""
        return self._items[0]

    def forward(
        self,
        item: Tensor,
        action: Tensor,
        surface: Tensor,
        time: Tensor,
        gap: Tensor,
        masked: Tensor | None = None,
    ) -> Tensor:
        """All inputs integer [...], ``time`` and ``gap`` in ms, ``masked`` bool [...] -> float32 [..., D].

        A masked event keeps its item and loses its action: the bits are replaced by the MASK class
        (masked action modelling, arXiv 2606.00422).
        """
        return self.items(item) + self.beside_item(action, surface, time, gap, masked)

    def beside_item(
        self, action: Tensor, surface: Tensor, time: Tensor, gap: Tensor, masked: Tensor | None = None
    ) -> Tensor:
        """What :meth:`forward` adds to the items, float32 [..., D]."""
        bits = (action.unsqueeze(-1) >> torch.arange(self.actions, device=action.device)) & 1
        bits, hidden = bits.float(), torch.zeros_like(bits[..., :1], dtype=torch.float32)
        if masked is not None:
            hidden = masked.float().unsqueeze(-1)
            bits = bits * (1 - hidden)
        dense = torch.cat([bits, hidden, self._time(time, gap)], dim=-1)
        rows = F.embedding(surface.long() % self.surfaces, self.surface)
        return rows + dense.to(self.features.dtype) @ self.features

    @staticmethod
    def _time(time: Tensor, gap: Tensor) -> Tensor:
        day = (time % _DAY_MS).to(torch.float32) * (2 * math.pi / _DAY_MS)
        week = (time % (7 * _DAY_MS)).to(torch.float32) * (2 * math.pi / (7 * _DAY_MS))
        gap = gap.clamp(min=0).to(torch.float32)
        scaled = [torch.log1p(gap / scale) * 0.25 for scale in _GAP_SCALES_MS]
        return torch.stack([day.sin(), day.cos(), week.sin(), week.cos(), *scaled], dim=-1)
