"""What HNSW and IVF find of the exact best items: on learned vectors and real queries, and on random ones.

A model is trained as ``bench joint`` trains it; its items' vectors are indexed and the queries of held-out requests
are asked. The *random* side has as many random directions, which is what an index is often judged by and which has
no clusters to help or mislead it. Times are of one thread, one query at a time.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import faiss
import numpy as np
import torch

from beam_jobs.generation.bucket_task import torch_threads
from tools.bench.harness import Figure, Result, in_turn, ratio
from tools.studies import joint
from tools.studies.protocol import Data
from vista.serving.index import ItemIndex

KINDS = ("hnsw", "ivf")


def run(
    quick: bool,
    data: str | None = None,
    steps: int = 300,
    requests: int = 1_000,
    ks: tuple[int, ...] = (100, 600),
) -> Result:
    """Recall against exact search and seconds per query, by kind, effort and k.

    Args:
        data: a warehouse or Parquet events; the generated set without it.
        steps: of training.
        requests: held-out ones whose queries are asked; 200 of them are timed.
    """
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        with torch_threads(1), tempfile.TemporaryDirectory() as scratch:
            steps, requests = (min(steps, 5), min(requests, 50)) if quick else (steps, requests)
            found = joint.histories(data, quick, Path(scratch))
            items, vectors, queries = learned(found, steps, requests)
            if quick:
                items, vectors = items[:2_000], vectors[:2_000]
            params = {"data": found.name, "items": len(items), "width": vectors.shape[1]}
            result = Result({**params, "steps": steps, "requests": len(queries)})
            _compare(result, "learned", items, vectors, queries, ks)
            rng = np.random.default_rng(0)
            drawn = (rng.standard_normal(x.shape).astype(np.float32) for x in (vectors, queries))
            vectors, queries = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in drawn)
            _compare(result, "random", items, vectors, queries, ks)
            return result
    finally:
        faiss.omp_set_num_threads(before)


def learned(found: Data, steps: int, requests: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items int64 [M], their vectors float32 [M, D], queries of held-out requests float32 [P, Q, D]."""
    config = joint.configuration(found, joint.SIDES["joint"], steps, 0)
    model = joint.train(config, found)[0].model.eval()
    items = found.catalogue.item
    with torch.inference_mode():
        queries = []
        for batch in joint.questions(config, found, requests):
            tokens = model.summarizer.prefixes(batch.events, batch.cut, batch.user_of, exact=True)
            ctx = model.ranker.context(tokens, None, batch.recent, batch.now_ms, batch.last_event_ms)
            queries.append(ctx.query)
        vectors = [model.items.vector(part) for part in torch.from_numpy(items).split(65_536)]
    return items, torch.cat(vectors).numpy(), torch.cat(queries).numpy()


def _compare(
    result: Result, name: str, items: np.ndarray, vectors: np.ndarray, queries: np.ndarray, ks: tuple[int, ...]
) -> None:  # fmt: skip
    """Each kind at its default effort and at four times that."""
    exact = ItemIndex.of_vectors(items, vectors, "exact")
    timed = queries[:200]
    for kind in KINDS:
        index = ItemIndex.of_vectors(items, vectors, kind)
        default = index.search_effort
        for k in (min(k, len(items)) for k in ks):
            for times in (1, 4):
                index.search_effort = times * (max(default, 2 * k) if kind == "hnsw" else default)
                key = f"{name}_{kind}{'' if times == 1 else f'_x{times}'}"
                result.figures[f"{key}_recall@{k}"] = Figure(index.recall_vs_exact(queries, k), "of exact")
                sides = {"exact": exact, kind: index}
                seconds = in_turn({n: functools.partial(_ask, i, timed, k) for n, i in sides.items()}, 5)
                result.figures[f"{key}_speedup@{k}"] = ratio(seconds["exact"], seconds[kind])
    result.figures[f"{name}_exact_query"] = Figure(float(np.median(seconds["exact"])) / len(timed), "s")


def _ask(index: ItemIndex, queries: np.ndarray, k: int) -> None:
    for query in queries:
        index.search(query[None], k)
