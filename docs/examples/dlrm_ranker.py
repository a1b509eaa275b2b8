"""A ranker of one's own, with and without cached summaries: trained on as-of reads, judged, served.

    python docs/examples/dlrm_ranker.py --home my-home --logs my-logs

What must be there is made by the commands in docs/downstream.md: a store with a generation per date in ``my-home``,
logs cut at the same dates in ``my-logs/part-*``. Rows of all parts but the first and the last train, the last part
judges. The model (``dlrm_model``), which would be yours already, is plain PyTorch in the manner of DLRM (arXiv
1906.00091): embeddings, dense features, pairwise dots, an MLP. Of the product it takes the store; only the arm
``addressed`` also takes the bundle's item clusters.

Letters: U requests of a batch, C candidates of each, R recent events, S tokens, H horizons, d the ranker's width.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from dlrm_model import Batch, Dlrm, History, Tokens
from torch import Tensor
from torch.nn import functional as F

from cache_store import Store
from cache_store.read.prefetch import LookAhead
from cache_store.torch.feature import SummaryFeature
from cache_store.torch.rows import AsOfBatches, AsOfRows
from cache_store.torch.sequence import ItemVectors, counters_of, whole_numbers
from tools.studies.gains import event_bytes, judge, other_vectors
from vista import bundle as bundles

RECENT = 16
SEQUENCE = 128
LEVELS = (512, 256, 128, 64, 32, 16)
"""Places that the catalogue is cut into, from fine to coarse."""
HOUR_MS = 3_600_000


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
    """All events in order of (user, time), and the items: ids [I], surface [I], content [I, W]; row 0 is nothing.
    ``first_ms`` is where the first part ends."""

    user: np.ndarray
    time: np.ndarray
    item: np.ndarray
    ids: np.ndarray
    surface: np.ndarray
    content: np.ndarray
    popularity: np.ndarray
    first_ms: int


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
    first_ms = int(events[0]["timestamp_ms"].to_numpy().max()) + 1
    popular = np.log1p(seen).astype(np.float32)
    return Log(user[order], time_ms[order], place, ids, surface, content, popular, first_ms)


def read_rows(
    part: Path, log: Log, events: int = 0, watermarks: Sequence[int] = (), lag_ms: int = HOUR_MS
) -> Rows:
    """The part's impressions, one row per request, with the features as of its time.

    Args:
        events: newest raw events to give: before the request (``raw_fresh``), and as a summary would know them
            (``raw``): up to the newest of ``watermarks`` (ms, ascending) that is ``lag_ms`` before the request.
    """
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
    if events:
        newest = np.append(watermarks, log.time.min() - 1)  # the last one where none is old enough
        known_ms = newest[np.searchsorted(watermarks, time_ms - lag_ms, side="right") - 1]
        until = np.searchsorted(
            clock, np.searchsorted(known, user) * span + (known_ms - log.time.min()), side="right"
        )
        for name, stop in (("raw", np.minimum(until, end)), ("raw_fresh", end)):
            back = stop[:, None] - 1 - np.arange(events)
            columns[name] = np.where(back >= start[:, None], log.item[np.maximum(back, 0)], 0)
    return Rows(user, time_ms, columns)


def join(rows: Sequence[Rows]) -> Rows:
    columns = {name: np.concatenate([r.columns[name] for r in rows]) for name in rows[0].columns}
    return Rows(np.concatenate([r.user for r in rows]), np.concatenate([r.time for r in rows]), columns)


# --- with the store ------------------------------------------------------------------------------------------


class Summaries:
    """A store's tokens as the model reads them.

    Args:
        ids: int64 [I], ascending; item ``ids[i]`` is row ``i + 1`` of the ranker's table.
        size: S, tokens of the sequence.
        codes: of the ranker's own vectors; the sequence is then what the clusters count at the user's S heaviest
            places. None: the S heaviest items.
        kinds: float32 [clusters, W], with ``codes``: what each cluster is about in the ranker's own vectors.
    """

    def __init__(
        self,
        store: Store,
        ids: np.ndarray,
        size: int = SEQUENCE,
        codes: Codes | None = None,
        kinds: Tensor | None = None,
    ) -> None:
        self.store, self.ids, self.size, self.codes = store, torch.tensor(ids), size, codes
        self.known = None if kinds is None else kinds.any(1)
        self.place = None if kinds is None or codes is None else codes.place(kinds)
        self.slices = SummaryFeature(store).slices
        self.schema = store.manifest.schema
        self.tables = {table.masses: table for table in self.schema.tables}

    @property
    def horizons(self) -> int:
        return self.tables["masses"].horizons

    @property
    def bytes(self) -> int:
        """Of a record, what the sequence is made of: ids of 8 bytes and a byte for every mass of S items; or a byte for
        every mass of clusters, and two for the number of each where not all are told."""
        if self.codes is None:
            return self.size * (8 + self.horizons)
        told = self.tables["clusters"]
        return told.entries * (self.horizons + 2 * bool(told.numbers))

    def rows(self, rows: Rows, lag_ms: int) -> AsOfRows:
        """Each row reads the newest generation whose watermark is ``lag_ms`` or more before it."""
        return AsOfRows(self.store, rows.user, rows.time, columns=rows.columns, lag_ms=lag_ms)

    def split(self, batch: Batch) -> History:
        """What :meth:`Dlrm.forward` wants beside the row, of a batch of as-of rows."""
        return self.history({n: batch["tokens"][:, part] for n, part in self.slices.items()}, batch["status"])

    def history(self, groups: dict[str, Tensor], status: Tensor) -> History:
        """Groups [U, S_g, D] of a lookup. FRESH and STALE are 0 and 1; others have no tokens."""
        there = status < 2
        table, counted = self.tables["masses"], self.tables["clusters"]
        numbers = {n: whole_numbers(self.schema, n, groups[n]) for n in (table.keys, counted.numbers) if n}
        item = numbers[table.keys][:, : table.entries].contiguous()
        mass = groups["masses"].flatten(1)[:, : table.entries * table.horizons]
        mass = mass.unflatten(1, (table.entries, table.horizons)) * there[:, None, None]
        counters = counters_of(counted, groups, numbers) * there[:, None, None]
        if self.codes is not None and self.place is not None and self.known is not None:
            # of a cluster of which nothing is known there is nothing to match
            told = counters * self.known[:, None]
            sequence = pooled(told, self.place, self.codes, self.size, table.deciding)
            return History(there, sequence, Tokens(item, mass), counters)
        top = mass[..., table.deciding].topk(min(self.size, table.entries), dim=1).indices
        chosen = item.gather(1, top)
        at = torch.searchsorted(self.ids, chosen).clamp_max(len(self.ids) - 1)
        known = (self.ids[at] == chosen)[..., None]
        weight = mass.gather(1, top[..., None].expand(-1, -1, table.horizons)) * known
        return History(
            there,
            Tokens((at + 1) * known[..., 0], weight),
            Tokens(item, mass),
            counters,
        )


def raw(batch: Batch, name: str = "raw") -> History:
    """The arms that store nothing new: the newest events as they are, under the same reader."""
    item = batch[name]
    nothing = Tokens(item[:, :0], torch.zeros(len(item), 0, 1))
    mass = (item > 0).float()[..., None]
    return History(item[:, 0] > 0, Tokens(item, mass), nothing, nothing.mass)


@dataclass(frozen=True)
class Codes:
    """Where things lie among the ranker's own item vectors, from fine to coarse (spherical k-means at each level).

    Attributes:
        centres: float32 [P, W] of the finest level, unit length.
        ladder: int64 [P, L], of each fine place: its number, and the numbers of the coarser places that it lies in.
    """

    centres: Tensor
    ladder: Tensor

    @staticmethod
    def of(vectors: np.ndarray, sizes: Sequence[int] = LEVELS) -> Codes:
        """Fitted to float32 [n, W]; rows of zeros do not count."""
        known = vectors[vectors.any(1)]
        known /= np.linalg.norm(known, axis=1, keepdims=True)
        levels = []
        for size in sizes:
            fitted = faiss.Kmeans(
                known.shape[1],
                min(size, len(known)),
                spherical=True,
                niter=20,
                seed=1,
                min_points_per_centroid=1,
            )
            fitted.train(known)
            levels.append(torch.from_numpy(fitted.centroids))
        return Codes(levels[0], torch.stack([(levels[0] @ level.T).argmax(1) for level in levels], 1))

    def place(self, vectors: Tensor) -> Tensor:
        """int64 [n]: the fine place of each of float32 [n, W]."""
        return (vectors @ self.centres.T).argmax(1)


def pooled(mass: Tensor, place: Tensor, codes: Codes, count: int, deciding: int) -> Tokens:
    """Many counters [U, clusters, H] as few tokens [U, count]: those of one place [clusters] are one, and of the places
    a user's heaviest are kept."""
    total = mass.new_zeros(len(mass), len(codes.ladder), mass.shape[2]).index_add_(1, place, mass)
    top = total[..., deciding].topk(min(count, len(codes.ladder)), dim=1).indices
    total = total.gather(1, top[..., None].expand(-1, -1, mass.shape[2]))
    return Tokens(torch.zeros_like(top), total, codes.centres[top], codes.ladder[top])


