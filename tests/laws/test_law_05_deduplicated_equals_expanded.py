"""Law 5: deduplicated equals expanded, forward and backward.

Also: the operation alone over random shapes, tests/vista/ops/test_crossing.py; the ranker's parts,
tests/vista/stage2/test_ranker.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_worlds import CONFIG, NOW, histories

from vista.model import VistaModel
from vista.ops import crossing


@pytest.fixture(scope="module")
def model() -> VistaModel:
    return VistaModel(CONFIG)


@settings(max_examples=10)
@given(counts=st.lists(st.integers(0, 7), min_size=1, max_size=4), seed=st.integers(0, 2**16))
def test_law_5_one_context_per_user_equals_one_per_candidate_in_value_and_gradient(model, counts, seed):
    rng = np.random.default_rng(seed)
    users, rows = len(counts), int(sum(counts))
    past = histories(rng, rng.integers(1, 40, users))
    recent = histories(rng, rng.integers(0, 5, users))
    items = rng.integers(0, 400, rows)
    label = torch.from_numpy(rng.integers(0, 2, (rows, len(CONFIG.actions)))).float()
    owner = np.repeat(np.arange(users), counts)

    def step(pick: np.ndarray, offsets: np.ndarray, cross) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Both stages forward and backward, each picked user once per place in ``pick``."""
        model.zero_grad()
        cuts = past.lengths[pick]
        tokens = model.summarizer.prefixes(past.select(pick), cuts, np.arange(len(pick)))
        context = model.ranker.context(
            tokens, None, recent.select(pick), np.full(len(pick), NOW), np.full(len(pick), NOW)
        )
        logits = model.ranker.rank(context, items, offsets, cross=cross)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, label, reduction="sum")
        loss.backward()
        return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    shared, ours = step(np.arange(users), np.concatenate([[0], np.cumsum(counts)]), crossing.fast)
    expanded, theirs = step(owner, np.arange(rows + 1), crossing.naive)
    torch.testing.assert_close(shared, expanded, rtol=2e-4, atol=2e-5)
    for name in ours.keys() | theirs.keys():
        zero = torch.zeros_like(model.get_parameter(name))
        a, b = ours.get(name, zero), theirs.get(name, zero)
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)
