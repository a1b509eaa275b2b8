"""Stage 1: a lifelong history becomes summary tokens and a resumable state.

Two groups of tokens. *Seeds* (``vista/seeds.py``) are learned: quasi-linear attention over the history in
causal chunks of C events, counted from the user's first event. *Slots* (``vista/slots.py``) are counted:
masses in hashed buckets that a candidate reads by its own keys.

What may be relied on:

- resume equals recompute: ``summarize(new, states)`` gives what ``summarize(all)`` gives, to 1e-5 relative in
  float32, wherever the history was split;
- a user's tokens do not depend on the other users of the batch, to the same precision, and the same batches
give the
  same bytes;
- a history is a set of events in contract order. New events may sort into the tail (the events after the last
chunk
  boundary); copies of events of the tail are dropped; events older than the boundary are late.

``chunk = 0`` is the paper's full form, where every event reads the whole history: then nothing can be kept,
states are None, and every summary is made from all events.

``max_events = M`` caps a history at its newest M events when it is summarised from nothing. A state goes on
from what it has folded, so the summary of a refreshed user covers between M and 2 M events; past that the
user is reported late, and is to be summarised again from its newest M.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from torch import nn
from torch.utils.checkpoint import checkpoint

from vista.config import ModelConfig, fingerprint
from vista.data.events import COLUMNS, ORDER, Events
from vista.embedding import NO_TIME, EventEncoder, gaps
from vista.errors import ConfigError, DataError
from vista.packing import PackedStep, Strands, pack
from vista.reconstruction import ReconstructionDecoder
from vista.rivals import HybridEncoder, PooledEncoder, SketchEncoder
from vista.seeds import QLAEncoder
from vista.slots import SlotMemory, SlotState
from vista.state import EventKey, StateError, UserState, event_key
from vista.wavefront import SummaryBatch, summarize_stream

__all__ = ["StateError", "Summarizer", "Summary", "SummaryBatch", "UserState", "summarize_stream"]

KINDS = {"qla": QLAEncoder, "hybrid": HybridEncoder, "pooled": PooledEncoder, "sketch": SketchEncoder}
"""``summarizer.kind``; all under one interface, one call per packed step."""

_STEP_ROWS = 4_096


@dataclass(slots=True)
class Summary:
    """Summaries of U users.

    Attributes:
        tokens: group name to float32 [U, S_g, D]. states: resumable state of each user; None where the
        configuration cannot resume (``chunk`` 0). late: bool [U]: some events are older than the state's
        chunk boundary and were left out, or the cap on the
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
        seeds = (
            [("seeds", self.config.summarizer.seeds, self.config.width, "float16")] if self.encoder else []
        )
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
        _check_order(events)
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
        events, late = self._joined(events, given)
        cap = self.config.summarizer.max_events
        if cap:
            events, late = self._capped(events, given, late, cap)
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
            seeds, memories = self._run(
                events, gaps(events, previous), strands, carried, keep=bool(self.chunk)
            )
            tokens["seeds"] = seeds.float().cpu().numpy()
        boundary = events.offsets[:-1] + chunks * self.chunk
        folded = served = None
        if self.config.slots.enabled:
            start = self._slot_state(given)
            folded = self.slots.update(start, events.slices(events.offsets[:-1], boundary))
            served = SlotState(folded.mass[emitted], folded.last_ms[emitted], folded.count[emitted])
            served = self.slots.update(served, events.slices(boundary[emitted], events.offsets[1:][emitted]))
            tokens["slots"] = self.slots.serve(served)
        if not self.chunk:
            return tokens, [None] * events.users, late
        new = [
            self._state_of(u, given[u], events, int(chunks[u]), memories.get(u), folded, signature)
            for u in range(events.users)
        ]
        return tokens, new, late

    def _joined(self, events: Events, given: list[UserState | None]) -> tuple[Events, np.ndarray]:
        """Tails and new events, in order and without copies; and who had events before the boundary."""
        late = np.zeros(events.users, bool)
        if not any(state is not None for state in given):
            return events, late
        keep = np.ones(len(events), bool)
        owner = np.repeat(np.arange(events.users), events.lengths)
        boundary = np.array([s.boundary[0] if s and s.boundary else NO_TIME for s in given], np.int64)
        for row in np.flatnonzero(events.time <= boundary[owner]):
            key, folded = event_key(events, row), given[owner[row]].boundary
            late[owner[row]] |= key < folded
            keep[row] = key > folded
        if not keep.all():
            events = _take(events, keep)
        tails = [state.tail if state is not None else Events.empty(1) for state in given]
        held = Events.concat(tails)
        joined = Events.append(held, events)
        both = (held.lengths > 0) & (events.lengths > 0)
        newest = held.time[np.maximum(held.offsets[1:] - 1, 0)[both]]
        if bool((events.time[events.offsets[:-1][both]] <= newest).any()):
            joined = joined.sorted()
            same = np.ones(len(joined), bool)
            for name in ORDER:
                column = getattr(joined, name)
                same[1:] &= column[1:] == column[:-1]
            same[joined.offsets[:-1][joined.lengths > 0]] = False
            joined = _take(joined, ~same) if same.any() else joined
        return joined, late

    @staticmethod
    def _capped(
        events: Events, given: list[UserState | None], late: np.ndarray, cap: int
    ) -> tuple[Events, np.ndarray]:
        fresh = np.array([state is None for state in given], bool)
        total = events.lengths + np.array([state.count if state else 0 for state in given], np.int64)
        start = np.where(
            fresh, np.maximum(events.offsets[1:] - cap, events.offsets[:-1]), events.offsets[:-1]
        )
        if bool((start > events.offsets[:-1]).any()):
            events = events.slices(start, events.offsets[1:])
        return events, late | (~fresh & (total > 2 * cap))

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
        u: int,
        before: UserState | None,
        events: Events,
        chunks: int,
        memory: torch.Tensor | None,
        folded: SlotState | None,
        signature: str,
    ) -> UserState:
        start, stop = int(events.offsets[u]), int(events.offsets[u + 1])
        split = start + chunks * self.chunk
        tail = events.rows(split, stop)
        tail = Events(tail.offsets, **{name: column.copy() for name, column in tail.columns.items()})
        if not chunks:
            if before is None:
                return UserState(
                    signature, slot_mass=np.zeros((0, self.slots.horizons), np.float32), tail=tail
                )
            return UserState(
                signature,
                before.count,
                before.boundary,
                before.memory,
                before.slot_index,
                before.slot_mass,
                tail,
            )
        index = np.zeros(0, np.int32)
        mass = np.zeros((0, self.slots.horizons), np.float32)
        if folded is not None:
            index = np.flatnonzero(folded.mass[u].any(axis=1)).astype(np.int32)
            mass = folded.mass[u, index]
        boundary: EventKey = event_key(events, split - 1)
        count = (before.count if before else 0) + chunks * self.chunk
        array = None if memory is None else memory.float().cpu().numpy()
        return UserState(signature, count, boundary, array, index, mass, tail)

    # --- the pass over histories

    def _run(
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
                states = {}
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
            return self.encoder(self.events(*inputs), plan, carry, reads, kept)

        if self.config.summarizer.checkpoint and torch.is_grad_enabled():
            return checkpoint(forward, carry, *inputs, use_reentrant=False)
        return forward(carry, *inputs)

    # --- summaries for training

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
        _check_order(events)
        device = self.events.features.device
        tokens: dict[str, torch.Tensor] = {}
        if self.encoder is not None:
            tokens["seeds"] = self._prefix_seeds(events, cuts, user_of, exact)
        if self.config.slots.enabled:
            tokens["slots"] = torch.from_numpy(self._prefix_slots(events, cuts, user_of)).to(device)
        return tokens

    def _prefix_seeds(
        self, events: Events, cuts: np.ndarray, user_of: np.ndarray, exact: bool
    ) -> torch.Tensor:
        c = self.chunk
        if not c:
            first = Strands(
                events.offsets[user_of], *np.zeros((2, len(cuts)), np.int64), np.arange(len(cuts)), cuts
            )
            return self._run(events, gaps(events), first, {})[0]
        whole = cuts // c
        if not exact:
            cuts = np.where(whole > 0, whole * c, cuts)
        furthest = np.zeros(events.users, np.int64)
        np.maximum.at(furthest, user_of, whole)
        gap = gaps(events)
        limit = self.config.summarizer.gradient_events
        skipped = np.maximum(furthest - -(-limit // c), 0) if limit else np.zeros_like(furthest)
        zeros = np.zeros(events.users, np.int64)
        if not skipped.any() or not torch.is_grad_enabled():
            strands = Strands(events.offsets[:-1], zeros, furthest, user_of, cuts)
            return self._run(events, gap, strands, {})[0]
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
        return self._run(events, gap, strands, memories)[0]

    def _states_at(self, events: Events, gap: np.ndarray, stops: np.ndarray) -> dict[int, torch.Tensor]:
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
                events.offsets[users] + at[users] * self.chunk,
                at[users] * self.chunk,
                goal - at[users],
                none,
                none,
            )
            carried = {i: memory[u] for i, u in enumerate(users.tolist()) if u in memory}
            _, states = self._run(events, gap, strands, carried, keep=True)
            for i, u in enumerate(users.tolist()):
                if i in states:
                    memory[u] = states[i]
                if u in memory:
                    found[int(rows[i])] = memory[u]
            at[users] = goal
        return found

    def _prefix_slots(self, events: Events, cuts: np.ndarray, user_of: np.ndarray) -> np.ndarray:
        order = np.lexsort([cuts, user_of])
        user, cut = user_of[order], cuts[order]
        nth = np.arange(len(order)) - np.searchsorted(user, user)
        out = np.zeros((len(order), self.slots.tokens, self.config.width), np.float32)
        state = self.slots.empty(events.users)
        at = np.zeros(events.users, np.int64)
        # the j-th cut of every user in one update
        for round_ in range(int(nth.max(initial=-1)) + 1):
            rows = np.flatnonzero(nth == round_)
            who = user[rows]
            part = SlotState(state.mass[who], state.last_ms[who], state.count[who])
            start = events.offsets[who]
            part = self.slots.update(part, events.slices(start + at[who], start + cut[rows]))
            state.mass[who], state.last_ms[who], state.count[who] = part.mass, part.last_ms, part.count
            at[who] = cut[rows]
            out[order[rows]] = self.slots.serve(part)
        return out

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
            seeds: [K, S, D], ``prefixes(...)["seeds"]``. events, cuts, user_of: as given to :meth:`prefixes`.
            generator: places the window of items in each history; without one it is the newest items.

        Raises:
            ConfigError: the model has no seeds.
        """
        if self.decoder is None:
            raise ConfigError("summarizer.seeds: expected seed tokens to reconstruct from, found 0")
        cuts, user_of = np.asarray(cuts, np.int64), np.asarray(user_of, np.int64)
        return self.decoder(seeds, self.events.items, events, cuts, user_of, generator)


def _take(events: Events, keep: np.ndarray) -> Events:
    """Rows where ``keep``, same users."""
    kept = np.concatenate([[0], np.cumsum(keep)])
    lengths = np.diff(kept[events.offsets])
    return Events.of(lengths, **{name: getattr(events, name)[keep] for name in COLUMNS})


def _check_order(events: Events) -> None:
    back = events.time[1:] < events.time[:-1]
    starts = events.offsets[1:-1]
    starts = starts[(starts > 0) & (starts < len(events))]
    back[starts - 1] = False
    if back.any():
        row = int(np.flatnonzero(back)[0]) + 1
        raise DataError(
            f"events: expected ascending time within a user, found row {row} before row {row - 1}; "
            "put histories in contract order (Events.sorted), or make the tables with vista ingest"
        )
