"""A ranker of one's own, with and without cached summaries: trained on as-of reads, judged, served.

    python docs/examples/dlrm_ranker.py --home my-home --logs my-logs

What must be there is made by the commands in docs/downstream.md: a store with a generation per date in ``my-home``,
logs cut at the same dates in ``my-logs/part-*``. Rows of all parts but the first and the last train, the last part
judges. The model is plain PyTorch in the manner of DLRM (arXiv 1906.00091): embeddings, dense features, pairwise
dots, an MLP. Of the product it takes the store and, for the ``slots`` group, the key function of the bundle.

Letters: U requests of a batch, B = U x C candidates, R recent events, S tokens, D their width, d the ranker's width.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cache_store import Store
from cache_store.read.prefetch import LookAhead
from cache_store.torch.feature import SummaryFeature
from cache_store.torch.rows import AsOfBatches, AsOfRows
from vista import bundle as bundles
from vista.stage1.slots import SlotMemory
from vista.training import metrics

RECENT = 16
HOUR_MS = 3_600_000
Batch = dict[str, Any]


# --- the model: everything down to ``forward`` would be yours already ----------------------------------------


class SeedReader(nn.Module):
    """The ``seeds`` group: target attention. The candidate asks, the user's seed tokens answer."""

    def __init__(self, width: int, d: int) -> None:
        super().__init__()
        self.norm, self.key, self.value = nn.RMSNorm(width), nn.Linear(width, d), nn.Linear(width, d)

    def forward(self, seeds: Tensor, candidate: Tensor) -> Tensor:
        """seeds [U, S, D], candidate [U, C, d] -> [U, C, d]."""
        seeds = self.norm(seeds)
        return F.scaled_dot_product_attention(candidate, self.key(seeds), self.value(seeds))


