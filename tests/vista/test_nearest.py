from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from vista.ops.crossing import Plan
from vista.ops.nearest import nearest

SLATES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 7)), min_size=1, max_size=5)


@given(SLATES, st.integers(0, 2**16))
def test_the_nearest_key_is_that_of_plain_loops_and_no_key_is_zero(shape, seed):
    random = torch.Generator().manual_seed(seed)
    keys = torch.randn(len(shape), 4, 3, generator=random)
    mask = torch.arange(4) < torch.tensor([there for there, _ in shape])[:, None]
    offsets = np.concatenate([[0], np.cumsum([asked for _, asked in shape])])
    x = torch.randn(int(offsets[-1]), 3, generator=random)
    found = nearest(x, keys, mask, Plan.of(offsets))
    for u in range(len(shape)):
        for b in range(offsets[u], offsets[u + 1]):
            cosines = [float(torch.cosine_similarity(x[b], k, dim=0)) for k in keys[u][mask[u]]]
            assert abs(float(found[b]) - max(cosines, default=0.0)) < 1e-5
