"""Stage 2: one model retrieves and ranks over one context.

Context of a user, computed once per request::

    [ summary tokens ; recent events ; now ]

Who sees whom. Summary tokens see each other, so their keys and values depend on the cached record alone;
recent events see the whole summary and, causally, each other; ``now`` sees everything and is where the
retrieval query is read. Candidates see the context and themselves, never each other, and share one
position: that is VISTA's target attention (arXiv 2510.22049, section 3), the candidate mask of UniPinRec
(arXiv 2606.00422, section 3) and DCAT (arXiv 2507.12704) at the same time. Candidates pass through the
context's own layers.

*Addressed* tokens are not part of the context: a candidate finds its own entry, its cluster's, and those of clusters
near it (``readers``). What it reads enters its token and, by direct paths, one wide and one of a hidden layer, its
logits: "has this person been here, how often, how lately" needs no attention among tokens, and in the study behind this
design it was most of the gain where items repeat. The now token, and with it retrieval, reads the exact tokens by
softmax attention with their masses (``WeightedAttention``), asking for what the recent events are like.

Letters: U users, B candidates, S summary tokens, R recent events, T = S + R + 1, D width, H heads,
E = D / H, L layers, Q queries, A actions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Unpack, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vista.config import ModelConfig
from vista.data.events import Events
from vista.embedding.encoders import EventEncoder, ItemEncoder
from vista.errors import DataError
from vista.ops import crossing
from vista.ops.weighted_attention import WeightedAttention
from vista.stage1.places import PlaceRead
from vista.stage1.slots import SlotMemory
from vista.stage1.tokens import BITS, ExactTokens, Sequence
from vista.stage2.context_kv import ContextKV, Origin
from vista.stage2.layer import Layer, Sight
from vista.stage2.readers import (
    FREQUENCIES,
    EntryReader,
    NearTokens,
    Neighbours,
    PlaceReader,
    Reader,
    RecentReader,
    ScoreReader,
    SlotReader,
    waves,
)
from vista.stage2.sequences import RecentEvents, Sequences

DAY_MS = 86_400_000


class Ranker(nn.Module):
    """Both heads of stage 2. ``items`` and ``events`` are shared with stage 1 and train through both."""

    def __init__(
        self,
        config: ModelConfig,
        items: ItemEncoder,
        events: EventEncoder,
        slots: SlotMemory,
        tokens: ExactTokens | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        # in a tuple: the model owns them, and saves them once
        self._borrowed = (items, events, slots, ExactTokens(config) if tokens is None else tokens)
        d, q, actions = config.width, config.ranker.queries, len(config.actions)
        seeds, kind = config.summarizer.seeds, config.summarizer.kind
        self.places = PlaceRead(config) if kind == "places" and seeds else None
        seeds = 0 if self.places else seeds
        self.summary = nn.Sequential(nn.RMSNorm(d), nn.Linear(d, d)) if seeds else None
        self.summary_place = nn.Parameter(torch.randn(seeds, d) * 0.02)  # which seed; also the group's type
        self.recent_place = nn.Linear(4 * FREQUENCIES, d)  # age and rank of a recent event
        self.now_token = nn.Parameter(torch.randn(d) * 0.02)
        self.now_features = nn.Linear(4 * FREQUENCIES + 6, d)
        self.layers = nn.ModuleList(Layer(d, config.ranker.heads) for _ in range(config.ranker.layers))

        self.query_norm = nn.RMSNorm(d)
        self.query_mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.SiLU(), nn.Linear(2 * d, q * d))
        self.log_horizon = nn.Parameter(torch.linspace(math.log(4.0), math.log(16.0 * q), q))  # events
        self.log_scale = nn.Parameter(torch.tensor(math.log(12.0)))

        read = self.tokens.sequence_length
        self.near = NearTokens(config) if self.sequence else None
        self.history = WeightedAttention(d, (12.0,)) if read else None
        # how much of what the now token reads goes into each query, and into the token itself
        self.history_gain = nn.Parameter(torch.full((q,), 0.5)) if read else None
        self.history_token = nn.Linear(d + 1, d, bias=False) if read else None
        self.neighbours = Neighbours(self.tokens) if self.tokens.neighbours else None
        self.readers = self._readers()
        wide = sum(reader.features for reader in self.readers)
        self.deep = nn.Sequential(nn.Linear(wide, d), nn.SiLU(), nn.Linear(d, d))
        self.head_norm = nn.RMSNorm(d)
        self.head = nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, actions))
        self.wide = nn.Linear(wide, actions)
        n = config.ranker.direct
        self.direct = nn.Sequential(nn.Linear(wide, n), nn.SiLU(), nn.Linear(n, actions)) if n else None
        self._start()

    def _start(self) -> None:
        """Start as similarity and frequency matching; what is learned is added from near zero."""
        with torch.no_grad():
            if self.summary is not None:
                # a seed token keeps its direction, so that candidates find in it the items it was made of
                mix = self.summary[1]
                assert isinstance(mix, nn.Linear)
                nn.init.eye_(mix.weight)
                mix.bias.zero_()
            direct = [] if self.direct is None else [self.direct[-1]]
            for last in (self.query_mlp[-1], self.head[-1], self.deep[-1], *direct):
                assert isinstance(last, nn.Linear)
                last.weight.mul_(0.1)
                last.bias.zero_()
            if self.history_token is not None:
                self.history_token.weight.mul_(0.1)
            self.wide.weight.zero_()
            self.wide.bias.zero_()
            at = 0
            for reader in self.readers:
                reader.start(self.wide.weight[:, at : at + reader.features])
                at += reader.features

    def _readers(self) -> list[Reader]:
        """Where candidates look, in the order of the direct path's weights."""
        readers: list[Reader] = []
        at = 0

        def rows(count: int) -> slice:
            nonlocal at
            at += count
            return slice(at - count, at)

        if self.config.slots.enabled:
            readers.append(SlotReader(self.slots, rows(self.slots.tokens)))
        if self.places is not None:
            readers.append(PlaceReader(self.places, rows(self.config.summarizer.seeds)))
        if self.config.tokens.enabled:
            own = rows(sum(self.tokens.rows.values()))
            readers.append(EntryReader(self.tokens, own, self.config, self.neighbours))
        if self.near is not None:
            readers.append(self.near)
        return [*readers, RecentReader(self.config.ranker.ages), ScoreReader()]

    @property
    def items(self) -> ItemEncoder:
        return self._borrowed[0]

    @property
    def events(self) -> EventEncoder:
        return self._borrowed[1]

    @property
    def slots(self) -> SlotMemory:
        return self._borrowed[2]

    @property
    def tokens(self) -> ExactTokens:
        return self._borrowed[3]

    @property
    def stack(self) -> Iterable[Layer]:
        """The layers, first to last."""
        return cast("Iterable[Layer]", self.layers)

    @property
    def addressed(self) -> int:
        """Rows of D places that candidates read by their own keys."""
        slots = self.slots.tokens if self.config.slots.enabled else 0
        places = self.config.summarizer.seeds if self.places is not None else 0
        return slots + places + sum(self.tokens.rows.values())

    @property
    def sequence(self) -> int:
        """S_t, exact tokens that candidates read as a sequence."""
        return self.tokens.sequence_length if self.config.ranker.near else 0

    # --- context ---------------------------------------------------------------------------------------

    def context(
        self,
        tokens: dict[str, Tensor],
        usable: Tensor | np.ndarray | None,
        recent: Events | RecentEvents,
        now_ms: Tensor | np.ndarray,
        last_event_ms: Tensor | np.ndarray | None = None,
        *,
        masked: Tensor | np.ndarray | None = None,
        full: bool = False,
        asks: bool = True,
        **origin: Unpack[Origin],
    ) -> ContextKV:
        """Context of U users.

        Args:
            tokens: group name to float [U, S_g, D], as stage 1 or a lookup gives them. ``seeds`` that are no
                places are attended to, all others are addressed by candidates. A summary counts as missing
                where ``usable`` says so or all its rows are zero.
            usable: bool [U], whose summary was found whole; None: all. Where it is given, users whose tokens
                are not finite count as having none.
            recent: the newest events of each user (see :func:`vista.data.recent.select_recent`); may be empty.
            now_ms: int64 [U].
            last_event_ms: int64 [U], last event in the summary; None where there is none.
            masked: bool [N] over ``recent``'s rows; True hides that event's action (masked action modelling,
                arXiv 2606.00422, section 3).
            full: also run the last layer for every token and keep ``hidden``, for :meth:`past`. Without it
                the last layer makes keys and values for all tokens but an output only for the now token.
            asks: whether the device may be asked once if anything is masked, which saves half of the attention.
            origin: ``owner``, ``generation`` and ``fingerprint``, carried along; see :class:`ContextKV`.

        Raises:
            DataError: tokens of a group this model does not have, or shapes that do not agree.
        """
        c = self.embed(tokens, usable, recent, now_ms, last_event_ms, masked)
        keys, values, hidden, at_now = self._run(c.x, Sight(c.mask, c.summary, asks), full)
        query = self._queries(at_now[:, None], c.taste[:, None])[:, 0]
        return c.context(keys, values, query, hidden, **origin)

    def embed(
        self,
        tokens: dict[str, Tensor],
        usable: Tensor | np.ndarray | None,
        recent: Events | RecentEvents,
        now_ms: Tensor | np.ndarray,
        last_event_ms: Tensor | np.ndarray | None,
        masked: Tensor | np.ndarray | None = None,
    ) -> Sequences:
        """The context's tokens before the first layer; arguments as for :meth:`context`."""
        device = self.now_token.device
        events = recent if isinstance(recent, RecentEvents) else RecentEvents.of(recent, device)
        lengths, r = events.lengths, events.most
        users = len(lengths)
        now = torch.as_tensor(now_ms, device=device)
        seeds, slots, summarized = self._summary(tokens, usable, users)
        last = now
        if last_event_ms is not None:
            last = torch.where(summarized, torch.as_tensor(last_event_ms, device=device), now)
        elapsed = (now - last).clamp_min(0)

        place = torch.arange(r, device=device)
        there = place < lengths[:, None]  # [U, R]
        rank = (lengths[:, None] - 1 - place).clamp_min(0)  # 0 is the newest

        def padded(flat: Tensor) -> Tensor:
            if len(flat) == users * r:
                return flat.view(users, r, *flat.shape[1:])
            room = flat.new_zeros(users, r, *flat.shape[1:])
            return room.masked_scatter(there.view(users, r, *[1] * (flat.ndim - 1)), flat)

        item, time = padded(events.item), padded(events.time)
        encoded, found = self._encoded(events.item, slots)
        age = (now[:, None] - time).clamp_min(0) * there
        x = [] if self.summary is None else [self.summary(seeds) + self.summary_place]
        if r:
            places = waves(torch.stack([age / 1000, rank], -1)).flatten(-2)
            x.append(padded(self._recent_tokens(encoded, events, masked)) + self.recent_place(places))
        taste = self._taste(padded(F.normalize(encoded, dim=-1)), rank, there)
        token, token_mass, read = self._history(slots, found, taste)
        taste, at_now = taste + read[0], self._now_token(now, elapsed, age, lengths, summarized) + read[1]
        x.append(at_now[:, None])
        s = seeds.shape[1]
        mask = F.pad(there, (0, 1), value=True)
        if s:
            mask = torch.cat([(seeds != 0).flatten(1).any(-1)[:, None].expand(-1, s), mask], 1)
        return Sequences(
            torch.cat(x, 1), mask, s, slots, token, token_mass, taste, elapsed, item, age, summarized
        )

    def _encoded(self, recent: Tensor, slots: Tensor) -> tuple[Tensor, Sequence | None]:
        """Recent items int64 [N] encoded, [N, D], and the exact tokens as a sequence, where it is read: by one call,
        whose many small steps cost more than its work."""
        if self.history is None:
            return self.items(recent), None
        encoded = [recent]

        def vectors(item: Tensor) -> Tensor:
            both = self.items(torch.cat([recent, item.flatten()]))
            encoded[0] = both[: len(recent)]
            return F.normalize(both[len(recent) :], dim=-1).unflatten(0, item.shape)

        held = self.tokens.unpack(slots[:, -sum(self.tokens.rows.values()) :])
        found = self.tokens.sequence(held, vectors, ages=False)
        return encoded[0], found

    def _history(
        self, slots: Tensor, found: Sequence | None, taste: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Any, Any]]:
        """Exact tokens as a sequence and their masses, where candidates read them; and what they add to taste
        [U, Q, D] and the now token [U, D]."""
        if self.history is None or found is None:
            users = len(slots)
            empty = slots.new_zeros(users, 0, self.config.width)
            return empty, slots.new_zeros(users, 0, self.config.tokens.horizons), (0.0, 0.0)
        assert self.history_gain is not None and self.history_token is not None
        tokens = self.tokens
        log_mass = found.mass[..., tokens.deciding].log()  # -inf where there is no token
        read, odds = self.history(taste, found.vector, log_mass)
        more = self.history_gain[:, None] * read[:, :, 0]
        told = torch.cat([read[:, 0, 0], torch.sigmoid(odds[:, 0])], -1)
        s = self.sequence
        return found.vector[:, :s], found.mass[:, :s], (more, self.history_token(told))

    def _summary(
        self, tokens: dict[str, Tensor], usable: Tensor | np.ndarray | None, users: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of the context [U, S, D], addressed tokens [U, S_slot, D] (slots, places, exact) and bool [U]
        whether there are any."""
        d, device, c = self.config.width, self.now_token.device, self.config
        sizes = {"slots": self.slots.tokens if c.slots.enabled else 0, "seeds": c.summarizer.seeds}
        if self.places is None:  # tokens of the context come first; what is addressed follows
            sizes = dict(reversed(sizes.items()))
        sizes = {name: s for name, s in (sizes | self.tokens.rows).items() if s}
        for name, value in tokens.items():
            if name not in sizes or tuple(value.shape) != (users, sizes[name], d):
                raise DataError(
                    f"summary tokens {name!r}: expected groups "
                    f"{ {n: (users, s, d) for n, s in sizes.items()} }, found {tuple(value.shape)}; "
                    "make summaries with this model (`vista summarize`)"
                )
        none = torch.zeros(users, 0, d, device=device)
        found = [
            torch.as_tensor(tokens[name], device=device)
            if name in tokens
            else torch.zeros(users, size, d, device=device)
            for name, size in sizes.items()
        ]
        rows = torch.cat([none, *found], 1)
        most = rows.detach().abs().amax(-1).split([*sizes.values()], 1)
        # of all but bits; not finite where a number is not
        largest = torch.cat([x for n, x in zip(sizes, most, strict=True) if n not in BITS], 1).amax(1)
        summarized = largest != 0
        if usable is not None:
            whole = torch.as_tensor(usable, device=device)
            if whole.dtype != torch.bool or whole.shape != (users,):
                raise DataError(f"usable: expected bool [{users}], found {whole.dtype} {tuple(whole.shape)}")
            # one broken number would take every candidate of the user with it
            whole = whole & largest.isfinite()
            rows, summarized = torch.where(whole[:, None, None], rows, 0), summarized & whole
        seeds = c.summarizer.seeds if self.places is None else 0
        return rows[:, :seeds], rows[:, seeds:].contiguous(), summarized

    def _recent_tokens(
        self, items: Tensor, recent: RecentEvents, masked: Tensor | np.ndarray | None
    ) -> Tensor:
        """[N, D], at the scale of a candidate's token; ``items`` [N, D] are the items' part."""
        hide = None if masked is None else torch.as_tensor(masked, device=items.device)
        more = self.events.beside_item(recent.action, recent.surface, recent.time, recent.gap, hide)
        return (items + more) * math.sqrt(self.config.width)

    def _now_token(
        self, now: Tensor, elapsed: Tensor, age: Tensor, lengths: Tensor, summarized: Tensor
    ) -> Tensor:
        """[U, D]: how late it is, how old what is known is, and what is missing."""
        newest = torch.zeros_like(elapsed)
        if age.shape[1]:
            newest = age.gather(1, (lengths - 1).clamp_min(0)[:, None])[:, 0]  # 0 where there is none
        day = (now % DAY_MS).float() * (2 * math.pi / DAY_MS)
        week = (now % (7 * DAY_MS)).float() * (2 * math.pi / (7 * DAY_MS))
        more = torch.stack(
            [day.sin(), day.cos(), week.sin(), week.cos(), summarized.float(), (lengths > 0).float()], -1
        )
        return self.now_token + self.now_features(
            torch.cat([waves(torch.stack([elapsed, newest], -1) / 1000).flatten(-2), more], -1)
        )

    def _run(self, x: Tensor, sight: Sight, full: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Keys and values [L, U, T, H, E]; hidden [U, T, D] if ``full``; hidden of the now token [U, D]."""
        keys, values = [], []
        for number, layer in enumerate(self.stack):
            h = layer.before_attention(x)
            q, k, v = layer.project(h)  # [U, T, H, E]
            keys.append(k)
            values.append(v)
            if number == len(self.layers) - 1 and not full:
                x, q = x[:, -1:], q[:, -1:]
            x = layer.finish(x, sight.attend(q, k, v))
        return torch.stack(keys), torch.stack(values), x if full else None, x[:, -1]

    # --- retrieval -------------------------------------------------------------------------------------

    def _taste(self, vector: Tensor, rank: Tensor, there: Tensor) -> Tensor:
        """[U, Q, D]: mean of the recent items' vectors [U, R, D], decayed by rank at each query's own horizon."""
        weight = torch.exp(-rank[:, None].float() / self.log_horizon.exp()[:, None])  # [U, Q, R]
        weight = weight * there[:, None]
        weight = weight / weight.sum(-1, keepdim=True).clamp_min(1e-6)
        return weight @ vector

    def _queries(self, hidden: Tensor, taste: Tensor) -> Tensor:
        """hidden [U, P, D], taste [U, P, Q, D] -> L2-normalised [U, P, Q, D]."""
        learned = self.query_mlp(self.query_norm(hidden)).unflatten(-1, (-1, self.config.width))
        return F.normalize(taste + learned, dim=-1)

    def query(self, ctx: ContextKV) -> Tensor:
        """Queries [U, Q, D], L2-normalised; an item scores ``scale() * query . items.vector(item)``."""
        return ctx.query

    def scale(self) -> Tensor:
        """Inverse temperature of the retrieval scores (scalar, learned, at most 100)."""
        return self.log_scale.exp().clamp(max=100.0)

    # --- past events, for training ----------------------------------------------------------------------

    def past(self, ctx: ContextKV, recent: Events) -> tuple[Tensor, Tensor]:
        """Queries [N, Q, D] and action logits [N, A] at every recent event (``context(..., full=True)``).

        An event's query predicts the next item; its logits are meant for the loss where its own action was
        masked. They know the event and the events before it, but also the whole summary: an event the
        summary already covers (``time <= last_event_ms``) has seen its own future and belongs in no loss.

        Raises:
            ValueError: the context was computed without ``full``.
        """
        if ctx.hidden is None:
            raise ValueError("past() needs hidden states: compute the context with full=True")
        r = ctx.recent_item.shape[1]
        lengths = torch.from_numpy(recent.lengths).to(ctx.mask.device)
        place = torch.arange(r, device=ctx.mask.device)
        there = place < lengths[:, None]
        hidden = ctx.hidden[:, -1 - r : -1]  # [U, R, D]
        behind = (place[:, None] - place).clamp_min(0)  # [R, R], how many events lie between
        weight = torch.exp(-behind / self.log_horizon.exp()[:, None, None]).tril()  # [Q, R, R]
        weight = weight / weight.sum(-1, keepdim=True)
        taste = (weight @ self.items.vector(ctx.recent_item)[:, None]).transpose(1, 2)  # [U, R, Q, D]
        queries = self._queries(hidden, taste)
        return queries[there], self.head(self.head_norm(hidden[there]))

    # --- ranking ---------------------------------------------------------------------------------------

    def rank(
        self,
        ctx: ContextKV,
        item: Tensor | np.ndarray,
        offsets: Tensor | np.ndarray | crossing.Plan,
        vectors: Tensor | None = None,
        cross: Callable[..., Tensor] = crossing.fast,
    ) -> Tensor:
        """Logits [B, A] of candidates, one per action; the candidate's own action is always hidden.

        Args:
            ctx: contexts of U users.
            item: int64 [B], grouped by user.
            offsets: int64 [U + 1], or a plan made of it.
            vectors: [B, D], the items' L2-normalised vectors, where the index returned them already
                (arXiv 2606.00422, serving: stored vectors are used directly as candidate tokens).
            cross: form of the crossing, ``fast`` or ``naive``.

        Raises:
            DataError: items, offsets, vectors and contexts are not of the same candidates and users.
        """
        device = self.now_token.device
        item = torch.as_tensor(item, device=device)
        plan = offsets if isinstance(offsets, crossing.Plan) else crossing.Plan.of(offsets, device)
        vector = self.items.vector(item) if vectors is None else vectors.to(device)
        found = (len(item), tuple(vector.shape), ctx.users)
        expected = (plan.candidates, (plan.candidates, self.config.width), plan.users)
        if found != expected:
            raise DataError(
                f"candidates: expected items, vectors and users {expected} by the offsets, found {found}"
            )
        known = self.read(ctx, item, vector, plan)
        x = self.candidates(vector, known)
        for number, layer in enumerate(self.stack):
            h = layer.before_attention(x)
            q, k, v = layer.project(h)  # [B, H, E]
            read = cross(q, k, v, ctx.keys[number], ctx.values[number], ctx.mask, plan)
            x = layer.finish(x, read)
        return self.logits(x, known)

    def candidates(self, vector: Tensor, known: Tensor) -> Tensor:
        """Tokens [B, D] before the first layer. The action is the MASK class of a masked past action."""
        action = self.events.features[self.events.actions]
        return self.deep(known).add_(vector + action, alpha=math.sqrt(self.config.width))

    def logits(self, x: Tensor, known: Tensor) -> Tensor:
        """Logits [B, A] from tokens [B, D] after the last layer and what was read without attention [B, W]."""
        logits = self.head(self.head_norm(x)).add_(self.wide(known))
        return logits if self.direct is None else logits.add_(self.direct(known))

    def read(self, ctx: ContextKV, item: Tensor, vector: Tensor, plan: crossing.Plan) -> Tensor:
        """What is known of (user, candidate) without attention, [B, W]: what every reader found."""
        return torch.cat([reader(ctx, item, vector, plan) for reader in self.readers], -1)
