"""Seed tokens as a group of stage 1: one pass of an encoder over packed histories, for serving and for training."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vista.config import SummarizerConfig
from vista.data.events import Events
from vista.embedding.encoders import EventEncoder, gaps
from vista.ops.upload import uploaded
from vista.stage1.groups import GroupShape, Parts, SeedEncoder, TableShape, Work
from vista.stage1.packing import MAX_CHUNKS, PackedStep, Strands, pack

SEEDS, MEMORY = "seeds", "seeds.memory"
STEP_ROWS = 4_096
DEVICE_ROWS, DEVICE_CHUNKS = 65_536, 256
"""Rows and chunks of a step on a GPU, at least: there the launches of a small one take longer than its work."""


class SeedTokenGroup:
    """Tokens of an encoder (:class:`vista.stage1.groups.SeedEncoder`).

    Attributes:
        step_rows: rows of a packed step on the CPU.
    """

    def __init__(self, encoder: SeedEncoder, events: EventEncoder, config: SummarizerConfig) -> None:
        self.encoder, self.events, self.config = encoder, events, config
        self.step_rows = STEP_ROWS

    def groups(self) -> list[GroupShape]:
        seeds, width = self.encoder.seeds.shape
        return [GroupShape(SEEDS, seeds, width, "int8")]

    def tables(self) -> list[TableShape]:
        return []

    def modules(self) -> Iterable[nn.Module]:
        return [self.encoder]

    def advance(self, work: Work) -> tuple[dict[str, np.ndarray], dict[int, Parts]]:
        events, emitted = work.events, work.emitted
        strands = Strands(events.offsets[:-1], work.count, work.chunks, emitted, events.lengths[emitted])
        before = {u: s.parts[MEMORY] for u, s in enumerate(work.given) if s and MEMORY in s.parts}
        carried: dict[int, torch.Tensor] = {}
        if before:
            (stacked,) = uploaded([np.stack(list(before.values()))], self.encoder.seeds.device)
            carried = dict(zip(before, stacked, strict=True))
        gap = gaps(events, work.previous_ms)
        seeds, memories = self.run(events, gap, strands, carried, keep=bool(work.chunk))
        kept: dict[int, Parts] = {}
        if memories:
            arrays = torch.stack(list(memories.values())).float().cpu().numpy()
            kept = {u: {MEMORY: array} for u, array in zip(memories, arrays, strict=True)}
        return {SEEDS: seeds.float().cpu().numpy()}, kept

    def prefixes(
        self, events: Events, cuts: np.ndarray, user_of: np.ndarray, exact: bool
    ) -> dict[str, torch.Tensor]:
        # gradients go through so many events before a user's last cut, in whole chunks; 0: through all
        limit = self.config.gradient_events if torch.is_grad_enabled() else 0
        return {SEEDS: self._prefixes(limit, events, cuts, user_of, exact)}

    # --- the pass over histories

    def run(
        self,
        events: Events,
        gap: np.ndarray,
        strands: Strands,
        carried: dict[int, torch.Tensor],
        keep: bool = False,
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Seed tokens [K, S, D] at the cuts; with ``keep`` each strand's state after its last chunk."""
        encoder = self.encoder
        device = encoder.seeds.device
        dtype = torch.float64 if encoder.seeds.dtype == torch.float64 else torch.float32
        zero = torch.zeros((1, *encoder.state_shape), dtype=dtype, device=device)
        states: dict[int, torch.Tensor] = {}
        pieces, order = [], []
        most = (self.step_rows, MAX_CHUNKS)
        if device.type != "cpu":
            most = (max(self.step_rows, DEVICE_ROWS), DEVICE_CHUNKS)
        for step in pack(strands, self.config.chunk, len(encoder.seeds), *most):
            before = [zero]
            for s in step.carried.tolist():
                state = states[s] if s in states else carried[s]
                before.append(state.to(device=device, dtype=dtype).unsqueeze(0))
            carry = torch.cat(before) if len(before) > 1 else zero
            tokens, kept = self._step(events, gap, step, carry)
            if len(step.cuts):
                pieces.append(tokens)
                order.append(step.cuts)
            if not keep:
                # more cuts may hang on a state than fit into a step that runs no chunk of it
                states = {s: states[s] for s in step.carried.tolist() if s in states}
            states.update(zip(step.kept.tolist(), kept, strict=True))
        if not pieces:
            return zero.new_zeros(0, *encoder.seeds.shape), states
        tokens = torch.cat(pieces)
        (place,) = uploaded([np.argsort(np.concatenate(order))], device)
        return tokens[place], states

    def _step(
        self, events: Events, gap: np.ndarray, step: PackedStep, carry: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        device = carry.device
        columns: list[np.ndarray] = [events.item, events.action, events.surface, events.time, gap]
        arrays = [*(column[step.rows] for column in columns), step.reads, step.states]
        *inputs, reads, kept = uploaded(arrays, device)
        plan = step.plan.to(device)

        def forward(carry: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.encoder(self.encoder.rows(self.events, *inputs), plan, carry, reads, kept)

        if self.config.checkpoint and torch.is_grad_enabled():
            return checkpoint(forward, carry, *inputs, use_reentrant=False)
        return forward(carry, *inputs)

    # --- many cuts in one pass

    def _prefixes(
        self, limit: int, events: Events, cuts: np.ndarray, user_of: np.ndarray, exact: bool
    ) -> torch.Tensor:
        """Tokens [K, S, D] of prefixes."""
        run, c = self.run, self.config.chunk
        if not c:
            none = np.zeros(len(cuts), np.int64)
            first = Strands(events.offsets[user_of], none, none, np.arange(len(cuts)), cuts)
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
            memories = self._states_at(events, gap, stops)
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

    def _states_at(self, events: Events, gap: np.ndarray, stops: np.ndarray) -> dict[int, torch.Tensor]:
        """State after n chunks of user u, rows (u, n) of ``stops``, sorted; by row, none for n = 0."""
        run, c = self.run, self.config.chunk
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