@dataclass(frozen=True)
class Trial:
    """How the arms are compared.

    Attributes:
        epochs, batch, lr: of training; a second epoch overfits these rows.
        seeds: runs of each arm.
        lag_ms: least age of a summary at its row.
        vectors: of items: ``content``; or, fitted to the first part of the log, ``company``; or ``random``.
        size: S, tokens of the sequence.
    """

    epochs: int = 1
    batch: int = 128
    lr: float = 3e-3
    seeds: int = 1
    lag_ms: int = HOUR_MS
    vectors: str = "content"
    size: int = SEQUENCE


def train(model: Dlrm, rows: AsOfRows, read: Callable[[Batch], History], trial: Trial, seed: int) -> float:
    """Binary cross-entropy on every candidate; the next batches are looked up while one trains. The last loss."""
    optimizer = torch.optim.Adam(model.parameters(), trial.lr)
    batches = AsOfBatches(rows, trial.batch, seed=seed)
    total, step, loss = trial.epochs * len(batches), 0, torch.zeros(())
    for batches.epoch in range(trial.epochs):
        with LookAhead(batches, read, depth=2) as stream:
            for row, history in stream:
                for group in optimizer.param_groups:
                    group["lr"] = trial.lr * (1 - step / total)
                loss = F.binary_cross_entropy_with_logits(model(row, history), row["label"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
    return float(loss.detach())


@torch.inference_mode()
def predict(model: Dlrm, rows: AsOfRows, read: Callable[[Batch], History], batch: int = 256) -> np.ndarray:
    """float32 [N, C], probabilities in the order of the rows."""
    with LookAhead(AsOfBatches(rows, batch), read) as stream:
        return np.concatenate([torch.sigmoid(model(row, history)).numpy() for row, history in stream])


class Server:
    """What answers requests: the live generation, whole batches of users at once.

    Args:
        model: trained, in evaluation mode.
        summaries: of the store, opened with the fingerprint of the bundle that made it.
    """

    def __init__(self, model: Dlrm, summaries: Summaries) -> None:
        self.model, self.summaries, self.feature = model, summaries, SummaryFeature(summaries.store)

    @torch.inference_mode()
    def score(self, user: np.ndarray, columns: dict[str, np.ndarray]) -> np.ndarray:
        """float32 [U, C]: probabilities for the candidates in ``columns`` (those of :class:`Rows`, label aside)."""
        found = self.feature(user)
        row = {name: torch.from_numpy(column) for name, column in columns.items()} | {
            "user": torch.from_numpy(user)
        }
        return torch.sigmoid(self.model(row, self.summaries.history(found.groups, found.status))).numpy()

    def refresh(self) -> str:
        """Move to a newer generation, between batches."""
        return self.feature.refresh()


# --- the comparison ------------------------------------------------------------------------------------------

ARMS = ("without", "raw", "raw_fresh", "sequence", "pooled", "near", "near_pooled", "addressed", "with")
"""No summary; as many raw events as fit the bytes of the places, of as long ago as they, and up to the request; the
sequence attended to in the ranker's own item vectors; what the summary counts by clusters, pooled by where they lie
among these vectors, the user's heaviest places; no summary, and the places, where the ranker attends to its recent
events as well; the candidate's own entry and its cluster's; the sequence and these."""


def compare(home: Path, logs: Path, trial: Trial = Trial(), arms: Sequence[str] = ARMS) -> dict[str, Any]:
    """Train every arm on the same rows in the same order, judge all on the last part, serve the last one."""
    bundle = bundles.load(home / "model")
    log = read_log(logs)
    if trial.vectors != "content":
        seen = log.time < log.first_ms
        other = other_vectors(trial.vectors, len(log.ids) + 1, log.user[seen], log.item[seen], log.time[seen])
        log = dataclasses.replace(log, content=other)
    parts = sorted(logs.glob("part-*"))
    with Store.open(home / "store", fingerprint=bundle.fingerprint) as store:
        summaries = Summaries(store, log.ids, trial.size)
        codes = Codes.of(log.content)
        item_codes = codes.ladder[codes.place(torch.from_numpy(log.content))]
        # which item is of which cluster is in a file of the bundle's; what a cluster is about, the ranker says itself
        vectors = ItemVectors.read(home / "model" / bundles.VECTORS)
        kinds = vectors.with_vectors(log.ids, log.content[1:]).places
        each = event_bytes(log.user, log.item, log.time)
        pooling = Summaries(store, log.ids, trial.size, codes, kinds)
        events = int(pooling.bytes / each) if {"raw", "raw_fresh"} & set(arms) else 0
        told = events, sorted(m.watermark_ms for m in store.generations()), trial.lag_ms
        rows = join([read_rows(p, log, *told) for p in parts[1:-1]])
        held_out = read_rows(parts[-1], log, *told)
        label, content = held_out.columns["label"], torch.from_numpy(log.content)
        past, future = summaries.rows(rows, trial.lag_ms), summaries.rows(held_out, trial.lag_ms)
        sides, seconds = {}, {}
        for name in arms:
            runs, began = [], time.process_time()
            mine = pooling if "pooled" in name else summaries
            read = functools.partial(raw, name=name) if name.startswith("raw") else mine.split
            horizons = {"without": 0, "near": 0, "addressed": 0, "raw": 1, "raw_fresh": 1}
            for seed in range(trial.seeds):
                torch.manual_seed(seed)
                model = Dlrm(
                    int(log.surface.max()) + 1, content, item_codes, 4,
                    horizons=horizons.get(name, summaries.horizons),
                    addressed=summaries.horizons if name in ("addressed", "with") else 0,
                    clusters=bundle.model.tokens.cluster, near=name.startswith("near"),
                )  # fmt: skip
                train(model, past, read, trial, seed)
                runs.append(predict(model.eval(), future, read))
            sides[name], seconds[name] = np.stack(runs), time.process_time() - began
        read_rows_ = future.batch(np.arange(len(future)))
        served = serve(Server(model, mine), held_out) if not arms[-1].startswith("raw") else None
        return {
            "figures": judge(held_out.user, label, sides),
            "train_requests": len(rows.user), "test_requests": len(held_out.user),
            "test_users": len(np.unique(held_out.user)), "generations": sorted(set(read_rows_["generation"])),
            "with_summary": float((read_rows_["status"] < 2).float().mean()), "cpu_seconds": seconds,
            "vectors": trial.vectors, "tokens": summaries.size, "sequence_bytes": summaries.bytes,
            "pooled_bytes": pooling.bytes, "raw_events": events, "bytes_per_raw_event": each, "request_ms": served,
        }  # fmt: skip


def serve(server: Server, rows: Rows, requests: int = 200) -> float:
    """Median ms of one request, lookup included: one user, one slate, one thread."""
    took = []
    for i in range(min(requests, len(rows.user))):
        one = {name: column[i : i + 1] for name, column in rows.columns.items() if name != "label"}
        began = time.perf_counter()
        server.score(rows.user[i : i + 1], one)
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
    parser.add_argument("--vectors", default="content", choices=("content", "company", "random"))
    parser.add_argument("--tokens", type=int, default=SEQUENCE, help="of the sequence")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    trial = Trial(options.epochs, seeds=options.seeds, vectors=options.vectors, size=options.tokens)
    found = compare(options.home, options.logs, trial, options.arms.split(","))
    if options.json:
        print(json.dumps(found))
        return
    for name, (value, low, high) in found.pop("figures").items():
        print(f"{name:16} {value:8.4f}   [{low:.4f}, {high:.4f}]")
    for name, value in found.items():
        print(f"{name:16} {value}")


if __name__ == "__main__":
    main()
