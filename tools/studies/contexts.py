"""What stage 2 is given beside the recent events: the rivals, under one interface.

Every variant has the same ranker, the same examples and the same steps. ``attend`` gives its raw history to
the candidates by softmax attention in every layer, with the ranker's own key and value weights: the ceiling
that a summary is measured against (at a cost that grows with the history). ``counts`` adds what a perfect
memory of (item, time) pairs would read, without collisions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cache_store.format.quantize import Codec
from vista.config import ModelConfig
from vista.data.events import Events
from vista.data.recent import select_recent
from vista.embedding.encoders import gaps
from vista.model import VistaModel
from vista.ops.crossing import Plan, fast
from vista.stage2.ranker import FREQUENCIES, waves
from vista.stage2.readers import SlotReader
from vista.training.examples import Batch

SHARPNESS = (12.0, 30.0)
"""Scores of an event of the candidate's own item under the ceiling's bluntest and sharpest head, at the start."""
EMPTY = 0.8
"""Score of the empty place as a share of that."""


@dataclass(frozen=True)
class Variant:
    """One context.

    Attributes:
        seeds, slots, tokens: groups of summary tokens that are used.
        summarizer: fields of ``SummarizerConfig`` that differ from the default; chunk 0 is the paper's form.
        attend: events before the cut that candidates attend to raw; 0 for none.
        counts: slot features come from exact counts instead of hashed ones.
        recent: raw events beside the summary.
        distinct: newest of each item first, out of 1,024.
        bytes: served per user.
    """

    name: str
    seeds: bool = False
    slots: bool = False
    tokens: bool = False
    summarizer: dict[str, Any] = field(default_factory=dict)
    attend: int = 0
    counts: bool = False
    recent: int = 32
    distinct: bool = False


PLACES = {"kind": "places", "seeds": 480, "chunk": 64, "half_lives_events": (math.inf,) * 4 + (256.0,)}
"""Seed tokens alone in 32,640 bytes: 384 places for all time, 96 for what is recent."""


def variants(window: int = 8_192) -> dict[str, Variant]:
    """The rivals of the study by name."""
    found = [
        Variant("recent"),
        Variant("budget", recent=96),
        Variant("distinct", recent=96, distinct=True),
        Variant("last1024", attend=1_024),
        Variant("full", attend=window),
        Variant("full+counts", attend=window, counts=True),
        Variant("paper", seeds=True, summarizer={"seeds": 16, "rows": "events", "chunk": 0}),
        Variant("seeds", seeds=True, summarizer={"seeds": 16}),
        Variant("places", seeds=True, summarizer=PLACES),
        Variant("slots", slots=True),
        Variant("hashed", seeds=True, slots=True, summarizer={"seeds": 16, "rows": "events"}),
        Variant("ours", tokens=True),
    ]
    return {v.name: v for v in found}


def model_config(
    variant: Variant,
    actions: tuple[str, ...],
    base: ModelConfig,
    content_width: int = 0,
    seed: int = 0,
) -> ModelConfig:
    """``base`` with the parts the variant uses; the ranker's width, layers and heads stay."""
    slots = replace(
        base.slots, buckets=(base.slots.buckets or HASHED) if variant.slots or variant.counts else 0
    )
    tokens = base.tokens if variant.tokens else replace(base.tokens, items=0)
    summarizer = replace(base.summarizer, **variant.summarizer)
    if not variant.seeds:
        summarizer = replace(summarizer, seeds=0 if slots.enabled or tokens.enabled else 1)
    return replace(
        base,
        actions=actions,
        seed=seed,
        embedding=replace(base.embedding, content_width=content_width),
        slots=slots,
        tokens=tokens,
        summarizer=summarizer,
        ranker=replace(base.ranker, recent=variant.recent),
    )


BASE = ModelConfig()
"""The default model."""

HASHED = 3_210
"""Buckets a row of hashed slots, as they were served until version 0.1."""


def served_bytes(model: VistaModel, variant: Variant) -> int:
    """Bytes per user of the variant's summary (or of its raw events at 17 bytes each: item, time, action)."""
    if variant.attend:
        return variant.attend * 17
    used = {"seeds": variant.seeds, "slots": variant.slots}  # exact tokens are made only where used
    groups = [Codec(codec, *shape).fields for name, *shape, codec in model.groups if used.get(name, True)]
    return sum(np.dtype(fields).itemsize for fields in groups) + max(0, variant.recent - 32) * 17


