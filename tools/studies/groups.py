"""Spherical k-means of content vectors: the groups of items that several rivals share."""

from __future__ import annotations

import numpy as np

from vista.stage1.clusters import kmeans


def assigned(vectors: np.ndarray, sample: np.ndarray, count: int) -> np.ndarray:
    """int32 [I]: nearest of ``count`` spherical k-means centres fitted on ``sample``."""
    place = kmeans(sample, count)
    centres = np.zeros((count, vectors.shape[1]), np.float32)
    np.add.at(centres, place, sample)
    centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
    blocks = [vectors[i : i + 16_384] @ centres.T for i in range(0, len(vectors), 16_384)]
    return np.concatenate([b.argmax(1) for b in blocks]).astype(np.int32)
