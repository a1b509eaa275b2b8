"""Item ids hash to the same numbers as arrays and as tensors."""

from __future__ import annotations

import numpy as np
import torch

from vista.ops.hashing import mix_numpy, mix_torch


def test_tensors_hash_as_arrays_do():
    ids = np.concatenate(
        [[0, -1, 2**63 - 1, -(2**63)], np.random.default_rng(0).integers(-(2**63), 2**63, 200)]
    )
    salts = (0, 5, 0xC105)
    found = mix_torch(torch.from_numpy(ids), *salts).numpy().view(np.uint64)
    assert np.array_equal(found, np.stack([mix_numpy(ids, salt) for salt in salts], -1))
