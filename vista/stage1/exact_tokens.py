"""Exact tokens as a group of stage 1: two tables of each user, folded by NumPy or where the model is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vista.data.events import Events
from vista.jagged import owners_of, places_of
from vista.ops.upload import uploaded
from vista.stage1.groups import GroupShape, Parts, TableShape, Work
from vista.stage1.tables import Entries, Tables
from vista.stage1.tables_torch import TableRows, TorchTables
from vista.stage1.tokens import BITS, CLUSTERS, ITEMS, MASSES, NUMBERS, End, ExactTokens


class ExactTokenGroup:
    """See :class:`vista.stage1.groups.TokenGroup`.

    Attributes:
        in_torch: fold in torch where the model is, rather than by NumPy; None: where the model is on a GPU.
    """

    def __init__(self, tokens: ExactTokens) -> None:
        self.tokens = tokens
        self.in_torch: bool | None = None

    def groups(self) -> list[GroupShape]:
        return [
            GroupShape(name, rows, self.tokens.width, "int64" if name in BITS else "log8")
            for name, rows in self.tokens.rows.items()
        ]

    def tables(self) -> list[TableShape]:
        t = self.tokens
        lives = tuple(None if h == float("inf") else h for h in t.half_lives)
        found = [TableShape(ITEMS, MASSES, t.capacity, lives, t.deciding)]
        if t.told_table:
            return [*found, TableShape("", CLUSTERS, t.told, lives, t.deciding, NUMBERS, t.clusters)]
        return found + ([TableShape("", CLUSTERS, t.clusters, lives, t.deciding)] if t.clusters else [])

    def modules(self) -> Iterable[nn.Module]:
        # what a state depends on: which item is in which cluster; not the clusters' vectors
        return [self.tokens.cluster_of]

    def _tables(self) -> dict[str, Any]:
        tokens, device = self.tokens, self.tokens.cluster_vectors.device
        found = {ITEMS: tokens.item_table, CLUSTERS: tokens.cluster_table}
        tables = {name: table for name, table in found.items() if table is not None}
        if not (device.type == "cuda" if self.in_torch is None else self.in_torch):
            return tables
        return {name: TorchTables(table, device, name == CLUSTERS) for name, table in tables.items()}

    def _keyed(self, name: str, table: Tables | TorchTables, events: Events, before: np.ndarray) -> Any:
        """Keys and facts, where the table is, of events whose U users had so many ``before`` (int64 [U])."""
        facts = np.zeros((0, len(events)), np.int64)
        if kept := self.tokens.facts[name]:
            number = before[owners_of(events.lengths)] + places_of(events.lengths)
            facts = np.stack([number, events.time // 1_000, events.action][:kept])
        if isinstance(table, Tables):
            return events.item if name == ITEMS else self.tokens.cluster_numpy(events.item), facts
        item, told = uploaded([events.item, facts], table.device)
        return item if name == ITEMS else self.tokens.cluster(item), told

    def _packed(self, served: dict[str, Any], end: End) -> dict[str, Any]:
        """Tables as groups of a record: arrays, or tensors where they were folded in torch."""
        torch_ = isinstance(served[ITEMS], TableRows)
        pack = self.tokens.pack_rows if torch_ else self.tokens.pack
        return pack(served[ITEMS], served.get(CLUSTERS), end)

    def advance(self, work: Work) -> tuple[dict[str, np.ndarray], dict[int, Parts]]:
        users = np.flatnonzero((work.chunks > 0) | (work.count > 0))  # most have no full chunk
        place = np.full(len(work.given) + 1, len(users))
        place[users] = np.arange(len(users))
        new, tails, count = work.folded(users), work.tails(work.emitted), work.count
        folded = (count + work.chunks * work.chunk)[work.emitted]
        end = End(folded + tails.lengths, work.newest_ms(work.emitted) // 1_000)
        served: dict[str, Any] = {}
        kept: dict[int, Parts] = {int(u): {} for u in users[work.chunks[users] > 0]}
        for name, table in self._tables().items():
            given = table.given(_loaded(name, [work.given[u] for u in users], table.columns))
            entries = table.fold(given, new, *self._keyed(name, table, new, count[users]))
            found = entries.host()
            for u in kept:
                rows = slice(int(found.offsets[place[u]]), int(found.offsets[place[u] + 1]))
                kept[u] |= {f"{name}.key": found.key[rows], f"{name}.mass": found.mass[:, rows]}
            # one empty table at the end, for those who have none
            more = table.concat([entries, table.given(Entries.empty(1, table.columns))])
            served[name] = table.after(
                more.select(place[work.emitted]), tails, *self._keyed(name, table, tails, folded)
            )
        found = self._packed(served, end)
        return {name: np.asarray(torch.as_tensor(x).cpu()) for name, x in found.items()}, kept

    def prefixes(
        self, events: Events, cuts: np.ndarray, user_of: np.ndarray, exact: bool
    ) -> dict[str, Tensor]:
        device = self.tokens.cluster_vectors.device
        served = {
            name: _prefixes(table, events, functools.partial(self._keyed, name, table), cuts, user_of)
            for name, table in self._tables().items()
        }
        last = events.offsets[user_of] + cuts - 1
        end = End(cuts, np.where(cuts > 0, np.append(events.time, 0)[last], 0) // 1_000)
        return {name: torch.as_tensor(x, device=device) for name, x in self._packed(served, end).items()}


def _prefixes(
    table: Any,
    events: Events,
    keyed: Callable[[Events, np.ndarray], Any],
    cuts: np.ndarray,
    user_of: np.ndarray,
) -> Any:
    """Tables after the first ``cuts[k]`` events of user ``user_of[k]``; every cut exact."""
    c = table.chunk
    whole = cuts // c
    none = Entries.empty(events.users, table.columns)
    entries, at = table.given(none), np.zeros(events.users, np.int64)
    pieces, order = [], []
    for n in np.unique(whole):
        rows = np.flatnonzero(whole == n)
        goal = at.copy()
        goal[user_of[whole >= n]] = n
        start = events.offsets[:-1]
        new = events.slices(start + at * c, start + goal * c)
        entries, at = table.fold(entries, new, *keyed(new, at * c)), goal
        first = start[user_of[rows]]
        tails = events.slices(first + n * c, first + cuts[rows])
        pieces.append(table.after(entries.select(user_of[rows]), tails, *keyed(tails, whole[rows] * c)))
        order.append(rows)
    place = np.argsort(np.concatenate(order)) if order else cuts
    return table.concat(pieces).select(place)


def _loaded(name: str, given: list, columns: int) -> Entries:
    """Tables that states kept; empty where there is no state."""
    none = np.zeros(0, np.int64)
    key = [s.parts.get(f"{name}.key", none) if s else none for s in given]
    if not key:
        return Entries.empty(0, columns)
    empty = np.zeros((columns, 0), np.int64)
    mass = [s.parts.get(f"{name}.mass", empty) if s else empty for s in given]
    offsets = np.concatenate([[0], np.cumsum([len(k) for k in key])])
    return Entries(offsets, np.concatenate(key), np.concatenate(mass, 1))