class SlotReader(nn.Module):
    """The ``slots`` group: each candidate looks under its own keys. Nobody attends to these tokens."""

    def __init__(self, memory: SlotMemory, d: int) -> None:
        super().__init__()
        self.memory = memory  # no parameters: hash keys, item clusters and half-lives of the bundle
        self.mlp = nn.Sequential(nn.Linear(memory.features, d), nn.ReLU(), nn.Linear(d, d))

    def forward(self, slots: Tensor, elapsed_ms: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """slots [U, S, D], elapsed_ms int64 [U], item int64 [U, C] -> [U, C, d], log masses [U, C, F]."""
        owner = torch.arange(len(item)).repeat_interleave(item.shape[1])
        masses = torch.log1p(self.memory.read(slots, elapsed_ms, owner, item.flatten()))
        masses = masses.unflatten(0, item.shape)
        return self.mlp(masses), masses


class Dlrm(nn.Module):
    """Probability logits of C candidates for each of U requests.

    Args:
        items, surfaces: sizes of the tables.
        content: float32 [items, W], a fixed vector per item.
        dense: dense features per candidate.
        users: rows of the hashed user table.
        seeds_width: D to read the seeds, 0 not to.
        memory: to read the slots, None not to.
    """

    def __init__(
        self,
        items: int,
        surfaces: int,
        content: Tensor,
        dense: int,
        users: int = 4_096,
        d: int = 32,
        seeds_width: int = 0,
        memory: SlotMemory | None = None,
    ) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(users, d), nn.Embedding(items, d)
        self.surface = nn.Embedding(surfaces, d)
        for table in (self.user, self.item, self.surface):
            nn.init.normal_(table.weight, std=d**-0.5 / 4)
        self.register_buffer("content", content)
        self.project = nn.Linear(content.shape[1], d, bias=False)
        self.seeds = SeedReader(seeds_width, d) if seeds_width else None
        self.slots = SlotReader(memory, d) if memory is not None else None
        known = (memory.features if memory is not None else 0) + (seeds_width > 0 or memory is not None)
        self.bottom = nn.Sequential(nn.Linear(dense + known, 64), nn.ReLU(), nn.Linear(64, d))
        fields = 5 + (self.seeds is not None) + (self.slots is not None)
        self.top = nn.Sequential(nn.Linear(d + fields * (fields - 1) // 2, 64), nn.ReLU(), nn.Linear(64, 1))
        self.pairs = torch.triu_indices(fields, fields, 1)

    def embed(self, item: Tensor) -> Tensor:
        return self.item(item) + self.project(self.content[item])

    def forward(self, row: Batch, summary: dict[str, Tensor], status: Tensor, elapsed_ms: Tensor) -> Tensor:
        """Logits [U, C].

        Args:
            row: columns of :class:`Rows`: user [U], item, item_id, surface [U, C], recent [U, R], dense [U, C, X].
            summary: group name to float32 [U, S_g, D], zeros where there is none.
            status: uint8 [U].
            elapsed_ms: int64 [U], from the summary's last event to the request.
        """
        candidate = self.embed(row["item"])
        u, c, d = candidate.shape
        there = (row["recent"] > 0).float()[..., None]
        recent = (self.embed(row["recent"]) * there).sum(1) / there.sum(1).clamp_min(1)
        fields = [candidate, self.surface(row["surface"])]
        fields += [
            x[:, None].expand(u, c, d) for x in (self.user(row["user"] % len(self.user.weight)), recent)
        ]
        dense = [row["dense"]]
        if self.seeds is not None or self.slots is not None:
            # FRESH and STALE are 0 and 1; without a summary the tokens are zeros and the model is told so
            dense.append((status < 2).float()[:, None, None].expand(u, c, 1))
        if self.seeds is not None:
            fields.append(self.seeds(summary["seeds"], candidate))
        if self.slots is not None:
            read, masses = self.slots(summary["slots"], elapsed_ms, row["item_id"])
            fields.append(read)
            dense.append(masses)
        bottom = self.bottom(torch.cat(dense, -1))
        table = torch.stack([bottom, *fields], 2)  # [U, C, fields, d]
        dots = (table @ table.transpose(2, 3))[..., self.pairs[0], self.pairs[1]]
        return self.top(torch.cat([bottom, dots], -1))[..., 0]


# --- the rows: what your feature pipeline gives --------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Requests of some parts of the logs with features that were known when they began.

    Attributes:
        user: int64 [N].
        time: int64 [N], ms.
        columns: item (row of the table), item_id, surface int64 [N, C]; recent int64 [N, R], rows of the table, 0 is
            none; dense float32 [N, C, 3]; label float32 [N, C].
    """

    user: np.ndarray
    time: np.ndarray
    columns: dict[str, np.ndarray]


@dataclass(frozen=True)
class Log:
    """All events in order of (user, time), and the items: ids [I], surface [I], content [I, W]; row 0 is nothing."""

    user: np.ndarray
    time: np.ndarray
    item: np.ndarray
    ids: np.ndarray
    surface: np.ndarray
    content: np.ndarray
    popularity: np.ndarray


def read_log(logs: Path) -> Log:
    """Every part's events; popularity counts the first part alone, which is before every row."""
    parts = sorted(logs.glob("part-*"))
    events = [pa.concat_tables(pq.read_table(f) for f in sorted(p.glob("events-*.parquet"))) for p in parts]
    items = pq.read_table(logs / "items.parquet")
    ids = items["item_id"].to_numpy()
    content = np.stack(items["vector"].to_numpy(zero_copy_only=False)).astype(np.float32)
    content = np.concatenate([np.zeros((1, content.shape[1]), np.float32), content])
    table = pa.concat_tables(events)
    user, time_ms, item = (table[n].to_numpy() for n in ("user_id", "timestamp_ms", "item_id"))
    surface = np.zeros(len(ids) + 1, np.int64)
    surface[1 + np.searchsorted(ids, item)] = table["surface"].to_numpy()
    seen = np.bincount(1 + np.searchsorted(ids, events[0]["item_id"].to_numpy()), minlength=len(ids) + 1)
    order = np.lexsort((time_ms, user))
    place = 1 + np.searchsorted(ids, item[order])
    return Log(user[order], time_ms[order], place, ids, surface, content, np.log1p(seen).astype(np.float32))


def read_rows(part: Path, log: Log) -> Rows:
    """The part's impressions, one row per request, with the features as of its time."""
    shown = pa.concat_tables(pq.read_table(f) for f in sorted(part.glob("impressions-*.parquet")))
    request, user, time_ms = (shown[n].to_numpy() for n in ("request_id", "user_id", "timestamp_ms"))
    label = (pa.compute.list_value_length(shown["actions"]).to_numpy() > 0).astype(np.float32)
    order = np.lexsort((shown["position"].to_numpy(), request))
    first = np.flatnonzero(np.diff(request[order], prepend=request[order][0] - 1))
    slate = len(order) // max(len(first), 1)
    user, time_ms = user[order][first], time_ms[order][first]
    item_id = shown["item_id"].to_numpy()[order].reshape(-1, slate)
    item = 1 + np.searchsorted(log.ids, item_id)

    known = np.unique(log.user)
    start = np.searchsorted(log.user, user, side="left")
    # one search for "events of this user before this time": users by number, times shifted into disjoint ranges
    span = int(log.time.max() - log.time.min()) + 2
    clock = np.searchsorted(known, log.user) * span + (log.time - log.time.min())
    end = np.searchsorted(
        clock, np.searchsorted(known, user) * span + (time_ms - log.time.min()), side="left"
    )
    back = end[:, None] - 1 - np.arange(RECENT)
    recent = np.where(back >= start[:, None], log.item[np.maximum(back, 0)], 0)

    since = np.where(end > start, time_ms - log.time[np.maximum(end - 1, 0)], 0)
    per_user = np.stack([np.log1p(end - start), np.log1p(since / HOUR_MS)], 1)
    repeats = (recent[:, None] == item[..., None]).sum(-1)
    dense = np.concatenate(
        [
            np.broadcast_to(per_user[:, None], (*item.shape, 2)) / 4,
            log.popularity[item][..., None] / 4,
            np.log1p(repeats)[..., None],
        ],
        -1,
    )
    columns = {
        "item": item, "item_id": item_id, "surface": log.surface[item], "recent": recent,
        "dense": dense.astype(np.float32), "label": label[order].reshape(-1, slate),
    }  # fmt: skip
    return Rows(user, time_ms, columns)


def join(rows: Sequence[Rows]) -> Rows:
    columns = {name: np.concatenate([r.columns[name] for r in rows]) for name in rows[0].columns}
    return Rows(np.concatenate([r.user for r in rows]), np.concatenate([r.time for r in rows]), columns)


# --- with the store ------------------------------------------------------------------------------------------


class Summaries:
    """The groups of a store's tokens by name, for batches of as-of rows."""

    def __init__(self, store: Store) -> None:
        self.store, self.slices = store, SummaryFeature(store).slices

    def rows(self, rows: Rows, lag_ms: int) -> AsOfRows:
        """Each row reads the newest generation whose watermark is ``lag_ms`` or more before it."""
        return AsOfRows(self.store, rows.user, rows.time, columns=rows.columns, lag_ms=lag_ms)

    def split(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """What :meth:`Dlrm.forward` wants beside the row."""
        groups = {name: batch["tokens"][:, part] for name, part in self.slices.items()}
        return groups, batch["status"], batch["time"] - batch["last_event_ms"]


def train(
    model: Dlrm, rows: AsOfRows, summaries: Summaries, batch: int, epochs: int, seed: int, lr: float
) -> float:
    """Binary cross-entropy on every candidate; the next batches are looked up while one trains. The last loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr)
    batches = AsOfBatches(rows, batch, seed=seed)
    total, step, loss = epochs * len(batches), 0, torch.zeros(())
    for batches.epoch in range(epochs):
        with LookAhead(batches, summaries.split, depth=2) as stream:
            for row, (groups, status, elapsed) in stream:
                for group in optimizer.param_groups:
                    group["lr"] = lr * (1 - step / total)
                loss = F.binary_cross_entropy_with_logits(model(row, groups, status, elapsed), row["label"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
    return float(loss.detach())


@torch.inference_mode()
def predict(model: Dlrm, rows: AsOfRows, summaries: Summaries, batch: int = 256) -> np.ndarray:
    """float32 [N, C], probabilities in the order of the rows."""
    with LookAhead(AsOfBatches(rows, batch), summaries.split) as stream:
        return np.concatenate([torch.sigmoid(model(row, *rest)).numpy() for row, rest in stream])


class Server:
    """What answers requests: the live generation, whole batches of users at once.

    Args:
        model: trained, in evaluation mode.
        store: opened with the fingerprint of the bundle that ``model`` read.
    """

    def __init__(self, model: Dlrm, store: Store) -> None:
        self.model, self.feature = model, SummaryFeature(store)

    @torch.inference_mode()
    def score(self, user: np.ndarray, now_ms: np.ndarray, columns: dict[str, np.ndarray]) -> np.ndarray:
        """float32 [U, C]: probabilities for the candidates in ``columns`` (those of :class:`Rows`, label aside)."""
        found = self.feature(user)
        row = {name: torch.from_numpy(column) for name, column in columns.items()} | {
            "user": torch.from_numpy(user)
        }
        elapsed = torch.from_numpy(now_ms) - found.last_event_ms
        return torch.sigmoid(self.model(row, found.groups, found.status, elapsed)).numpy()

    def refresh(self) -> str:
        """Move to a newer generation, between batches."""
        return self.feature.refresh()


# --- the comparison ------------------------------------------------------------------------------------------

ARMS = {"without": (), "seeds": ("seeds",), "slots": ("slots",), "with": ("seeds", "slots")}


def judge(
    user: np.ndarray, label: np.ndarray, sides: dict[str, np.ndarray]
) -> dict[str, tuple[float, float, float]]:
    """AUC per request and normalised entropy of each side, and gains over ``without``; 95 % intervals over users.

    Args:
        user: [N].
        label: [N, C].
        sides: name to probabilities [seeds, N, C]; measures are means over the seeds.
    """
    n, c = label.shape
    offsets = np.arange(n + 1, dtype=np.int64) * c
    base = label.mean()
    entropy = -(base * np.log(base) + (1 - base) * np.log1p(-base))
    area, loss, found = {}, {}, {}
    for name, runs in sides.items():
        slates = [metrics.slate_metrics(p.ravel(), label.ravel(), offsets, ks=()) for p in runs]
        area[name] = np.mean([s["auc"] for s in slates], 0)
        p = np.clip(runs.astype(np.float64), 1e-7, 1 - 1e-7)
        loss[name] = -np.where(label > 0, np.log(p), np.log1p(-p)).mean((0, 2))
        kept = slates[0]["group"]
        found[f"auc_{name}"] = metrics.bootstrap(user[kept], area[name])
        found[f"ne_{name}"] = metrics.bootstrap(user, loss[name] / entropy)
    for name in [s for s in sides if s != "without"]:
        end = "" if name == "with" else f"_{name}"
        found[f"auc_gain{end}"] = metrics.bootstrap(user[kept], area[name] - area["without"])
        both = np.stack([loss[name], loss["without"]], 1)
        found[f"ne_gain{end}"] = metrics.bootstrap(user, both, statistic=lambda m: 1 - m[:, 0] / m[:, 1])
    return found


def compare(
    home: Path, logs: Path, *, arms: Sequence[str] = tuple(ARMS), epochs: int = 1, seeds: int = 1, batch: int = 128,
    lr: float = 3e-3, lag_ms: int = HOUR_MS,
) -> dict[str, Any]:  # fmt: skip
    """Train every arm on the same rows in the same order, judge all on the last part, serve the last one."""
    bundle = bundles.load(home / "model")
    log = read_log(logs)
    parts = sorted(logs.glob("part-*"))
    rows, held_out = join([read_rows(p, log) for p in parts[1:-1]]), read_rows(parts[-1], log)
    label, content = held_out.columns["label"], torch.from_numpy(log.content)
    with Store.open(home / "store", fingerprint=bundle.fingerprint) as store:
        summaries = Summaries(store)
        past, future = summaries.rows(rows, lag_ms), summaries.rows(held_out, lag_ms)
        sides, seconds = {}, {}
        for name in arms:
            groups, runs, began = ARMS[name], [], time.process_time()
            for seed in range(seeds):
                torch.manual_seed(seed)
                model = Dlrm(
                    len(log.ids) + 1, int(log.surface.max()) + 1, content, 4,
                    seeds_width=store.manifest.schema.width if "seeds" in groups else 0,
                    memory=bundle.model.slots if "slots" in groups else None,
                )  # fmt: skip
                train(model, past, summaries, batch, epochs, seed, lr)
                runs.append(predict(model.eval(), future, summaries))
            sides[name], seconds[name] = np.stack(runs), time.process_time() - began
        read = future.batch(np.arange(len(future)))
        served = serve(Server(model, store), held_out)
        return {
            "figures": judge(held_out.user, label, sides),
            "train_requests": len(rows.user), "test_requests": len(held_out.user),
            "test_users": len(np.unique(held_out.user)), "generations": sorted(set(read["generation"])),
            "with_summary": float((read["status"] < 2).float().mean()), "cpu_seconds": seconds,
            "request_ms": served,
        }  # fmt: skip


def serve(server: Server, rows: Rows, requests: int = 200) -> float:
    """Median ms of one request, lookup included: one user, one slate, one thread."""
    took = []
    for i in range(min(requests, len(rows.user))):
        one = {name: column[i : i + 1] for name, column in rows.columns.items() if name != "label"}
        began = time.perf_counter()
        server.score(rows.user[i : i + 1], rows.time[i : i + 1], one)
        took.append(time.perf_counter() - began)
    return float(np.median(took) * 1e3)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--logs", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=1, help="a second one overfits these rows")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--arms", default=",".join(ARMS), help="comma separated; the last one is served")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = compare(
        options.home, options.logs, arms=options.arms.split(","), epochs=options.epochs, seeds=options.seeds
    )
    if options.json:
        print(json.dumps(found))
        return
    for name, (value, low, high) in found.pop("figures").items():
        print(f"{name:16} {value:8.4f}   [{low:.4f}, {high:.4f}]")
    for name, value in found.items():
        print(f"{name:16} {value}")


if __name__ == "__main__":
    main()
