"""Stage 1: a lifelong history becomes summary tokens and a resumable state.

Two groups of tokens. *Seeds* are learned, of two kinds: quasi-linear attention over the history in causal chunks of C
events, counted from the user's first event (``seeds``), or places among the items and what fell near them
(``places``). *Slots* (``slots``) are counted: masses in hashed buckets that a candidate reads by its own keys.

What may be relied on:

- resume equals recompute: ``summarize(new, states)`` gives what ``summarize(all)`` gives, to 1e-5 relative in
  float32, wherever the history was split;
- a user's tokens do not depend on the other users of the batch, to the same precision; the same batches give
  the same bytes;
- a history is a set of events in contract order. New events may sort into the tail (the events after the last
  chunk boundary); copies of events of the tail are dropped; events older than the boundary are late.

``chunk = 0`` is the paper's full form, where every event reads the whole history: then nothing can be kept,
states are None, and every summary is made from all events.

``max_events = M`` caps a history at its newest M events when it is summarised from nothing. A state goes on
from what it has folded, so the summary of a refreshed user covers between M and 2 M events; past that the
user is reported late, and is to be summarised again from its newest M.

``gradient_events`` truncates training: chunks further back than that from a user's last cut run once without
gradients, and what follows starts from their state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import xxhash
from torch import nn
from torch.utils.checkpoint import checkpoint

from vista.config import ModelConfig, fingerprint
from vista.data.events import Events
from vista.embedding.encoders import NO_TIME, EventEncoder, gaps
from vista.errors import ConfigError, DataError
from vista.stage1.packing import PackedStep, Strands, pack
from vista.stage1.places import PlaceEncoder
from vista.stage1.prefixes import prefix_seeds, prefix_slots
from vista.stage1.reconstruction import ReconstructionDecoder
from vista.stage1.resuming import capped, check_order, joined
from vista.stage1.seeds import QLAEncoder
from vista.stage1.slots import SlotMemory, SlotState
from vista.stage1.state import EventKey, StateError, UserState, event_key
from vista.stage1.stream import SummaryBatch, summarize_stream

__all__ = ["StateError", "Summarizer", "Summary", "SummaryBatch", "UserState", "summarize_stream"]

KINDS = {"qla": QLAEncoder, "places": PlaceEncoder}
"""``summarizer.kind``; all under one interface, one call per packed step."""

_STEP_ROWS = 4_096


@dataclass(slots=True)
class Summary:
    """Summaries of U users.

    Attributes:
        tokens: group name to float32 [U, S_g, D].
        states: resumable state of each user; None where the configuration cannot resume (``chunk`` 0).
        late: bool [U]: some events are older than the state's chunk boundary and were left out, or the cap on the
            history's length was passed. Summarise these users from their whole history.
    """

    tokens: dict[str, np.ndarray]
    states: list[UserState | None]
    late: np.ndarray


class Summarizer(nn.Module):
    """Stage 1. The event encoder and the slot memory belong to the model; slots are made here if absent."""

    def __init__(self, config: ModelConfig, events: EventEncoder, slots: SlotMemory | None = None):
        super().__init__()
        s = config.summarizer
        if s.kind not in KINDS:
            raise ConfigError(f"summarizer.kind: expected one of {sorted(KINDS)}, found {s.kind!r}; edit it")
        self.config = config
        self.chunk = s.chunk
        self.step_rows = _STEP_ROWS
        self._events = (events,)
        self._slots = (slots if slots is not None else SlotMemory(config),)
        self.encoder = KINDS[s.kind](config) if s.seeds else None
        self.decoder = ReconstructionDecoder(config) if s.seeds else None
        self._signature: tuple[tuple, str] | None = None

    @property
    def events(self) -> EventEncoder:
        return self._events[0]

    @property
    def slots(self) -> SlotMemory:
        return self._slots[0]

    @property
    def resumable(self) -> bool:
        """Whether summaries come with states to go on from."""
        return self.chunk > 0

    def groups(self) -> list[tuple[str, int, int, str]]:
        """Token groups as (name, S_g, D, default codec of the store)."""
        seeds = [("seeds", self.config.summarizer.seeds, self.config.width, "int8")] if self.encoder else []
        slots = [("slots", self.slots.tokens, self.config.width, "log8")] if self.config.slots.enabled else []
        return seeds + slots

    def signature(self) -> str:
        """Configuration and every weight that a state depends on; 32 hex digits."""
        parts = [self.events.items, self.events, self.slots, *([self.encoder] if self.encoder else [])]
        tensors = [t for part in parts for t in (*part.parameters(), *part.buffers())]
        seen = tuple((t.data_ptr(), t._version) for t in tensors)
        if self._signature is None or self._signature[0] != seen:
            digest = xxhash.xxh3_128()
            for tensor in tensors:
                digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).data)
            self._signature = (seen, fingerprint(self.config, digest.digest()))
        return self._signature[1]

    # --- summaries for serving

    @torch.inference_mode()
    def summarize(self, events: Events, states: Sequence[UserState | None] | None = None) -> Summary:
        """Summary tokens of U users, and the states to go on from.

        Args:
            events: U histories in contract order; with a state, the user's new events only.
            states: state of each user or None; None for all.

        Raises:
            DataError: events are not in order of time.
            StateError: a state was made by another model.
        """
        found, new_states, late = self.advance(events, states, np.ones(events.users, bool))
        return Summary(found, new_states, late)

    @torch.inference_mode()
    def advance(
        self, events: Events, states: Sequence[UserState | None] | None, emit: np.ndarray
    ) -> tuple[dict[str, np.ndarray], list[UserState | None], np.ndarray]:
        """As :meth:`summarize`, with tokens only for users where ``emit`` (bool [U]): [sum(emit), S_g, D].

        The others only fold their full chunks: that is how a history longer than a batch is carried.
        """
        check_order(events)
        given: list[UserState | None] = list(states) if states is not None else [None] * events.users
        if len(given) != events.users:
            raise ValueError(
                f"expected one state or None for each of {events.users} users, found {len(given)}"
            )
        signature = self.signature()
        for state in given:
            if state is not None and state.signature != signature:
                raise StateError(
                    f"user state: expected one of model {signature[:8]}, found one of {state.signature[:8]}; "
                    "run vista summarize with this model"
                )
        events, late = joined(events, given)
        if self.config.summarizer.max_events:
            events, passed = capped(events, given, self.config.summarizer.max_events)
            late |= passed
        count = np.array([state.count if state else 0 for state in given], np.int64)
        lengths = events.lengths
        chunks = lengths // self.chunk if self.chunk else np.zeros_like(lengths)
        if not self.chunk and not emit.all():
            raise ConfigError("summarizer.chunk: expected a chunk to carry a history across batches, found 0")
        emitted = np.flatnonzero(emit)
        tokens: dict[str, np.ndarray] = {}
        memories: dict[int, torch.Tensor] = {}
        if self.encoder is not None:
            strands = Strands(events.offsets[:-1], count, chunks, emitted, lengths[emitted])
            carried = {
                u: torch.from_numpy(s.memory) for u, s in enumerate(given) if s and s.memory is not None
            }
            previous = np.array([s.boundary[0] if s and s.boundary else NO_TIME for s in given], np.int64)
            seeds, memories = self.run(
                events, gaps(events, previous), strands, carried, keep=bool(self.chunk)
            )
            tokens["seeds"] = seeds.float().cpu().numpy()
        boundary = events.offsets[:-1] + chunks * self.chunk
        folded, row_of = None, {}
        if self.config.slots.enabled:
            # most users of a bucket have no full chunk: nothing is kept for them, so nothing is held for them
            kept = np.flatnonzero((chunks > 0) | (count > 0))
            folded = self._slot_state([given[u] for u in kept])
            self.slots.fold(folded, events.slices(events.offsets[:-1][kept], boundary[kept]))
            row_of = dict(zip(kept.tolist(), range(len(kept)), strict=True))
            tokens["slots"] = self._served(events, boundary, emitted, folded, row_of)
        if not self.chunk:
            return tokens, [None] * events.users, late
        tails = events.slices(boundary, events.offsets[1:])
        new = [
            self._state_of(
                given[u],
                tails.user(u),
                int(chunks[u]),
                event_key(events, int(boundary[u]) - 1) if chunks[u] else None,
                memories.get(u),
                folded.mass[row_of[u]] if folded is not None and u in row_of else None,
                signature,
            )
            for u in range(events.users)
        ]
        return tokens, new, late

    def _served(
        self,
        events: Events,
        boundary: np.ndarray,
        emitted: np.ndarray,
        folded: SlotState,
        row_of: dict[int, int],
    ) -> np.ndarray:
        """Slot tokens of the users ``emitted``: what is folded, and the tail on top."""
        state = self.slots.empty(len(emitted))
        for i, u in enumerate(emitted.tolist()):
            if u in row_of:
                row = row_of[u]
                state.mass[i], state.last_ms[i], state.count[i] = (
                    folded.mass[row],
                    folded.last_ms[row],
                    folded.count[row],
                )
        self.slots.fold(state, events.slices(boundary[emitted], events.offsets[1:][emitted]))
        return self.slots.serve(state)

    def _slot_state(self, given: list[UserState | None]) -> SlotState:
        state = self.slots.empty(len(given))
        for u, s in enumerate(given):
            if s is not None and s.count:
                state.mass[u, s.slot_index] = s.slot_mass
                state.count[u] = s.count
                state.last_ms[u] = s.boundary[0] if s.boundary else 0
        return state

    def _state_of(
        self,
        before: UserState | None,
        tail: Events,
        chunks: int,
        boundary: EventKey | None,
        memory: torch.Tensor | None,
        slot_mass: np.ndarray | None,
        signature: str,
    ) -> UserState:
        """State of one user that has folded ``chunks`` since ``before``, the last of them up to ``boundary``."""
        none = np.zeros((0, self.slots.horizons), np.float32)
        if not chunks:
            if before is None:
                return UserState(signature, slot_mass=none, tail=tail)
            return replace(before, tail=tail)
        index, mass = np.zeros(0, np.int32), none
        if slot_mass is not None:
            held = slot_mass[:, 0] > 0
            for horizon in range(1, slot_mass.shape[1]):  # column by column: a reduction over so few is slow
                held |= slot_mass[:, horizon] > 0
            index = np.flatnonzero(held).astype(np.int32)
            mass = slot_mass[index]
        count = (before.count if before else 0) + chunks * self.chunk
        array = None if memory is None else memory.float().cpu().numpy()
        return UserState(signature, count, boundary, array, index, mass, tail)

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
        for step in pack(strands, self.chunk, self.config.summarizer.seeds, self.step_rows):
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
        place = np.argsort(np.concatenate(order))
        return tokens[torch.from_numpy(place).to(device)], states

    def _step(
        self, events: Events, gap: np.ndarray, step: PackedStep, carry: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        device = carry.device
        columns = [events.item, events.action, events.surface, events.time, gap]
        inputs = [torch.from_numpy(column[step.rows]).to(device, non_blocking=True) for column in columns]
        reads = torch.from_numpy(step.reads).to(device)
        kept = torch.from_numpy(step.states).to(device)
        plan = step.plan.to(device)

        def forward(carry: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.encoder(self.encoder.rows(self.events, *inputs), plan, carry, reads, kept)

        if self.config.summarizer.checkpoint and torch.is_grad_enabled():
            return checkpoint(forward, carry, *inputs, use_reentrant=False)
        return forward(carry, *inputs)

    # --- summaries for training

    @torch.no_grad()
    def start(self, events: Events, sample: int = 20_000) -> None:
        """Before training: let encoders that have a use for it see a sample of events (kind ``places``)."""
        if not hasattr(self.encoder, "start") or not len(events):
            return
        rows = np.random.default_rng(self.config.seed).permutation(len(events))[:sample]
        columns = (events.item, events.action, events.surface, events.time, gaps(events))
        device = self.events.features.device
        inputs = (torch.from_numpy(c[rows]).to(device) for c in columns)
        self.encoder.start(self.encoder.rows(self.events, *inputs))

    def prefixes(
        self, events: Events, cuts: np.ndarray, user_of: np.ndarray, exact: bool = False
    ) -> dict[str, torch.Tensor]:
        """Summaries of prefixes: tokens of the first ``cuts[k]`` events of user ``user_of[k]``, [K, S_g, D].

        One pass over each history, whatever the number of cuts. Seeds are differentiable. A seed cut is
        rounded down to a chunk boundary, which only makes the summary a little older, as serving sees between
        refreshes; a cut within the first chunk is taken as it is, so short histories are not empty. ``exact``
        takes every cut as it is, at the cost of one tail each. Slot cuts are always exact.

        Raises:
            DataError: a cut is outside its history, or events are not in order of time.
        """
        cuts, user_of = np.asarray(cuts, np.int64), np.asarray(user_of, np.int64)
        if len(cuts) and (bool((cuts < 0).any()) or bool((cuts > events.lengths[user_of]).any())):
            raise DataError(
                "prefixes: expected cuts between 0 and the length of the history; check the examples"
            )
        check_order(events)
        device = self.events.features.device
        tokens: dict[str, torch.Tensor] = {}
        if self.encoder is not None:
            limit = self.config.summarizer.gradient_events if torch.is_grad_enabled() else 0
            tokens["seeds"] = prefix_seeds(self.run, self.chunk, limit, events, cuts, user_of, exact)
        if self.config.slots.enabled:
            tokens["slots"] = torch.from_numpy(prefix_slots(self.slots, events, cuts, user_of)).to(device)
        return tokens

    def reconstruction_loss(
        self,
        seeds: torch.Tensor,
        events: Events,
        cuts: np.ndarray,
        user_of: np.ndarray,
        generator: np.random.Generator | None = None,
    ) -> torch.Tensor:
        """How far a small decoder is from the history's items, given its seed tokens; a scalar to add to the loss.

        Args:
            seeds: [K, S, D], ``prefixes(...)["seeds"]``.
            events, cuts, user_of: as given to :meth:`prefixes`.
            generator: places the window of items in each history; without one it is the newest items.

        Raises:
            ConfigError: the model has no seeds.
        """
        if self.decoder is None:
            raise ConfigError("summarizer.seeds: expected seed tokens to reconstruct from, found 0")
        cuts, user_of = np.asarray(cuts, np.int64), np.asarray(user_of, np.int64)
        return self.decoder(seeds, self.events.items, events, cuts, user_of, generator)
