"""Slots as a group of stage 1."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from vista.data.events import Events
from vista.stage1.groups import GroupShape, Parts, TableShape, Work
from vista.stage1.slots import SlotMemory, SlotState

SLOTS, INDEX, MASS = "slots", "slots.index", "slots.mass"


class SlotTokenGroup:
    """Masses in hashed buckets (:mod:`vista.stage1.slots`)."""

    def __init__(self, memory: SlotMemory) -> None:
        self.memory = memory

    def groups(self) -> list[GroupShape]:
        return [GroupShape(SLOTS, self.memory.tokens, self.memory.width, "log8")]

    def tables(self) -> list[TableShape]:
        return []

    def modules(self) -> Iterable[nn.Module]:
        return []  # the model's slots are part of every signature

    def advance(self, work: Work) -> tuple[dict[str, np.ndarray], dict[int, Parts]]:
        # most users of a bucket have no full chunk: nothing is kept for them, so nothing is held for them
        users = np.flatnonzero((work.chunks > 0) | (work.count > 0))
        folded = self._loaded(work, users)
        self.memory.fold(folded, work.folded(users))
        row_of = dict(zip(users.tolist(), range(len(users)), strict=True))
        state = self.memory.empty(len(work.emitted))
        for i, u in enumerate(work.emitted.tolist()):
            if u in row_of:
                row = row_of[u]
                state.mass[i], state.last_ms[i] = folded.mass[row], folded.last_ms[row]
                state.count[i] = folded.count[row]
        self.memory.fold(state, work.tails(work.emitted))
        kept = {u: _sparse(folded.mass[row]) for u, row in row_of.items() if work.chunks[u]}
        return {SLOTS: self.memory.serve(state)}, kept

    def _loaded(self, work: Work, users: np.ndarray) -> SlotState:
        state, count = self.memory.empty(len(users)), work.count
        for row, u in enumerate(users.tolist()):
            if count[u]:
                given = work.given[u]
                state.mass[row, given.parts[INDEX]] = given.parts[MASS]
                state.count[row], state.last_ms[row] = count[u], given.boundary[0]
        return state

    def prefixes(
        self, events: Events, cuts: np.ndarray, user_of: np.ndarray, exact: bool
    ) -> dict[str, torch.Tensor]:
        return {SLOTS: torch.from_numpy(self._prefixes(events, cuts, user_of))}

    def _prefixes(self, events: Events, cuts: np.ndarray, user_of: np.ndarray) -> np.ndarray:
        """Tokens float32 [K, S_slot, D] of prefixes; every cut exact."""
        slots = self.memory
        order = np.lexsort([cuts, user_of])
        user, cut = user_of[order], cuts[order]
        nth = np.arange(len(order)) - np.searchsorted(user, user)
        out = np.zeros((len(order), slots.tokens, slots.width), np.float32)
        state = slots.empty(events.users)
        at = np.zeros(events.users, np.int64)
        # the j-th cut of every user in one update
        for round_ in range(int(nth.max(initial=-1)) + 1):
            rows = np.flatnonzero(nth == round_)
            who = user[rows]
            part = SlotState(state.mass[who], state.last_ms[who], state.count[who])
            start = events.offsets[who]
            slots.fold(part, events.slices(start + at[who], start + cut[rows]))
            state.mass[who], state.last_ms[who], state.count[who] = part.mass, part.last_ms, part.count
            at[who] = cut[rows]
            out[order[rows]] = slots.serve(part)
        return out


def _sparse(mass: np.ndarray) -> Parts:
    """Buckets with any mass, and their masses."""
    held = mass[:, 0] > 0
    for horizon in range(1, mass.shape[1]):  # column by column: a reduction over so few is slow
        held |= mass[:, horizon] > 0
    index = np.flatnonzero(held)
    return {INDEX: index, MASS: mass[index]}