class ExactMasses:
    """Stands in for the slot memory's ``read``: masses without collisions, from the events themselves."""

    def __init__(self, slots, batch: Batch) -> None:
        self._slots, self._batch = slots, batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._slots, name)

    def read(self, slots: Tensor, elapsed_ms: Tensor, user_of: Tensor, item: Tensor) -> Tensor:
        """float32 [B, F], as ``SlotMemory.read`` gives where no two items share a bucket."""
        memory, batch = self._slots, self._batch
        found = np.zeros((len(batch.item), memory.key_count, memory.horizons), np.float32)
        clusters = (
            memory.keys(torch.from_numpy(batch.events.item))[:, -1].numpy() if memory.clusters else None
        )
        asked = memory.keys(item)[:, -1].numpy() if memory.clusters else None
        for k in range(len(batch)):
            a, b = batch.offsets[k], batch.offsets[k + 1]
            start = batch.events.offsets[batch.user_of[k]]
            rows = slice(start, start + batch.cut[k])
            time = batch.events.time[rows]
            age = np.maximum(batch.now_ms[k] - time, 0)
            later = batch.cut[k] - 1 - np.arange(batch.cut[k])
            for key in (0, memory.key_count - 1) if memory.clusters else (0,):
                ours = batch.events.item[rows] if key == 0 else clusters[rows]
                theirs = batch.item[a:b] if key == 0 else asked[a:b]
                names, place = np.unique(theirs, return_inverse=True)
                at = np.minimum(np.searchsorted(names, ours), len(names) - 1)
                hit = np.flatnonzero(names[at] == ours)
                weight = memory.decay(age[hit], later[hit])
                mass = np.stack([np.bincount(at[hit], w, len(names)) for w in weight.T], 1)
                if key == 0:
                    found[a:b, : memory.rows] = mass[place][:, None]
                else:
                    found[a:b, -1] = mass[place]
        return torch.from_numpy(found).flatten(1)


class HistoryRead(nn.Module):
    """Softmax attention from candidates to raw events: the ceiling's own weights.

    It starts as matching (an event of the same item scores ``SHARPNESS``, unrelated ones about 0) and can
    count: beside the events there is an empty place of score ``empty``, so the mass that falls on events grows
    with how many match. What is read goes into the layer; the log odds of that mass go straight to the logits, as
    the slots' masses do.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        r, d = config.ranker, config.width
        self.heads, self.size = r.heads, d // r.heads
        self.match = nn.ModuleList(
            nn.Linear(d, r.heads * (self.size - 1), bias=False) for _ in range(r.layers)
        )
        self.age = nn.ModuleList(nn.Linear(4 * FREQUENCIES, r.heads) for _ in range(r.layers))
        scale = torch.linspace(*SHARPNESS, r.heads).expand(r.layers, -1)
        self.log_scale = nn.Parameter(scale.log())
        self.empty = nn.Parameter(scale * EMPTY)
        self.wide = nn.Linear(r.layers * r.heads, len(config.actions))
        with torch.no_grad():
            for match, age in zip(self.match, self.age, strict=True):
                nn.init.orthogonal_(match.weight, math.sqrt(d / (d - r.heads)))
                age.weight.mul_(0.1)
                age.bias.zero_()
            self.wide.weight.fill_(0.5 / (r.layers * r.heads))
            self.wide.bias.zero_()

    def keys(self, number: int, vectors: Tensor, bias: Tensor) -> Tensor:
        """[N, H, E]: unit item vectors in each head's space, and one channel of bias."""
        matched = self.match[number](vectors).unflatten(-1, (self.heads, self.size - 1))
        return torch.cat([functional.normalize(matched, dim=-1), bias[..., None]], -1)


