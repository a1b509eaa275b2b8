"""What stage 2 is given beside the recent events: the rivals, under one interface.

Every variant has the same ranker, the same examples and the same steps. ``attend`` gives its raw history to
the candidates by softmax attention in every layer, with the ranker's own key and value weights: the ceiling
that a summary is measured against (at a cost that grows with the history). ``counts`` adds what a perfect
memory of (item, time) pairs would read, without collisions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cache_store.quantize import Codec
from vista.config import EmbeddingConfig, ModelConfig, RankerConfig, SlotConfig, SummarizerConfig
from vista.context_kv import ContextKV
from vista.data.events import Events
from vista.data.examples import Batch
from vista.embedding import gaps
from vista.model import VistaModel
from vista.ops.crossing import Plan, fast
from vista.recent import select_recent

MISSING = 2


@dataclass(frozen=True)
class Variant:
    """One context.

    Attributes:
        seeds, slots: groups of summary tokens that are used. chunk: of the summarizer; 0 is the paper's form.
        attend: events before the cut that candidates attend to raw; 0 for none.
        counts: slot features come from exact counts instead of hashed ones.
        recent: raw events beside the summary. distinct: newest of each item first, out of 1,024.
        bytes: served per user.
    """

    name: str
    seeds: bool = False
    slots: bool = False
    chunk: int = 64
    attend: int = 0
    counts: bool = False
    recent: int = 32
    distinct: bool = False


def variants(window: int = 8_192) -> dict[str, Variant]:
    """The rivals of the study by name."""
    found = [
        Variant("recent"),
        Variant("budget", recent=96),
        Variant("distinct", recent=96, distinct=True),
        Variant("last1024", attend=1_024),
        Variant("full", attend=window),
        Variant("full+counts", attend=window, counts=True),
        Variant("paper", seeds=True, chunk=0),
        Variant("seeds", seeds=True),
        Variant("slots", slots=True),
        Variant("ours", seeds=True, slots=True),
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
    slots = base.slots if variant.slots or variant.counts else replace(base.slots, buckets=0, clusters=0)
    seeds = base.summarizer.seeds if variant.seeds else (0 if slots.enabled else 1)
    return replace(
        base,
        actions=actions,
        seed=seed,
        embedding=replace(base.embedding, content_width=content_width),
        slots=slots,
        summarizer=replace(base.summarizer, seeds=seeds, chunk=variant.chunk),
        ranker=replace(base.ranker, recent=variant.recent),
    )


BASE = ModelConfig(
    width=64,
    embedding=EmbeddingConfig(tables=2, rows=65_536),
    slots=SlotConfig(),
    summarizer=SummarizerConfig(layers=2, heads=2, seeds=64, chunk=64),
    ranker=RankerConfig(layers=2, heads=2, recent=32),
)
"""24,448 masses of a byte and 64 x 64 seed values of two: 32,640 bytes served, the default record."""


def served_bytes(model: VistaModel, variant: Variant, codecs: dict[str, str] | None = None) -> int:
    """Bytes per user of the variant's summary (or of its raw events at 17 bytes each: item, time, action)."""
    if variant.attend:
        return variant.attend * 17
    size = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "int8": 1.0, "log8": 1.0, "int4": 0.5}
    used = [
        g for g in model.groups if (g[0] == "seeds" and variant.seeds) or (g[0] == "slots" and variant.slots)
    ]
    total = sum(tokens * width * size[(codecs or {}).get(name, codec)] for name, tokens, width, codec in used)
    return int(total) + max(0, variant.recent - 32) * 17


class ExactMasses:
    """Stands in for the slot memory's ``read``: masses without collisions, from the events themselves."""

    def __init__(self, slots, batch: Batch) -> None:
        self._slots, self._batch = slots, batch

    @property
    def tokens(self) -> int:
        return self._slots.tokens

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
                weight = memory._decay(age[hit], later[hit])
                mass = np.stack([np.bincount(at[hit], w, len(names)) for w in weight.T], 1)
                if key == 0:
                    found[a:b, : memory.rows] = mass[place][:, None]
                else:
                    found[a:b, -1] = mass[place]
        return torch.from_numpy(found).flatten(1)


