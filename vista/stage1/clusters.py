"""Clusters of items that people use together: the address that unknown and rare items share in the slot memory.

Each item gets a random vector; an item's context is the sum of the vectors of the items within ``window``
events of it in the same history, rare neighbours weighing more (random indexing, Kanerva et al. 2000, with
the weights of pointwise mutual information in mind). What popularity alone would give is subtracted, a second
round replaces random vectors by contexts so that items meet through a third one, and spherical k-means cuts
the space. One pass over the sample, memory of one vector per item.
"""

from __future__ import annotations

import numpy as np
import torch

from vista.data.events import Events
from vista.errors import DataError
from vista.jagged import owners_of

_EVENTS_PER_BLOCK = 1 << 18


def fit_clusters(
    events: Events, clusters: int, seed: int = 0, width: int = 64, window: int = 8, rounds: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster of each item by the company it keeps.

    Args:
        events: histories of the training period, in contract order.
        clusters: number of clusters.
        width: of the context vectors.
        window: events to either side.
        rounds: 1 joins items that occur near each other, 2 also those that occur near the same items.

    Returns:
        items int64 [M] ascending, clusters int32 [M] in [0, clusters). Items without any neighbour are left
        out: the slot memory gives them a cluster by hash.

    Raises:
        DataError: no two events are near each other.
    """
    items, vector = company(events, width, window, rounds, seed)
    known = vector.norm(dim=1) > 0
    if not bool(known.any()):
        raise DataError(
            f"item clusters: expected histories with events near each other, found none in {len(events)} events; "
            "give a larger sample, or set slots.clusters to 0"
        )
    return items[known.numpy()], kmeans(vector[known].numpy(), clusters, seed)


def company(
    events: Events, width: int = 64, window: int = 8, rounds: int = 2, seed: int = 0
) -> tuple[np.ndarray, torch.Tensor]:
    """Items int64 [M], ascending, and what each occurs near: unit vectors float32 [M, W], 0 without neighbours.

    Arguments as for :func:`fit_clusters`.
    """
    items, inverse, count = np.unique(events.item, return_inverse=True, return_counts=True)
    random = torch.Generator().manual_seed(seed)
    vector = torch.randint(0, 2, (len(items), width), generator=random, dtype=torch.float32) * 2 - 1
    share = torch.from_numpy(count / max(count.sum(), 1)).float()
    rare = torch.from_numpy(1.0 / np.sqrt(count)).float().unsqueeze(1)
    for _ in range(rounds):
        vector = _contexts(events, torch.from_numpy(inverse), vector * rare, share, window)
    return items, vector


def joined(
    items: np.ndarray, cluster: np.ndarray, more: np.ndarray, vectors: np.ndarray | torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of some items, and of those of ``more`` that had none: the nearest by their vectors.

    Args:
        items, cluster: int64 [M], int32 [M].
        more: int64 [K], of which those that are among ``items`` say where the clusters lie; at least one for others to
            join.
        vectors: float32 [K, W]; rows of zeros join nothing.
    """
    vectors = np.asarray(vectors, np.float32)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    order = np.argsort(items)
    row = (
        order[np.minimum(np.searchsorted(items, more, sorter=order), len(items) - 1)] if len(items) else None
    )
    known = items[row] == more if row is not None else np.zeros(len(more), bool)
    fresh = ~known & vectors.any(1)
    if row is None or not known.any() or not fresh.any():
        return items, cluster
    found, place = np.unique(cluster[row[known]], return_inverse=True)
    import faiss  # only where clusters are made: a reader and a worker start without it

    centre = np.zeros((len(found), vectors.shape[1]), np.float32)
    np.add.at(centre, place, vectors[known])
    there = centre.any(1)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(centre[there] / np.linalg.norm(centre[there], axis=1, keepdims=True))
    nearest = found[there][index.search(np.ascontiguousarray(vectors[fresh]), 1)[1][:, 0]]
    return np.concatenate([items, more[fresh]]), np.concatenate([cluster, nearest.astype(cluster.dtype)])


def kmeans(vectors: np.ndarray, clusters: int, seed: int = 0, iterations: int = 10) -> np.ndarray:
    """Spherical k-means of L2-normalised vectors, float32 [M, W] -> int32 [M]; for content vectors as well."""
    import faiss

    vectors = np.ascontiguousarray(vectors, np.float32)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    if len(vectors) <= clusters:
        return np.arange(len(vectors), dtype=np.int32)
    # 32 points per centre bound the cost of large catalogues; the rest is only assigned
    fitted = faiss.Kmeans(
        vectors.shape[1],
        clusters,
        niter=iterations,
        seed=seed + 1,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=32,
    )
    fitted.train(vectors)
    return fitted.index.search(vectors, 1)[1][:, 0].astype(np.int32)


def _contexts(
    events: Events, item: torch.Tensor, vector: torch.Tensor, share: torch.Tensor, window: int
) -> torch.Tensor:
    """Normalised contexts [M, W] of every item, less what its frequency alone would bring; 0 without neighbours."""
    context = torch.zeros_like(vector)
    neighbours = torch.zeros(len(vector))
    user = torch.from_numpy(owners_of(events.lengths))
    for start in range(0, len(item), _EVENTS_PER_BLOCK):
        stop = min(start + _EVENTS_PER_BLOCK, len(item))
        for shift in range(1, window + 1):
            a = torch.arange(start, max(start, min(stop, len(item) - shift)))
            a = a[(user[a] == user[a + shift]) & (item[a] != item[a + shift])]
            one, other = item[a], item[a + shift]
            for x, y in ((one, other), (other, one)):
                context.index_add_(0, x, vector[y])
                neighbours.index_add_(0, x, torch.ones(len(x)))
    context -= neighbours.unsqueeze(1) * (share @ vector)
    return torch.nn.functional.normalize(context, dim=1) * (neighbours > 0).unsqueeze(1)
