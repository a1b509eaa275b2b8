"""A ranker of one's own, with lifelong history from the cache: what it takes, and what it gives.

    vista demo --out demo-out            # or a warehouse, a model and a store of your own
    python docs/examples/own_ranker.py demo-out

The ranker is a small DLRM (arXiv 1906.00091): hashed user and item embeddings, surface, hour and the mean of
the user's last 32 items, dot products between them, an MLP. It is trained twice on the same rows, without
and with the cached summary:

- the seed tokens are attended to with the candidate's embedding, and what is read joins the dot products;
- the slot tokens are read by the candidate's own keys, and the log masses join the MLP.

No row sees its own future: rows begin after the watermark of the generation they look up (``as_of``), the
first part of them trains, the rest judges. Negatives are drawn by popularity on the positive's surface. The
last lines are serving: one user, one lookup, many candidates.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cache_store import Store
from cache_store.torch_feature import SummaryFeature
from vista import bundle as bundles
from vista import metrics
from vista.data.loader import Tables
from vista.data.tables import Warehouse
from vista.slots import SlotMemory

NEGATIVES = 4
RECENT = 32
HASHED = 1 << 16
HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Rows:
    """One row per shown item: user [n], item, surface, time (ms) int64, label float32; recent int64 [n, 32], the
    user's items before the request, newest first, -1 where there are fewer."""

    user: np.ndarray
    item: np.ndarray
    surface: np.ndarray
    time: np.ndarray
    label: np.ndarray
    recent: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray | slice) -> Rows:
        return Rows(*(getattr(self, f.name)[rows] for f in fields(self)))


def positives_after(warehouse: Warehouse, watermark_ms: int) -> Rows:
    """Events later than the watermark, in order of time."""
    tables = Tables.of(warehouse)
    found: list[list[np.ndarray]] = [[] for _ in range(5)]
    for bucket in tables.buckets():
        for piece in tables.pieces(bucket):
            later = piece.events.time > watermark_ms
            owner = np.repeat(np.asarray(piece.users), piece.events.lengths)
            item, surface, time = piece.events.item, piece.events.surface.astype(np.int64), piece.events.time
            starts = np.repeat(piece.events.offsets[:-1], piece.events.lengths)
            at = np.flatnonzero(later)
            first = (
                np.maximum.accumulate(  # the first event of each event's moment: its own request is no past
                    np.where(
                        np.diff(time, prepend=-1).astype(bool) | (starts == np.arange(len(time))),
                        np.arange(len(time)),
                        0,
                    )
                )[at]
            )
            before = first[:, None] - 1 - np.arange(RECENT)
            recent = np.where(before >= starts[at, None], item[np.maximum(before, 0)], -1)
            for column, values in zip(
                found, (owner[at], item[at], surface[at], time[at], recent), strict=True
            ):
                column.append(values)
    user, item, surface, time, recent = (np.concatenate(column) for column in found)
    rows = Rows(user, item, surface, time, np.ones(len(user), np.float32), recent)
    return rows.take(np.argsort(time, kind="stable"))


def with_negatives(positives: Rows, seed: int = 0) -> Rows:
    """Each positive with items of others on its surface, drawn by popularity within these rows: drawn over all
    rows, items that come up later would be known as negatives."""
    rng = np.random.default_rng(seed)
    drawn = np.empty((len(positives), NEGATIVES), np.int64)
    for place in np.unique(positives.surface):
        rows = np.flatnonzero(positives.surface == place)
        drawn[rows] = positives.item[rng.choice(rows, (len(rows), NEGATIVES))]
    shown = positives.take(np.repeat(np.arange(len(positives)), NEGATIVES + 1))
    item = np.concatenate([positives.item[:, None], drawn], 1)
    label = (item == positives.item[:, None]).astype(np.float32)
    return replace(shown, item=item.ravel(), label=label.ravel())


