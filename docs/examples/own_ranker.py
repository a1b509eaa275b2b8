"""A ranker of one's own that reads summaries over ``vista serve``; nothing of this project but the client is in it.

    python docs/examples/own_ranker.py shop/after.parquet --home shop-home --serve grpc://127.0.0.1:8815

Each event after the cut is a request: which of ten skus is it? The model is a two-layer network over the candidate and,
for ``with summaries``, over what the customer did before the cut: 64 skus with the log of their masses,
attended to in the ranker's own embeddings. The first half of the time trains, the second judges, the customers are the
same. Summaries were made before the cut, so no request reads its own future.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cache_store.flight.client import SummaryClient
from vista import bundle as bundles

TOKENS, CANDIDATES, WIDTH = 64, 10, 32


class Ranker(nn.Module):
    """Scores [B, C] of candidates, rows of its own table; ``items`` and ``bias`` [B, S] are what was looked up."""

    def __init__(self, skus: int, reads: bool) -> None:
        super().__init__()
        self.reads = reads
        self.embed = nn.Embedding(
            skus + 1, WIDTH, padding_idx=0
        )  # row 0: a sku that the ranker does not know
        self.sharpness = nn.Parameter(torch.tensor(12.0))
        self.mlp = nn.Sequential(nn.Linear(2 * WIDTH + 2, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))

    def forward(self, candidates: Tensor, items: Tensor, bias: Tensor) -> Tensor:
        c = self.embed(candidates)
        if not self.reads:
            items, bias = torch.zeros_like(items), torch.full_like(bias, -20.0)
        keys = self.embed(items)
        score = (
            self.sharpness * F.normalize(c, dim=-1) @ F.normalize(keys, dim=-1).transpose(1, 2)
            + bias[:, None]
        )
        empty = (self.sharpness * 0.8).expand(*score.shape[:-1], 1)  # takes the share of what nothing is like
        share = torch.cat([score, empty], -1).softmax(-1)[..., :-1]
        read, odds = share @ keys, (score.logsumexp(-1) - empty[..., 0]).clamp_min(-20) / 4
        own = (candidates[:, :, None] == items[:, None]) * bias[:, None].exp()
        features = [c, read, odds[..., None], torch.log1p(own.sum(-1))[..., None]]
        return self.mlp(torch.cat(features, -1))[..., 0]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("log", type=Path)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--serve", required=True, help="Address of `vista serve`.")
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    log = pq.read_table(given.log).sort_by("at")
    customers, skus = log["customer"].to_numpy(), log["sku"].to_numpy()
    ids = bundles.load(given.home / "model").encode(items=skus.tolist())[
        "item"
    ]  # texts as the summaries know them
    known, row = np.unique(ids, return_inverse=True)
    asked, of = np.unique(customers, return_inverse=True)
    with SummaryClient(given.serve, tokens=TOKENS) as client:
        found = client.lookup(asked)
    shape = (len(asked), TOKENS)
    items = found.column("items").flatten().to_numpy().reshape(shape)
    bias = torch.from_numpy(found.column("bias").flatten().to_numpy().reshape(shape).copy()).clamp_min(-20.0)
    at = np.minimum(np.searchsorted(known, items), len(known) - 1)
    mine = torch.from_numpy(
        np.where(known[at] == items, at + 1, 0)
    )  # skus of the summaries as rows of this ranker
    rng = np.random.default_rng(0)
    owner, half = torch.from_numpy(of), len(row) // 2
    # nine other skus, drawn by how often they come in the same half: popularity tells nothing
    others = [rng.choice(part, (len(part), CANDIDATES - 1)) for part in (row[:half], row[half:])]
    slates = torch.from_numpy(np.concatenate([row[:, None], np.concatenate(others)], 1) + 1)
    told = {
        "requests": len(row) - half,
        "customers found": int((found.column("status").to_numpy() < 2).sum()),
    }
    for name, reads in (("without summaries", False), ("with summaries", True)):
        model = Ranker(len(known), reads)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-4)
        for _ in range(given.steps):
            some = torch.from_numpy(rng.integers(0, half, 128))
            score = model(slates[some], mine[owner[some]], bias[owner[some]])
            loss = F.cross_entropy(score, torch.zeros(len(some), dtype=torch.int64))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            score = model(slates[half:], mine[owner[half:]], bias[owner[half:]])
        first, rest = score[:, :1], score[:, 1:]
        told[f"AUC {name}"] = round(float(((first > rest) + 0.5 * (first == rest)).mean()), 4)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
