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
from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from torch import nn

from vista.config import ModelConfig, as_written, fingerprint
from vista.data.events import Events
from vista.embedding.encoders import EventEncoder, gaps
from vista.errors import ConfigError, DataError
from vista.stage1.exact_tokens import ExactTokenGroup
from vista.stage1.groups import GroupShape, Parts, SeedEncoder, TableShape, TokenGroup, Work
from vista.stage1.places import PlaceEncoder
from vista.stage1.reconstruction import ReconstructionDecoder
from vista.stage1.resuming import capped, check_order, joined
from vista.stage1.seed_tokens import SeedTokenGroup
from vista.stage1.seeds import QLAEncoder
from vista.stage1.slot_tokens import SlotTokenGroup
from vista.stage1.slots import SlotMemory
from vista.stage1.state import StateError, UserState, event_key
from vista.stage1.tokens import ExactTokens

KINDS: dict[str, type[SeedEncoder]] = {"qla": QLAEncoder, "places": PlaceEncoder}
"""``summarizer.kind``."""


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
    """Stage 1. The event encoder, the exact tokens and the slot memory belong to the model; the last two are made here
    if absent."""

    def __init__(
        self,
        config: ModelConfig,
        events: EventEncoder,
        slots: SlotMemory | None = None,
        tokens: ExactTokens | None = None,
    ):
        super().__init__()
        s = config.summarizer
        self.config, self.chunk = config, s.chunk
        self.encoder = KINDS[s.kind](config) if s.seeds else None
        self.decoder = ReconstructionDecoder(config) if s.seeds else None
        slots = slots if slots is not None else SlotMemory(config)
        tokens = tokens if tokens is not None else ExactTokens(config)
        # in a tuple: the model owns them, and saves them once
        self._borrowed = (events, slots, tokens)
        self.token_groups: list[TokenGroup] = []
        if self.encoder is not None:
            self.token_groups.append(SeedTokenGroup(self.encoder, events, s))
        if config.slots.enabled:
            self.token_groups.append(SlotTokenGroup(slots))
        if config.tokens.enabled:
            self.token_groups.append(ExactTokenGroup(tokens))
        self._signature: tuple[tuple, str] | None = None

    @property
    def events(self) -> EventEncoder:
        return self._borrowed[0]

    @property
    def slots(self) -> SlotMemory:
        return self._borrowed[1]

    @property
    def tokens(self) -> ExactTokens:
        return self._borrowed[2]

    @property
    def resumable(self) -> bool:
        """Whether summaries come with states to go on from."""
        return self.chunk > 0

    def groups(self) -> list[GroupShape]:
        """Token groups as (name, S_g, D, default codec of the store)."""
        return [shape for group in self.token_groups for shape in group.groups()]

    def tables(self) -> list[TableShape]:
        """Which groups of a record are to be read as tables."""
        return [shape for group in self.token_groups for shape in group.tables()]

    def signature(self) -> str:
        """Configuration and every weight that a state depends on; 32 hex digits."""
        # The exact tokens are what the events are: only seeds read vectors, and only slots their own clusters.
        parts = [] if not (self.encoder or self.config.slots.enabled) else [
            self.events.items, self.events, self.slots,
        ]  # fmt: skip
        parts += [module for group in self.token_groups for module in group.modules()]
        tensors = [t for part in parts for t in (*part.parameters(), *part.buffers())]
        # tensors made in inference mode count no versions: nothing may change them in place
        seen = tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
        if self._signature is None or self._signature[0] != seen:
            digest = xxhash.xxh3_128()
            for tensor in tensors:
                digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).data)
            self._signature = (seen, fingerprint(as_written(self.config), digest.digest()))
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
        if not self.chunk and not emit.all():
            raise ConfigError("summarizer.chunk: expected a chunk to carry a history across batches, found 0")
        given = self._known(events, states)
        events, late = joined(events, given)
        if self.config.summarizer.max_events:
            events, passed = capped(events, given, self.config.summarizer.max_events)
            late |= passed
        chunks = events.lengths // self.chunk if self.chunk else np.zeros_like(events.lengths)
        work = Work(events, given, chunks, np.flatnonzero(emit), self.chunk)
        tokens: dict[str, np.ndarray] = {}
        kept: dict[int, Parts] = {}
        for group in self.token_groups:
            found, parts = group.advance(work)
            tokens |= found
            for u, mine in parts.items():
                kept[u] = kept.get(u, {}) | mine
        return tokens, self._states(work, kept) if self.chunk else [None] * events.users, late

    def _known(self, events: Events, states: Sequence[UserState | None] | None) -> list[UserState | None]:
        """One state or None for each user, all of this model."""
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
        return given

    def _states(self, work: Work, kept: dict[int, Parts]) -> list[UserState | None]:
        """What each user goes on from: its old state with a new tail, or that at its last whole chunk."""
        signature, boundary = self.signature(), work.boundary
        tails = work.tails(np.arange(work.events.users))
        found: list[UserState | None] = []
        for u, before in enumerate(work.given):
            count, last = before.count if before else 0, before.boundary if before else None
            parts = before.parts if before else {}
            if work.chunks[u]:
                count += int(work.chunks[u]) * self.chunk
                last, parts = event_key(work.events, int(boundary[u]) - 1), kept.get(u, {})
            found.append(UserState(signature, count, last, parts, tails.user(u)))
        return found

    # --- summaries for training

    @torch.no_grad()
    def start(self, events: Events, sample: int = 20_000) -> None:
        """Before training: let encoders that have a use for it see a sample of events (kind ``places``)."""
        if not isinstance(self.encoder, PlaceEncoder) or not len(events):
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
        for group in self.token_groups:
            tokens |= group.prefixes(events, cuts, user_of, exact)
        return {name: x.to(device) for name, x in tokens.items()}

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