class OwnRanker(nn.Module):
    """A DLRM; with ``feature``, one that knows the user's lifelong history."""

    def __init__(
        self, width: int = 16, feature: SummaryFeature | None = None, slots: SlotMemory | None = None
    ) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(HASHED, width), nn.Embedding(HASHED, width)
        self.surface, self.hour = nn.Embedding(64, width), nn.Embedding(24, width)
        self.feature, self.slots = feature, slots
        towers, dense = 5, 1
        if feature is not None and slots is not None:
            d = feature.decoder.width
            self.ask, self.key, self.value = nn.Linear(width, width), nn.Linear(d, width), nn.Linear(d, width)
            towers, dense = 6, 1 + slots.features + 1
        self.pairs = torch.triu_indices(towers, towers, 1)
        self.mlp = nn.Sequential(
            nn.Linear(self.pairs.shape[1] + width + dense, 64), nn.ReLU(), nn.Linear(64, 1)
        )
        for table in (self.user, self.item, self.surface, self.hour):
            nn.init.normal_(table.weight, std=width**-0.5)

    def forward(self, rows: Rows, as_of: int | None = None) -> Tensor:
        """Logits [n]."""
        item, time = torch.from_numpy(rows.item), torch.from_numpy(rows.time)
        asked = self.item(item % HASHED)
        recent = torch.from_numpy(rows.recent)
        there = (recent >= 0).float()
        pooled = torch.einsum("nr,nrw->nw", there, self.item(recent % HASHED)) / there.sum(
            1, keepdim=True
        ).clamp(1)
        towers = [
            pooled,
            self.user(torch.from_numpy(rows.user) % HASHED),
            asked,
            self.surface(torch.from_numpy(rows.surface) % 64),
            self.hour(time // HOUR_MS % 24),
        ]
        dense = [asked, torch.log1p((recent == item[:, None]).sum(1, keepdim=True).float())]
        if self.feature is not None and self.slots is not None:
            users, row_of = np.unique(rows.user, return_inverse=True)  # a user's summary once per batch
            found = self.feature(users, as_of=as_of)
            user = torch.from_numpy(row_of)
            keys, values = self.key(found.group("seeds")), self.value(found.group("seeds"))
            scores = torch.einsum("nw,nsw->ns", self.ask(asked), keys[user]) / keys.shape[-1] ** 0.5
            towers.append(torch.einsum("ns,nsw->nw", scores.softmax(-1), values[user]))
            # rows of one user have times of their own: read as of the summary, then age each row by itself
            then = torch.zeros(len(users), dtype=torch.int64)
            mass = self.slots.read(found.group("slots"), then, user, item)
            elapsed = (time - found.last_event_ms[user]).clamp(min=0) * found.mask[user]
            aged = torch.exp2(-elapsed[:, None] * self.slots.decay_per_ms).float()
            mass = mass * aged.repeat(1, self.slots.key_count)
            dense += [torch.log1p(mass), found.mask[user, None].float()]
        stacked = torch.stack(towers, 1)
        products = (stacked @ stacked.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return self.mlp(torch.cat([products, *dense], 1))[:, 0]


def train(
    model: OwnRanker, rows: Rows, as_of: int, epochs: int = 2, batch: int = 1_024, seed: int = 0
) -> None:
    own = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(own, lr=3e-3)
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(rows))
        for start in range(0, len(rows), batch):
            part = rows.take(order[start : start + batch])
            loss = F.binary_cross_entropy_with_logits(model(part, as_of), torch.from_numpy(part.label))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()


@torch.no_grad()
def judge(model: OwnRanker, rows: Rows, as_of: int) -> dict[str, float]:
    p = np.concatenate(
        [
            torch.sigmoid(model(rows.take(slice(i, i + 4_096)), as_of)).numpy()
            for i in range(0, len(rows), 4_096)
        ]
    )
    return {
        "auc": round(metrics.auc(p, rows.label), 4),
        "normalised_entropy": round(metrics.normalised_entropy(p, rows.label), 4),
    }


def main(home: Path) -> dict:
    torch.set_num_threads(1)
    bundle = bundles.load(home / "model")
    warehouse = Warehouse(home / "warehouse").open()
    slots = bundle.model.slots
    with Store.open(home / "store", fingerprint=bundle.fingerprint) as store:
        watermark = min(g.watermark_ms for g in store.generations())
        positives = positives_after(warehouse, watermark)
        cut = int(len(positives) * 0.6)
        training = with_negatives(positives.take(slice(0, cut)))
        judged = with_negatives(positives.take(slice(cut, None)), 1)
        answer: dict = {"training_rows": len(training), "judged_rows": len(judged), "as_of": watermark}
        for name in ("without", "with"):
            torch.manual_seed(0)
            feature = SummaryFeature(store, missing="learned") if name == "with" else None
            model = OwnRanker(feature=feature, slots=slots if feature is not None else None)
            train(model, training, watermark)
            answer[name] = judge(model, judged, watermark)
        # serving: one user, one lookup of the live generation, many candidates
        user, now = int(positives.user[-1]), int(positives.time[-1]) + 1
        items = np.unique(positives.item)[:200]
        n = len(items)
        last = positives.take(np.full(n, len(positives) - 1))
        request = replace(last, item=items, time=np.full(n, now))
        with torch.no_grad():
            best = model(request).topk(5).indices.numpy()
        answer["served"] = {"user": user, "items": items[best].tolist()}
    return answer


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-out"))))
