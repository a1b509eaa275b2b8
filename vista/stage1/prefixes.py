"""Summaries of many prefixes of each history in one pass: what training reads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from vista.data.events import Events
from vista.embedding.encoders import gaps
from vista.stage1.packing import Strands
from vista.stage1.slots import SlotMemory, SlotState

Run = Callable[..., tuple[torch.Tensor, dict[int, torch.Tensor]]]


def prefix_seeds(
    run: Run, c: int, limit: int, events: Events, cuts: np.ndarray, user_of: np.ndarray, exact: bool
) -> torch.Tensor:
    """Seed tokens [K, S, D] of prefixes, see ``Summarizer.prefixes``.

    Args:
        run: ``Summarizer.run``.
        c: C, 0 for the full form.
        limit: events before a user's last cut that gradients go through, in whole chunks; 0 for all.
    """
    if not c:
        first = Strands(
            events.offsets[user_of], *np.zeros((2, len(cuts)), np.int64), np.arange(len(cuts)), cuts
        )
        return run(events, gaps(events), first, {})[0]
    whole = cuts // c
    if not exact:
        cuts = np.where(whole > 0, whole * c, cuts)
    furthest = np.zeros(events.users, np.int64)
    np.maximum.at(furthest, user_of, whole)
    gap = gaps(events)
    skipped = np.maximum(furthest - -(-limit // c), 0) if limit else np.zeros_like(furthest)
    zeros = np.zeros(events.users, np.int64)
    if not skipped.any():
        strands = Strands(events.offsets[:-1], zeros, furthest, user_of, cuts)
        return run(events, gap, strands, {})[0]
    # Truncated: chunks before ``skipped`` run once without gradients; cuts among them, and the rest of
    # the history, start from the states found there.
    stops = np.unique(np.stack([user_of, np.minimum(whole, skipped[user_of])], 1), axis=0)
    stops = np.unique(np.concatenate([stops, np.stack([np.arange(events.users), skipped], 1)]), axis=0)
    with torch.no_grad():
        memories = _states_at(run, c, events, gap, stops)
    strand_of = {(u, n): i for i, (u, n) in enumerate(stops.tolist())}
    rest = np.where(stops[:, 1] == skipped[stops[:, 0]], (furthest - skipped)[stops[:, 0]], 0)
    cut_strand = np.array(
        [
            strand_of[u, min(n, int(skipped[u]))]
            for u, n in zip(user_of.tolist(), whole.tolist(), strict=True)
        ],
        np.int64,
    )
    strands = Strands(
        events.offsets[:-1][stops[:, 0]] + stops[:, 1] * c,
        stops[:, 1] * c,
        rest,
        cut_strand,
        cuts - stops[cut_strand, 1] * c,
    )
    return run(events, gap, strands, memories)[0]


def _states_at(
    run: Run, c: int, events: Events, gap: np.ndarray, stops: np.ndarray
) -> dict[int, torch.Tensor]:
    """State after n chunks of user u, rows (u, n) of ``stops``, sorted; by row, none for n = 0."""
    found: dict[int, torch.Tensor] = {}
    at = np.zeros(events.users, np.int64)
    memory: dict[int, torch.Tensor] = {}
    nth = np.arange(len(stops)) - np.searchsorted(stops[:, 0], stops[:, 0])
    none = np.zeros(0, np.int64)
    for round_ in range(int(nth.max(initial=-1)) + 1):
        rows = np.flatnonzero(nth == round_)
        users, goal = stops[rows, 0], stops[rows, 1]
        strands = Strands(
            events.offsets[users] + at[users] * c,
            at[users] * c,
            goal - at[users],
            none,
            none,
        )
        carried = {i: memory[u] for i, u in enumerate(users.tolist()) if u in memory}
        _, states = run(events, gap, strands, carried, keep=True)
        for i, u in enumerate(users.tolist()):
            if i in states:
                memory[u] = states[i]
            if u in memory:
                found[int(rows[i])] = memory[u]
        at[users] = goal
    return found


def prefix_slots(slots: SlotMemory, events: Events, cuts: np.ndarray, user_of: np.ndarray) -> np.ndarray:
    """Slot tokens float32 [K, S_slot, D] of prefixes; every cut exact."""
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