class History:
    """Raw events as keys and values for the candidates, per window and layer; a slate sees those before its
    cut.

    Ages are taken at the window's last slate: within a visit of some dozen slates they differ little.
    """

    def __init__(self, model: VistaModel, batch: Batch, limit: int) -> None:
        self.batch = batch
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
        self.limit = limit
        window = batch.events.slices(np.array(starts), np.array(stops))
        self.offsets = window.offsets
        self.layers = self._project(model, window, now)

    def _project(self, model: VistaModel, window: Events, now: np.ndarray) -> list[tuple[Tensor, Tensor]]:
        ranker = model.ranker
        columns = (window.item, window.action, window.surface, window.time, gaps(window))
        x = ranker.events(*(torch.from_numpy(c) for c in columns)) * math.sqrt(model.config.width)
        owner = np.repeat(np.arange(window.users), window.lengths)
        age = np.maximum(now[owner] - window.time, 0)
        rank = window.offsets[1:][owner] - 1 - np.arange(len(window))
        x = x + ranker._recent_places(torch.from_numpy(age), torch.from_numpy(rank))
        found = []
        for layer in ranker.layers:
            h = layer.before_attention(x)
            found.append((layer.split(layer.key(h)), layer.split(layer.value(h))))
        return found

    def crossing(self):
        """A form of the crossing (see ``vista.ops.crossing``) that also reads the history; one layer per
        call."""
        number = iter(range(len(self.layers)))

        def cross(
            q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, mask: Tensor, _: Plan
        ) -> Tensor:
            hk, hv = self.layers[next(number)]
            offsets, pieces, rows = self.batch.offsets, [], []
            for w in range(len(self.cuts)):
                mine = np.flatnonzero(self.batch.user_of == w)
                if not len(mine):
                    continue
                a, b = int(offsets[mine[0]]), int(offsets[mine[-1] + 1])
                window = slice(int(self.offsets[w]), int(self.offsets[w + 1]))
                index, cut = torch.from_numpy(mine), torch.from_numpy(self.cuts[w])[:, None]
                place = torch.arange(window.stop - window.start)
                seen = (place < cut) & (place >= cut - self.limit)  # [K, N]
                long = (len(mine), -1, -1, -1)
                read = fast(
                    q[a:b],
                    k[a:b],
                    v[a:b],
                    torch.cat([hk[window][None].expand(long), keys[index]], 1),
                    torch.cat([hv[window][None].expand(long), values[index]], 1),
                    torch.cat([seen, mask[index]], 1),
                    offsets[mine[0] : mine[-1] + 2] - a,
                )
                pieces.append(read)
                rows.append(np.arange(a, b))
            return torch.cat(pieces)[torch.from_numpy(np.argsort(np.concatenate(rows)))]

        return cross


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


def logits(
    model: VistaModel,
    variant: Variant,
    batch: Batch,
    exact: bool = False,
    codecs: dict[str, str] | None = None,
) -> tuple[Tensor, ContextKV]:
    """Logits [B, A] of a batch's candidates under a variant."""
    summarizer = model.summarizer
    if variant.seeds or variant.slots:
        cuts = batch.cut
        if variant.seeds and not variant.chunk and not exact:
            # Nothing can be shared between cuts in the paper's form: in training, a visit's slates share the
            # oldest.
            oldest = np.full(batch.events.users, np.iinfo(np.int64).max)
            np.minimum.at(oldest, batch.user_of, cuts)
            users = np.arange(batch.events.users)
            tokens = {
                n: x[torch.from_numpy(batch.user_of)]
                for n, x in summarizer.prefixes(batch.events, oldest, users).items()
            }
        else:
            tokens = summarizer.prefixes(batch.events, cuts, batch.user_of, exact=exact)
        if codecs:
            tokens = coded(tokens, codecs)
        status = None
    else:
        tokens, status = {}, np.full(len(batch), MISSING, np.uint8)
    recent = select_recent(batch.recent, variant.recent, variant.distinct)  # out of the last 1,024
    ctx = model.ranker.context(tokens, status, recent, batch.now_ms, batch.last_event_ms)
    more = {}
    if variant.attend:
        more["cross"] = History(model, batch, variant.attend).crossing()
    if variant.counts:
        kept = model.ranker.__dict__["slots"]
        model.ranker.__dict__["slots"] = ExactMasses(kept, batch)
        try:
            return model.ranker.rank(ctx, torch.from_numpy(batch.item), batch.offsets, **more), ctx
        finally:
            model.ranker.__dict__["slots"] = kept
    return model.ranker.rank(ctx, torch.from_numpy(batch.item), batch.offsets, **more), ctx