class History:
    """Raw events as keys and values for the candidates, per window and layer; a slate sees those before its
    cut.

    Ages are taken at the window's last slate: within a visit of some dozen slates they differ little.
    """

    def __init__(self, model: VistaModel, read: HistoryRead, batch: Batch, limit: int) -> None:
        self.batch, self.read, self.limit = batch, read, limit
        starts, stops, self.cuts = [], [], []
        now = np.zeros(batch.events.users, np.int64)
        for v in range(batch.events.users):
            mine = np.flatnonzero(batch.user_of == v)
            stop = int(batch.cut[mine].max())
            start = max(0, int(batch.cut[mine].min()) - limit)
            starts.append(batch.events.offsets[v] + start)
            stops.append(batch.events.offsets[v] + stop)
            self.cuts.append(batch.cut[mine] - start)
            now[v] = batch.now_ms[mine].max()
        window = batch.events.slices(np.array(starts), np.array(stops))
        self.offsets = window.offsets
        self.asked = model.items.vector(torch.from_numpy(batch.item))
        self.layers = self._project(model, window, now)
        self.mass: list[Tensor] = []

    def _project(self, model: VistaModel, window: Events, now: np.ndarray) -> list[tuple[Tensor, Tensor]]:
        ranker, read = model.ranker, self.read
        columns = (window.item, window.action, window.surface, window.time, gaps(window))
        x = ranker.events(*(torch.from_numpy(c) for c in columns)) * math.sqrt(model.config.width)
        owner = np.repeat(np.arange(window.users), window.lengths)
        age = torch.from_numpy(np.maximum(now[owner] - window.time, 0))
        rank = torch.from_numpy(window.offsets[1:][owner] - 1 - np.arange(len(window)))
        place = torch.cat([waves(age / 1000), waves(rank)], -1)
        x = x + ranker.recent_place(place)
        vectors = model.items.vector(torch.from_numpy(window.item))
        found = []
        for number, layer in enumerate(ranker.layers):
            value = layer.split(layer.value(layer.before_attention(x)))
            # The last channel of a value is 1: what is read there is the mass that fell on events.
            value = torch.cat([value[..., :-1], torch.ones_like(value[..., :1])], -1)
            found.append((read.keys(number, vectors, read.age[number](place)), value))
        return found

    def crossing(self):
        """A form of the crossing (see ``vista.ops.crossing``) that also reads the history; one layer per
        call."""
        number = iter(range(len(self.layers)))

        def cross(
            q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, mask: Tensor, plan: Plan
        ) -> Tensor:
            n = next(number)
            long = self._long(n)
            self.mass.append(long[..., -1])
            return fast(q, k, v, keys, values, mask, plan) + torch.cat(
                [long[..., :-1], torch.zeros_like(long[..., :1])], -1
            )

        return cross

    def _long(self, number: int) -> Tensor:
        """[B, H, E]: what each candidate reads from its slate's events."""
        keys, values = self.layers[number]
        read, offsets = self.read, self.batch.offsets
        ones = torch.ones(len(self.asked), read.heads)
        query = read.keys(number, self.asked, ones)
        query = torch.cat([query[..., :-1] * read.log_scale[number].exp()[:, None], query[..., -1:]], -1)
        pieces = []
        for w, cuts in enumerate(self.cuts):
            mine = np.flatnonzero(self.batch.user_of == w)
            a, b = int(offsets[mine[0]]), int(offsets[mine[-1] + 1])
            window = slice(int(self.offsets[w]), int(self.offsets[w + 1]))
            cut = torch.from_numpy(np.repeat(cuts, np.diff(offsets)[mine]))[:, None]
            place = torch.arange(window.stop - window.start)
            seen = (place < cut) & (place >= cut - self.limit)
            # The empty place is one more key: nothing but its score in the channel of bias, and no value.
            empty = torch.cat(
                [keys.new_zeros(1, read.heads, read.size - 1), read.empty[number][None, :, None]], 2
            )
            k = torch.cat([keys[window], empty]).transpose(0, 1)
            v = torch.cat([values[window], torch.zeros_like(empty)]).transpose(0, 1)
            mask = torch.cat([seen, seen.new_ones(b - a, 1)], 1)
            found = functional.scaled_dot_product_attention(
                query[a:b].transpose(0, 1)[None], k[None], v[None], attn_mask=mask, scale=1.0
            )
            pieces.append(found[0].transpose(0, 1))
        return torch.cat(pieces)

    def logits(self) -> Tensor:
        """[B, A]: what the masses say by themselves."""
        mass = torch.cat(self.mass, -1).clamp(1e-6, 1 - 1e-6)
        return self.read.wide(torch.logit(mass))


def coded(tokens: dict[str, Tensor], codecs: dict[str, str]) -> dict[str, Tensor]:
    """Tokens as they come back from the store; groups that ``codecs`` does not name stay as they are."""
    out = dict(tokens)
    for name in set(tokens) & set(codecs):
        value = tokens[name].detach().numpy()
        codec = Codec(codecs[name], value.shape[1], value.shape[2])
        record = np.zeros(len(value), codec.fields)
        codec.encode(value, record)
        back = np.empty_like(value)
        codec.decode(record, back)
        out[name] = torch.from_numpy(back)
    return out


def summaries(model: VistaModel, variant: Variant, batch: Batch, exact: bool = False) -> dict[str, Tensor]:
    """Summary tokens of every slate by group, [K, S_g, D]; none where the variant has no summary."""
    summarizer = model.summarizer
    if not (variant.seeds or variant.slots or variant.tokens):
        return {}
    if summarizer.chunk or exact or not variant.seeds:
        return summarizer.prefixes(batch.events, batch.cut, batch.user_of, exact=exact)
    # Nothing can be shared between cuts in the paper's form: in training, a visit's slates share the oldest.
    oldest = np.full(batch.events.users, np.iinfo(np.int64).max)
    np.minimum.at(oldest, batch.user_of, batch.cut)
    tokens = summarizer.prefixes(batch.events, oldest, np.arange(batch.events.users))
    return {name: x[torch.from_numpy(batch.user_of)] for name, x in tokens.items()}


def logits(model: VistaModel, variant: Variant, batch: Batch, tokens: dict[str, Tensor]) -> Tensor:
    """Logits [B, A] of a batch's candidates under a variant; ``tokens`` as :func:`summaries` gives them."""
    usable = None if tokens else np.zeros(len(batch), bool)
    recent = select_recent(batch.recent, variant.recent, variant.distinct)  # out of the last 1,024
    ctx = model.ranker.context(tokens, usable, recent, batch.now_ms, batch.last_event_ms)
    item = torch.from_numpy(batch.item)
    history = History(model, model.history, batch, variant.attend) if variant.attend else None
    more = {} if history is None else {"cross": history.crossing()}
    slots = next((r for r in model.ranker.readers if isinstance(r, SlotReader)), None)
    if variant.counts and slots is not None:
        slots.memory = ExactMasses(model.slots, batch)
    try:
        found = model.ranker.rank(ctx, item, batch.offsets, **more)
    finally:
        if slots is not None:
            slots.memory = model.slots
    return found if history is None else found + history.logits()
