"""The arithmetic of :mod:`vista.stage1.tables` in torch, bit for bit: on a GPU, histories are folded there.

A user's table is a row of K places. A chunk of every user is then one sort of [U, K + C] keys, one sum over equal keys
and one choice of the K heaviest: fixed shapes, no loop over users, and nothing asked of the device before the result is
read. Where keys are numbers below K, as clusters are, the places are the counters themselves and nothing is sorted.

Letters: U users, K capacity, H horizons, F facts, C chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vista.data.events import Events
from vista.jagged import offsets_of, owners_of, places_of
from vista.ops.upload import uploaded
from vista.stage1.tables import _FACTOR_BITS, _MASS_BITS, Entries, Horizons, Tables

NO_KEY = np.iinfo(np.int64).max
"""Fills places without an entry; it may be a key as well."""

_CELLS = 1 << 25
"""Integers of tables worked on at once, 256 MiB; a step holds some four times that."""


@dataclass(frozen=True, slots=True)
class TableRows:
    """Tables of U users, a row each.

    Attributes:
        key: int64 [U, K], ascending; places without an entry come last, or hold no count of their key.
        mass: int64 [H + F + 1, U, K]: masses, facts of the newest event, then 1 where there is an entry; 0 elsewhere.
    """

    key: Tensor
    mass: Tensor

    @property
    def users(self) -> int:
        return len(self.key)

    def select(self, users: np.ndarray) -> TableRows:
        """The tables of ``users`` (int64 [V], any order, repeats allowed)."""
        (index,) = uploaded([users], self.key.device)
        return TableRows(self.key[index], self.mass[:, index])

    def host(self) -> Entries:
        """The same as arrays, in one copy."""
        key, *mass = torch.cat([self.key[None], self.mass]).cpu().numpy()
        there = mass.pop() > 0
        return Entries(offsets_of(there.sum(1)), key[there], np.stack([m[there] for m in mass]))


class TorchTables:
    """:class:`vista.stage1.tables.Tables` on a device.

    Args:
        counters: keys are 0 to K - 1.
    """

    def __init__(self, tables: Tables, device: torch.device, counters: bool) -> None:
        self.horizons, self.capacity, self.chunk = tables.horizons, tables.capacity, tables.chunk
        self.columns, self.device, self.counters = tables.columns, device, counters
        self._weight, self._keep = uploaded([self.horizons.weight, self.horizons.keep], device)

    def given(self, entries: Entries) -> TableRows:
        """Tables as this arithmetic takes them, in one copy."""
        users = entries.users
        lengths = np.diff(entries.offsets)
        owner = owners_of(lengths)
        place = entries.key if self.counters else places_of(lengths)
        cells = np.zeros((self.columns + 2, users, self.capacity), np.int64)
        cells[0] = np.arange(self.capacity) if self.counters else NO_KEY
        cells[0, owner, place], cells[1:-1, owner, place], cells[-1, owner, place] = (
            entries.key,
            entries.mass,
            1,
        )
        (found,) = uploaded([cells], self.device)
        return TableRows(found[0], found[1:])

    def concat(self, parts: list[TableRows]) -> TableRows:
        """Users of several tables one after the other."""
        if not parts:
            return self.given(Entries.empty(0, self.columns))
        return TableRows(torch.cat([p.key for p in parts]), torch.cat([p.mass for p in parts], 1))

    def fold(self, held: TableRows, events: Events, keys: Tensor, facts: Tensor | None = None) -> TableRows:
        """Tables after whole chunks: U histories of a multiple of C events each, keys int64 [N] and facts int64 [F, N]
        on the device."""
        chunks = events.lengths // self.chunk
        if not chunks.any():
            return held
        order = np.argsort(-chunks, kind="stable")  # those that are done leave from the end
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        first, chunks = events.offsets[:-1][order], chunks[order]
        (start,) = uploaded([first[:, None] + np.arange(self.chunk)], self.device)
        more = self._weight.flip(1)[:, None]
        done: list[TableRows] = []
        now = held.select(order)
        for wave in range(int(chunks[0])):
            left = int(np.searchsorted(-chunks, -wave, side="left"))  # users with more than ``wave`` chunks
            if left < now.users:
                done.append(TableRows(now.key[left:], now.mass[:, left:]))
                now = TableRows(now.key[:left], now.mass[:, :left])
            rows = start[:left] + wave * self.chunk
            mass = self._told(more.expand(-1, left, -1), facts, rows, torch.ones_like(rows))
            now = self._merged(now, keys[rows], mass, self._keep[:, -1:, None])
        return self.concat([now, *done[::-1]]).select(back)

    def after(self, held: TableRows, tails: Events, keys: Tensor, facts: Tensor | None = None) -> TableRows:
        """Tables with fewer than C more events on top of each (U histories, keys int64 [N] and facts int64 [F, N] on
        the device)."""
        lengths, longest = tails.lengths, int(tails.lengths.max(initial=0))
        if not longest:
            return held
        later = lengths[:, None] - 1 - np.arange(longest)  # negative: no event
        place = np.minimum(tails.offsets[:-1, None] + np.arange(longest), len(tails) - 1)
        rows, ages, ends = uploaded([place, later, lengths], self.device)
        real = ages >= 0
        key = torch.where(real, keys[rows], 0 if self.counters else NO_KEY)
        mass = self._told(self._weight[:, ages.clamp_min(0)] * real, facts, rows, real.long())
        return self._merged(held, key, mass, self._keep[:, ends, None])

    def _told(self, mass: Tensor, facts: Tensor | None, rows: Tensor, there: Tensor) -> Tensor:
        """Columns int64 [H + F + 1, U, M] of events int64 [U, M]: their masses, facts, and whether there is one."""
        return torch.cat([mass, *([facts[:, rows]] if facts is not None else []), there[None]])

    def _merged(self, held: TableRows, key: Tensor, mass: Tensor, keep: Tensor) -> TableRows:
        """Tables after masses int64 [H + F + 1, U, M] came to their keys int64 [U, M], and old ones decayed."""
        size = len(mass) * (self.capacity + key.shape[1])
        users = max(1, _CELLS // max(size, 1))
        if held.users > users:
            parts = []
            for a in range(0, held.users, users):
                b = slice(a, a + users)
                kept = keep[:, b] if keep.shape[1] > 1 else keep
                parts.append(self._merged(TableRows(held.key[b], held.mass[:, b]), key[b], mass[:, b], kept))
            return self.concat(parts)
        h = len(self.horizons)
        left = (held.mass[:h] * keep + (1 << (_FACTOR_BITS - 1))) >> _FACTOR_BITS
        old = torch.cat([left, held.mass[h:]])
        if self.counters:
            sums = old.scatter_add(2, key.expand_as(mass), mass)
            if len(mass) > h + 1:
                last = torch.where(mass[-1] > 0, torch.arange(key.shape[1], device=key.device), -1)
                newest = torch.full_like(held.key, -1).scatter_reduce_(1, key, last, "amax")
                found = mass[h:-1].gather(2, newest.clamp_min(0).expand(len(mass) - h - 1, -1, -1))
                sums[h:-1] = torch.where(newest >= 0, found, old[h:-1])
            return TableRows(held.key, torch.cat([sums[:-1], sums[-1:].clamp_max(1)]))
        key, order = torch.cat([held.key, key], 1).sort(1)
        both = torch.cat([old, mass], 2)
        both = both.gather(2, order.expand_as(both))
        # sums of integers are the same in any order: equal keys add up at the place of their number among keys
        new = torch.ones_like(key)
        new[:, 1:] = key[:, 1:] != key[:, :-1]
        place = new.cumsum(1) - 1
        keys = torch.full_like(key, NO_KEY).scatter_(1, place, key)
        sums = torch.zeros_like(both).scatter_add_(2, place.expand_as(both), both)
        if len(both) > h + 1:
            # before sorting the events stood behind the table in their order: the last of a key is its newest
            where = torch.arange(key.shape[1], device=key.device)
            last = torch.where(both[-1] > 0, order, -1)
            newest = torch.full_like(key, -1).scatter_reduce_(1, place, last, "amax")
            inverse = torch.empty_like(order).scatter_(1, order, where.expand_as(order))
            found = inverse.gather(1, newest.clamp_min(0)).expand(len(both) - h - 1, -1, -1)
            sums[h:-1] = both[h:-1].gather(2, found) * (newest >= 0)
        top = heaviest(self.horizons, TableRows(keys, sums), self.capacity)
        return TableRows(top.key, torch.cat([top.mass[:-1], top.mass[-1:].clamp_max(1)]))


def heaviest(horizons: Horizons, rows: TableRows, count: int) -> TableRows:
    """The ``count`` heaviest entries of each user, ties to the smaller key, in the order they stood in; places without
    an entry come last."""
    width = rows.key.shape[1]
    column = torch.arange(width, device=rows.key.device)
    there = rows.mass[-1] > 0
    # the smaller key is the one before: all ranks differ
    rank = (rows.mass[horizons.deciding] << (62 - _MASS_BITS)) + (width - column)
    top = torch.where(there, rank, -column).topk(count, 1, sorted=False)[1]
    top = (top + width * ~there.gather(1, top)).sort(1)[0] % width
    return TableRows(rows.key.gather(1, top), rows.mass.gather(2, top.expand(len(rows.mass), -1, -1)))


def floats(horizons: Horizons, rows: TableRows) -> Tensor:
    """Masses as counts of events, float32 [U, K, H]."""
    (unit,) = uploaded([horizons.unit.astype(np.float64)], rows.mass.device)
    return (rows.mass[: len(unit)] / unit[:, None, None]).float().permute(1, 2, 0)
