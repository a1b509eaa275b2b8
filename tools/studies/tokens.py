"""What each rival keeps of a history, computed from the events themselves: tokens, masses, and what candidates address.

Every function takes the events of one user before a cut. Directions are content vectors (``Space``), so that nothing
here depends on what a model learned; a model projects them as it projects those of items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tools.studies.groups import assigned

HALF_LIVES = (np.inf, 2_048.0, 256.0)
"""In later events of the user; the horizons of every token with masses."""


@dataclass(frozen=True)
class Kept:
    """What a candidate attends to.

    Attributes:
        mass: float32 [T, M].
        vector: float32 [T, W], directions.
    """

    mass: np.ndarray
    vector: np.ndarray


class Space:
    """Items as content vectors, and the clusters made of them.

    Args:
        item: int64 [I], ascending.
        content: float32 [I, W].
    """

    def __init__(self, item: np.ndarray, content: np.ndarray) -> None:
        self.item = item
        norm = np.linalg.norm(content, axis=1, keepdims=True)
        self.content = (content / np.maximum(norm, 1e-12)).astype(np.float32)
        self.known = norm[:, 0] > 0
        self._made: dict[int, np.ndarray] = {}

    def rows(self, item: np.ndarray) -> np.ndarray:
        """int64: rows of ``item``; every item asked for is in the catalogue."""
        return np.minimum(np.searchsorted(self.item, item), len(self.item) - 1)

    def clusters(self, count: int) -> np.ndarray:
        """int64 [I], cluster of each item (unknown ones by hash)."""
        if count not in self._made:
            rows = np.flatnonzero(self.known)
            some = np.random.default_rng(0).permutation(rows)[: max(32 * count, 4_096)]
            place = (self.item * 2_654_435_761 % count).astype(np.int64)
            if len(rows):
                place[rows] = assigned(self.content[rows], self.content[some], count)
            self._made[count] = place
        return self._made[count]


def weights(n: int) -> np.ndarray:
    """float64 [n, M]: what each of ``n`` events weighs at each horizon, the newest last."""
    return np.exp2(-np.arange(n - 1, -1, -1)[:, None] / np.array(HALF_LIVES)[None])


def added(keys: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys int64 [E], ascending, and their masses float32 [E, M]."""
    names, place = np.unique(keys, return_inverse=True)
    mass = np.stack([np.bincount(place, w, len(names)) for w in weight.T], 1) if len(names) else weight
    return names, mass.astype(np.float32)


def _means(place: np.ndarray, count: int, vectors: np.ndarray, weight: np.ndarray) -> Kept:
    """Tokens that stand for the events assigned to them: mean directions and masses."""
    total = np.zeros((count, vectors.shape[1]), np.float32)
    for column in range(vectors.shape[1]):
        total[:, column] = np.bincount(place, vectors[:, column], count)
    mass = np.stack([np.bincount(place, w, count) for w in weight.T], 1)
    there = np.flatnonzero(mass[:, 0] > 0)
    total = total[there] / np.maximum(np.linalg.norm(total[there], axis=1, keepdims=True), 1e-12)
    return Kept(mass[there].astype(np.float32), total)


def sketch(items: np.ndarray, space: Space, places: int) -> Kept:
    """SequenceO1 (arXiv 2609.08443), its step over places: every event falls on the nearest of fixed places."""
    rows = space.rows(items)
    return _means(space.clusters(places)[rows], places, space.content[rows], weights(len(items)))


def own_clusters(items: np.ndarray, space: Space, count: int, rounds: int = 2) -> Kept:
    """TWIN-V2 (arXiv 2407.16357): the user's own events in ``count`` clusters, each by its mean and size.

    Centres start at events spread over the history; ``rounds`` of spherical k-means.
    """
    vectors = space.content[space.rows(items)]
    if len(items) <= count:
        return Kept(weights(len(items)).astype(np.float32), vectors)
    centre = vectors[np.linspace(0, len(items) - 1, count).astype(np.int64)]
    for _ in range(rounds):
        place = (vectors @ centre.T).argmax(1)
        total = np.zeros_like(centre)
        np.add.at(total, place, vectors)
        full = np.linalg.norm(total, axis=1, keepdims=True)
        centre = np.where(full > 0, total / np.maximum(full, 1e-12), centre)
    return _means((vectors @ centre.T).argmax(1), count, vectors, weights(len(items)))


class SimHash:
    """SDIM (arXiv 2205.10249): events fall into buckets by the signs of random projections; a candidate reads the
    mean of its own bucket in each of ``groups`` tables of ``2 ** bits`` buckets, and how full it is."""

    def __init__(self, space: Space, groups: int, bits: int, seed: int = 0) -> None:
        plane = np.random.default_rng(seed).normal(size=(space.content.shape[1], groups * bits))
        signs = (space.content @ plane > 0).reshape(-1, groups, bits)
        self.space, self.groups, self.size = space, groups, 1 << bits
        self.code = signs @ (1 << np.arange(bits)) + np.arange(groups) * self.size  # [I, groups]

    def fold(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masses float32 [cells, M] and unit mean directions [cells, W] of the buckets; masses of the user [M]."""
        rows = self.space.rows(items)
        code, weight = torch.from_numpy(self.code[rows].ravel()), weights(len(items)).astype(np.float32)
        cells = self.groups * self.size
        each = torch.from_numpy(np.concatenate([weight, self.space.content[rows]], 1))
        found = (
            torch.zeros(cells, each.shape[1])
            .index_add_(0, code, each.repeat_interleave(self.groups, 0))
            .numpy()
        )
        mass, mean = found[:, : weight.shape[1]], found[:, weight.shape[1] :]
        return mass, mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12), weight.sum(0)

    def features(self, folded: tuple[np.ndarray, np.ndarray, np.ndarray], asked: np.ndarray) -> np.ndarray:
        """float32 [B, 2 M + 1]: log mean masses of the own buckets, alone and against an even spread; nearness."""
        mass, mean, whole = folded
        rows = self.space.rows(asked)
        share = np.log1p(mass[self.code[rows]].mean(1))  # [B, M]
        near = (mean[self.code[rows]].mean(1) * self.space.content[rows]).sum(1, keepdims=True)
        return np.concatenate([share, share - np.log1p(whole / self.size), 4 * near], 1).astype(np.float32)


def touches(
    items: np.ndarray, times: np.ndarray, now_ms: int, asked: np.ndarray, group_size: int
) -> np.ndarray:
    """float32 [B, F]: exact counts and ages of each candidate's item and group, all that could be known of them.

    Args:
        items, times: every event before the request.
    """
    found = []
    for keys, wanted in ((items, asked), (items // group_size, asked // group_size)):
        names, mass = added(keys, weights(len(keys)))
        _, back = np.unique(keys[::-1], return_index=True)
        last = len(keys) - 1 - back
        if not len(names):
            found.append(np.zeros((len(wanted), 8), np.float32))
            continue
        place = np.minimum(np.searchsorted(names, wanted), len(names) - 1)
        hit = (names[place] == wanted)[:, None]
        rank = len(keys) - last[place]
        age = np.maximum(now_ms - times[last[place]], 0) / 3_600_000
        more = [np.log1p(rank) / 8, 1 / (1 + rank), np.log1p(age) / 8, 1 / (1 + age)]
        found.append(np.concatenate([hit, np.log1p(mass[place]), np.stack(more, 1)], 1) * hit)
    return np.concatenate(found[: 1 if group_size == 1 else 2], 1).astype(np.float32)
