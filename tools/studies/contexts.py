"""What stage 2 is given beside the recent events: the rivals, under one interface.

Every variant has the same ranker, the same 32 newest events (in the ranker's context, and under a reader), the
same examples and steps. They differ in what is read of the history before the cut. ``full`` gives all raw events of a
window to the candidates' attention, in every layer: what a summary is measured against, at a cost that grows with
the history.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cache_store.format.quantize import Codec
from tools.studies import tokens as kept
from tools.studies.alone import Alone, OwnVectors
from tools.studies.learned import HeaviestTokens, LearnedTokens, Tokens, distilled
from tools.studies.reader import Addressed, TokenReader
from tools.studies.tokens import HALF_LIVES, Kept, SimHash, Space
from vista.config import ModelConfig, fingerprint
from vista.data.events import Events
from vista.data.recent import select_recent
from vista.embedding.encoders import gaps
from vista.model import VistaModel
from vista.ops.crossing import Plan, fast
from vista.stage2.readers import FREQUENCIES, waves
from vista.training.batches import Batch

RECENT = 32
READERS = ("alone", "learned", "heaviest")
"""Options of a ``record`` that say who reads it instead of the ranker."""
BASE = ModelConfig()
"""The default model."""


@dataclass(frozen=True)
class Variant:
    """One context.

    Attributes:
        kind: of what is read of the history: ``none``, ``raw``, ``record`` (the product's own), ``twin``, ``sketch``,
            ``sdim``, ``touches``.
        bytes: of what is served for a user.
        options: of the kind.
    """

    name: str
    kind: str
    bytes: int
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def reads(self) -> str:
        """What is read of the history, whatever reads it and however much of it."""
        reader = (*READERS, "sequence", "places") if self.kind == "record" else ()
        options = {name: value for name, value in self.options.items() if name not in reader}
        return fingerprint({"kind": self.kind, **options})[:8]

    @property
    def mark(self) -> str:
        """Name and everything that makes it, for the name of a file."""
        return f"{self.name}-{fingerprint({'kind': self.kind, **self.options})[:8]}"


@dataclass(frozen=True)
class Sets:
    """Token sets that candidates attend to, padded.

    Attributes:
        unit: int64 [K], set of each slate; ascending.
        mass: float32 [V, T, M]; 0 where there is no token.
        vector: float32 [V, T, W].
    """

    unit: np.ndarray
    mass: Tensor
    vector: Tensor

    @staticmethod
    def of(unit: np.ndarray, found: list[Kept]) -> Sets:
        return Sets(unit, _padded([k.mass for k in found]), _padded([k.vector for k in found]))


def _padded(found: list[np.ndarray]) -> Tensor:
    return nn.utils.rnn.pad_sequence([torch.from_numpy(x) for x in found], batch_first=True)


@dataclass(frozen=True)
class Fed:
    """What a variant reads for one batch; made once, before training.

    Attributes:
        sets: tokens that candidates attend to.
        features: float32 [B, F], what they find under their own keys.
        record: records as the store keeps them, [V].
        unit: int64 [K], record of each slate.
        past: distinct items int64 [V, T] of the events of each record, and their masses float32 [V, T, M].
    """

    sets: Sets | None = None
    features: Tensor | None = None
    record: np.ndarray | None = None
    unit: np.ndarray | None = None
    past: Tokens | None = None


class Feed:
    """Makes :class:`Fed` for a variant. In training a few slates of a visit share what was kept before the oldest of
    them, or all of them where making it is dear; in judging every slate has its own."""

    def __init__(self, variant: Variant, space: Space, group_size: int = 1) -> None:
        self.variant, self.space, self.group_size = variant, space, group_size
        o = variant.options
        self.hashed = SimHash(space, **o) if variant.kind == "sdim" else None
        makers: dict[str, Callable[[np.ndarray], Kept]] = {
            "twin": lambda items: kept.own_clusters(items, space, **o),
            "sketch": lambda items: kept.sketch(items, space, **o),
        }
        self.make = makers.get(variant.kind)
        self.share = 4 if variant.kind == "record" else 1_024
        self.maker = None
        if variant.kind == "record":
            self.maker = product(variant, ("a",), 0, 0)
            self.maker.set_clusters(space.item, space.clusters(self.maker.clusters))

    def __call__(self, batch: Batch, exact: bool) -> Fed:
        if self.variant.kind == "touches":
            return Fed(None, torch.from_numpy(self._touches(batch)))
        if self.make is None and self.hashed is None and self.maker is None:
            return Fed()
        unit, cuts = np.arange(len(batch)), batch.cut
        if not exact:
            nth = unit - np.searchsorted(batch.user_of, batch.user_of)
            _, first, unit = np.unique(
                batch.user_of * len(batch) + nth // self.share, return_index=True, return_inverse=True
            )
            cuts = np.full(len(first), np.iinfo(np.int64).max)
            np.minimum.at(cuts, unit, batch.cut)
        user = batch.user_of if exact else batch.user_of[first]
        starts = batch.events.offsets[user]
        pasts = [batch.events.item[a : a + n] for a, n in zip(starts, cuts, strict=True)]
        if self.maker is not None:
            # nothing of it is learned, so any weights make it; what is learned are the vectors of those who read
            tokens = self.maker.summarizer.prefixes(batch.events, cuts, user, exact=True)
            found = Fed(record=encoded(self.maker, tokens), unit=unit)
            if exact or "distil" not in self.variant.options:
                return found
            each = [kept.added(items, kept.weights(len(items))) for items in pasts]
            return replace(found, past=(_padded([n for n, _ in each]), _padded([m for _, m in each])))
        if self.hashed is not None:
            folded = [self.hashed.fold(items) for items in pasts]
            parts = [self.hashed.features(folded[unit[k]], self._asked(batch, k)) for k in range(len(batch))]
            return Fed(None, torch.from_numpy(np.concatenate(parts)))
        assert self.make is not None
        return Fed(Sets.of(unit, [self.make(items) for items in pasts]))

    def _asked(self, batch: Batch, k: int) -> np.ndarray:
        return batch.item[batch.offsets[k] : batch.offsets[k + 1]]

    def _touches(self, batch: Batch) -> np.ndarray:
        parts = []
        for k in range(len(batch)):
            a = batch.events.offsets[batch.user_of[k]]
            b = a + np.searchsorted(
                batch.events.time[a : batch.events.offsets[batch.user_of[k] + 1]], batch.now_ms[k]
            )
            asked = self._asked(batch, k)
            parts.append(
                kept.touches(
                    batch.events.item[a:b],
                    batch.events.time[a:b],
                    int(batch.now_ms[k]),
                    asked,
                    self.group_size,
                )
            )
        return np.concatenate(parts)


class Contest(nn.Module):
    """A variant's model: the product's ranker, a reader of the recent events, and what reads the history.

    Attributes:
        tokens: that a candidate attends to at most.
    """

    def __init__(self, model: VistaModel, variant: Variant, fed: Sequence[Fed], seed: int) -> None:
        super().__init__()
        self.model, self.variant = model, variant
        features = next((f.features.shape[1] for f in fed if f.features is not None), 0)
        self.tokens = max((f.sets.mass.shape[1] for f in fed if f.sets is not None), default=0)
        self.tokens = variant.options.get("events", self.tokens)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.recent = TokenReader(model.config, ages=4 * FREQUENCIES)
            learned, heaviest = (variant.options.get(name, 0) for name in ("learned", "heaviest"))
            raw, sets = variant.kind == "raw", variant.kind in ("twin", "sketch") or learned or heaviest
            self.raw = TokenReader(model.config, ages=4 * FREQUENCIES) if raw else None
            self.long = TokenReader(model.config, horizons=len(HALF_LIVES)) if sets else None
            self.own = Addressed(model.config, features) if features else None
            self.alone = None
            if variant.kind == "record":
                self.tokens = model.tokens.sequence_length
                if variant.options.get("alone"):
                    self.alone = Alone(model.config.width, len(model.config.actions), model.tokens.horizons)
                    self.vectors = OwnVectors(model)
            self.few = (
                LearnedTokens(model, learned)
                if learned
                else HeaviestTokens(model, heaviest)
                if heaviest
                else None
            )
            self.tokens = learned or heaviest or self.tokens
        self.addressed = variant.kind == "record" and self.alone is None and self.few is None
        self.lost: list[Tensor] = []

    def forward(self, batch: Batch, fed: Fed) -> Tensor:
        """Logits [B, A]."""
        model = self.model
        recent = select_recent(batch.recent, RECENT, distinct=False)
        tokens: dict[str, Tensor] = {}
        if fed.record is not None and self.few is None:
            tokens = decoded(model, fed.record[fed.unit])
        ctx = model.ranker.context(
            tokens if self.addressed else {}, np.full(len(batch), self.addressed), recent, batch.now_ms,
            batch.last_event_ms,
        )  # fmt: skip
        item = torch.from_numpy(batch.item)
        asked = model.items.vector(item)
        reads: list[Any] = [_Recent(self, batch, recent)]
        if self.raw is not None:
            reads.append(_NewestEvents(self, batch, self.variant.options["events"]))
        self.lost = []
        if self.long is not None:
            reads.append(_Tokens(self, batch, self._sets(fed), fed.past))
        shares: list[list[Tensor]] = [[] for _ in reads]
        number = iter(range(len(model.ranker.layers)))

        def cross(
            q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, mask: Tensor, plan: Plan
        ) -> Tensor:
            n = next(number)
            out = fast(q, k, v, keys, values, mask, plan)
            for at, read in enumerate(reads):
                found = read(n, asked)
                shares[at].append(found[..., -1])
                out = out + torch.cat([found[..., :-1], torch.zeros_like(found[..., :1])], -1)
            return out

        logits = model.ranker.rank(ctx, item, batch.offsets, vectors=asked, cross=cross)
        for read, share in zip(reads, shares, strict=True):
            logits = logits + read.reader.logits(share)
        if self.own is not None:
            logits = logits + self.own(fed.features)
        if self.alone is not None:
            laid = _Laid(np.arange(len(batch)), batch.offsets, len(batch))
            since = torch.from_numpy(np.maximum(batch.now_ms - batch.last_event_ms, 0)) / 3_600_000
            logits = logits + self.alone(
                self.vectors.sequence(tokens), self.vectors, laid, asked, item, since
            )
        return logits

    def made(self, record: np.ndarray) -> Tokens:
        """Few tokens of records [V]."""
        tokens, groups = self.model.tokens, decoded(self.model, record)
        held = tokens.unpack(torch.cat([groups[name] for name in tokens.rows], 1))
        assert self.few is not None
        return self.few(tokens.sequence(held, self.model.items.vector))

    def _sets(self, fed: Fed) -> Sets:
        """With unit vectors [V, T, D] of the ranker's."""
        if fed.sets is None:
            assert fed.record is not None and fed.unit is not None
            vector, mass = self.made(fed.record)
            return Sets(fed.unit, mass, vector)
        project = self.model.items.project
        assert project is not None
        return replace(fed.sets, vector=nn.functional.normalize(project(fed.sets.vector), dim=-1))


def encoded(model: VistaModel, tokens: dict[str, Tensor]) -> np.ndarray:
    """Records [V] of a model's groups, by their own codecs."""
    codecs = [Codec(g.codec, g.tokens, g.width) for g in model.groups]
    fields = [(g.name, np.dtype(c.fields)) for g, c in zip(model.groups, codecs, strict=True)]
    record = np.zeros(len(next(iter(tokens.values()))), fields)
    for group, codec in zip(model.groups, codecs, strict=True):
        codec.encode(tokens[group.name].numpy(), record[group.name])
    return record


def decoded(model: VistaModel, record: np.ndarray) -> dict[str, Tensor]:
    """Inverse of :func:`encoded`: group name to float32 [V, S_g, D]."""
    found = {}
    for g in model.groups:
        out = np.empty((len(record), g.tokens, g.width), np.float32)
        Codec(g.codec, g.tokens, g.width).decode(record[g.name], out)
        found[g.name] = torch.from_numpy(out)
    return found


def _layer_values(model: VistaModel, number: int, x: Tensor) -> Tensor:
    layer = list(model.ranker.stack)[number]
    return layer.split(layer.value(layer.before_attention(x)))


class _Laid:
    """Candidates laid out by unit, [V, C], and back."""

    def __init__(self, unit: np.ndarray, offsets: np.ndarray, units: int) -> None:
        sizes = np.bincount(unit, np.diff(offsets), units).astype(np.int64)
        self.width = int(sizes.max(initial=0))
        first = np.concatenate([[0], np.cumsum(sizes)])[:-1]
        row = np.repeat(np.arange(units), sizes)
        self.place = torch.from_numpy(row * self.width + np.arange(len(row)) - np.repeat(first, sizes))
        self.units = units
        self.slate = np.repeat(np.arange(len(unit)), np.diff(offsets))

    def out(self, x: Tensor) -> Tensor:
        """[B, ...] -> [V, C, ...]."""
        room = x.new_zeros(self.units * self.width, *x.shape[1:])
        return room.index_copy(0, self.place, x).unflatten(0, (self.units, self.width))

    def back(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1)[self.place]


class _Events:
    """Raw events under a reader: U histories, padded."""

    def __init__(self, contest: Contest, reader: TokenReader, events: Events, now: np.ndarray) -> None:
        self.reader, model = reader, contest.model
        ranker = model.ranker
        columns = (events.item, events.action, events.surface, events.time, gaps(events))
        x = ranker.events(*(torch.from_numpy(c) for c in columns)) * math.sqrt(model.config.width)
        owner = np.repeat(np.arange(events.users), events.lengths)
        age = torch.from_numpy(np.maximum(now[owner] - events.time, 0))
        rank = torch.from_numpy(events.offsets[1:][owner] - 1 - np.arange(len(events)))
        self.features = torch.cat([waves(age / 1000), waves(rank)], -1)
        self.x = x + ranker.recent_place(self.features)
        self.vector = model.items.vector(torch.from_numpy(events.item))
        self.most = int(events.lengths.max(initial=0))
        self.place = torch.from_numpy(owner * self.most + np.arange(len(events)) - events.offsets[:-1][owner])
        self.users, self.model = events.users, model

    def padded(self, x: Tensor) -> Tensor:
        room = x.new_zeros(self.users * self.most, *x.shape[1:])
        return room.index_copy(0, self.place, x).unflatten(0, (self.users, self.most))

    def layer(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        read = self.reader
        parts = (
            read.vectors(number, self.vector),
            read.by_age(number, self.features),
            _layer_values(self.model, number, self.x),
        )
        return tuple(self.padded(x) for x in parts)  # type: ignore[return-value]


class _Recent:
    """The newest events of each slate."""

    def __init__(self, contest: Contest, batch: Batch, recent: Events) -> None:
        self.reader = contest.recent
        self.events = _Events(contest, self.reader, recent, batch.now_ms)
        self.laid = _Laid(np.arange(len(batch)), batch.offsets, len(batch))
        there = np.arange(self.events.most) < recent.lengths[:, None]
        self.seen = torch.from_numpy(there)[:, None]

    def __call__(self, number: int, asked: Tensor) -> Tensor:
        keys, bias, values = self.events.layer(number)
        return self.laid.back(self.reader.read(number, self.laid.out(asked), keys, bias, values, self.seen))


class _NewestEvents:
    """All raw events of a visit's window; a slate sees the ``limit`` newest before its cut.

    Ages are taken at the window's last slate: within a visit of some dozen slates they differ little.
    """

    def __init__(self, contest: Contest, batch: Batch, limit: int) -> None:
        assert contest.raw is not None
        self.reader, self.batch = contest.raw, batch
        owner, self.unit = np.unique(batch.user_of, return_inverse=True)
        stop, start = np.zeros((2, len(owner)), np.int64)
        np.maximum.at(stop, self.unit, batch.cut)
        start = stop.copy()
        np.minimum.at(start, self.unit, np.maximum(batch.cut - limit, 0))
        now = np.zeros(len(owner), np.int64)
        np.maximum.at(now, self.unit, batch.now_ms)
        base = batch.events.offsets[owner]
        window = batch.events.slices(base + start, base + stop)
        self.offsets = window.offsets
        self.events = _Events(contest, self.reader, window, now)
        cut = (batch.cut - start[self.unit])[np.repeat(np.arange(len(batch)), np.diff(batch.offsets))]
        self.cut, self.limit = torch.from_numpy(cut), limit

    def __call__(self, number: int, asked: Tensor) -> Tensor:
        events, read, pieces = self.events, self.reader, []
        keys, bias = read.vectors(number, events.vector), read.by_age(number, events.features)
        values = _layer_values(events.model, number, events.x)
        for w in range(events.users):
            mine = np.flatnonzero(self.unit == w)
            a, b = int(self.batch.offsets[mine[0]]), int(self.batch.offsets[mine[-1] + 1])
            rows = slice(int(self.offsets[w]), int(self.offsets[w + 1]))
            place = torch.arange(rows.stop - rows.start)
            seen = (place < self.cut[a:b, None]) & (place >= self.cut[a:b, None] - self.limit)
            pieces.append(
                read.read(
                    number,
                    asked[None, a:b],
                    keys[None, rows],
                    bias[None, rows],
                    values[None, rows],
                    seen[None],
                )[0]
            )
        return torch.cat(pieces)


class _Tokens:
    """Token sets with masses."""

    def __init__(self, contest: Contest, batch: Batch, sets: Sets, past: Tokens | None) -> None:
        assert contest.long is not None
        self.reader, self.model, self.sets, self.lost = contest.long, contest.model, sets, contest.lost
        self.laid = _Laid(sets.unit, batch.offsets, len(sets.mass))
        assert self.reader.amount is not None
        self.vector = vector = sets.vector
        self.there = sets.mass[..., 0] > 0
        amount = self.reader.amount(torch.log1p(sets.mass))
        self.x = (vector + amount / math.sqrt(vector.shape[-1])) * math.sqrt(vector.shape[-1])
        with torch.no_grad():
            self.past = past and (self.model.items.vector(past[0]), past[1])

    def __call__(self, number: int, asked: Tensor) -> Tensor:
        read = self.reader
        values = _layer_values(self.model, number, self.x)
        if self.past is not None:
            some = self.laid.out(asked)[:, ::4]  # of the candidates
            self.lost.append(distilled(read, number, some, (self.vector, self.sets.mass), self.past).mean())
        keys, bias = read.vectors(number, self.vector), read.by_mass(number, self.sets.mass)
        found = read.read(number, self.laid.out(asked), keys, bias, values, self.there[:, None])
        return self.laid.back(found)


def product(variant: Variant, actions: tuple[str, ...], content_width: int, seed: int) -> VistaModel:
    """The default model, with the record that the variant names, or none."""
    options = (
        {n: x for n, x in variant.options.items() if n not in (*READERS, "distil")}
        if variant.kind == "record"
        else {"items": 0}
    )
    config = replace(
        BASE, actions=actions, seed=seed,
        embedding=replace(BASE.embedding, rows=16_384, content_width=content_width),
        tokens=replace(BASE.tokens, **options),
        summarizer=replace(BASE.summarizer, seeds=0 if variant.kind == "record" else 1),
        ranker=replace(BASE.ranker, recent=RECENT),
    )  # fmt: skip
    return VistaModel(config)
