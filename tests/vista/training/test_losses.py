"""Losses against their formulas; negatives that must not count, do not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from vista.errors import ConfigError
from vista.training import losses
from vista.training.count_min import CountMin


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double(), dim=-1)


def batch(positives: int, negatives: int, seed: int = 0, queries: int = 1):
    g = torch.Generator().manual_seed(seed)
    own = dict(
        query=unit(positives, queries, 8, seed=seed),
        vector=unit(positives, 8, seed=seed + 1),
        item=torch.randint(0, 6, (positives,), generator=g),
        owner=torch.randint(0, 3, (positives,), generator=g),
        slate=torch.randint(0, 4, (positives,), generator=g),
        log_q=torch.randn(positives, generator=g).double(),
    )
    pool = losses.Negatives(
        vector=unit(negatives, 8, seed=seed + 2),
        item=torch.randint(0, 6, (negatives,), generator=g),
        owner=torch.randint(-1, 3, (negatives,), generator=g),
        slate=torch.randint(-1, 4, (negatives,), generator=g),
        log_q=torch.randn(negatives, generator=g).double(),
    )
    return own, pool


@given(st.integers(1, 6), st.integers(0, 9), st.integers(0, 99), st.booleans())
def test_sampled_softmax_equals_its_formula_in_a_loop(positives, negatives, seed, mask):
    own, pool = batch(positives, negatives, seed)
    got = losses.sampled_softmax(losses.Positives(**own), pool, 5.0, mask_same_user=mask)
    total = 0.0
    for i in range(positives):
        q = own["query"][i, 0]
        s = float(5.0 * q @ own["vector"][i] - own["log_q"][i])
        scores = [s]
        for j in range(negatives):
            if pool.item[j] == own["item"][i]:
                continue
            own_impression = pool.slate[j] == own["slate"][i]
            if mask and pool.owner[j] == own["owner"][i] and not own_impression:
                continue
            scores.append(float(5.0 * q @ pool.vector[j] - pool.log_q[j]))
        total += math.log(sum(math.exp(x) for x in scores)) - s
    assert float(got) == pytest.approx(total / positives, rel=1e-5)


def test_what_the_same_user_engaged_with_is_no_negative_but_a_shown_and_skipped_item_is():
    own, pool = batch(1, 3)
    own = {name: own[name] for name in ("query", "vector", "log_q")}
    pool = losses.Negatives(
        pool.vector,
        item=torch.tensor([10, 11, 12]),
        owner=torch.tensor([0, 0, 1]),
        slate=torch.tensor([-1, 7, -1]),
        log_q=pool.log_q,
    )
    args = (
        losses.Positives(**own, item=torch.tensor([5]), owner=torch.tensor([0]), slate=torch.tensor([7])),
        pool,
    )
    assert losses.negative_mask(*args).tolist() == [[True, False, False]]
    assert losses.negative_mask(*args, mask_same_user=False).tolist() == [[False, False, False]]


def test_with_several_queries_the_best_matching_one_answers():
    own, pool = batch(4, 6, seed=3, queries=3)
    best = torch.einsum("pqd,pd->pq", own["query"], own["vector"]).argmax(1)
    single = dict(own, query=own["query"][torch.arange(4), best][:, None])
    a = losses.sampled_softmax(losses.Positives(**own), pool, 3.0)
    b = losses.sampled_softmax(losses.Positives(**single), pool, 3.0)
    assert torch.allclose(a, b)


def test_log_q_makes_the_sampled_softmax_unbiased_for_a_popular_item():
    # Two items of equal score; item 1 is drawn 9 times as often. Corrected, the loss is that of a fair coin.
    query, vectors = unit(1, 1, 8), unit(1, 8, seed=5).repeat(10, 1)
    share = torch.tensor([0.1] + [0.9] * 9)
    pool = losses.Negatives(
        vectors,
        item=torch.tensor([2] + [1] * 9),
        owner=torch.full((10,), -1),
        slate=torch.full((10,), -1),
        log_q=losses.log_pool_rate(share, 10, 0, 2),
    )
    own = losses.Positives(
        query, vectors[:1], torch.tensor([7]), torch.tensor([0]), torch.tensor([0]), torch.zeros(1)
    )
    loss = losses.sampled_softmax(own, pool, inverse_temperature=1.0)
    # Item 2 counts once at rate 1, item 1 nine times at rate 9: each contributes e^s once.
    assert float(loss) == pytest.approx(math.log(3), rel=1e-5)


@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 50))
def test_action_loss_is_the_weighted_sum_of_one_cross_entropy_per_action(rows, actions, seed):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, actions, generator=g)
    action = torch.randint(0, 2**actions, (rows,), generator=g)
    weights = torch.rand(actions, generator=g)
    expected = 0.0
    for c in range(actions):
        y = torch.tensor([(int(a) >> c) & 1 for a in action]).float()
        expected += float(weights[c] * F.binary_cross_entropy_with_logits(logits[:, c], y))
    assert float(losses.action_bce(logits, action, weights)) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_rows_that_do_not_count_have_no_gradient():
    logits = torch.randn(4, 2, requires_grad=True)
    rows = torch.tensor([True, False, True, False])
    losses.action_bce(logits, torch.tensor([1, 2, 3, 0]), torch.ones(2), rows).backward()
    assert (logits.grad[~rows] == 0).all() and (logits.grad[rows] != 0).all()


def test_an_empty_batch_has_loss_zero_and_a_gradient_path():
    logits = torch.zeros(0, 2, requires_grad=True)
    loss = losses.action_bce(logits, torch.zeros(0, dtype=torch.int64), torch.ones(2))
    loss.backward()
    assert loss.item() == 0.0


def test_what_is_masked_depends_on_the_event_and_the_seed_not_on_the_batch():
    owner, now, place = np.arange(5_000) // 10, np.arange(5_000) // 10 * 7, np.arange(5_000) % 10
    whole = losses.mask_actions(owner, now, place, 0.2, seed=3)
    halves = [
        losses.mask_actions(owner[h], now[h], place[h], 0.2, seed=3)
        for h in (slice(2_000), slice(2_000, None))
    ]
    assert (np.concatenate(halves) == whole).all()
    assert 0.18 < whole.mean() < 0.22
    assert (losses.mask_actions(owner, now, place, 0.2, seed=4) != whole).any()
    assert not losses.mask_actions(owner, now, place, 0.0, seed=3).any()
    assert losses.mask_actions(owner, now, place, 1.0, seed=3).all()


@given(st.lists(st.integers(-(2**62), 2**62), max_size=300))
def test_the_sketch_never_counts_too_little(items):
    sketch = CountMin(depth=3, width=64)
    sketch.add(np.array(items, np.int64))
    unique, counts = np.unique(np.array(items, np.int64), return_counts=True)
    assert (sketch.count(unique) >= counts).all()
    assert sketch.total == len(items)


def test_the_sketch_is_near_the_truth_on_a_skewed_stream():
    items = np.random.default_rng(0).zipf(1.3, 100_000) % 50_000
    sketch = CountMin()
    sketch.add(items)
    unique, counts = np.unique(items, return_counts=True)
    over = sketch.count(unique) - counts
    assert over.max() <= math.e / sketch.counts.shape[1] * len(items) + 1
    assert sketch.probability(np.array([-5]))[0] < 1e-4


def test_sketches_of_two_workers_merge_to_the_sketch_of_both_streams():
    a, b, both = CountMin(), CountMin(), CountMin()
    a.add(np.arange(100))
    b.add(np.arange(50))
    both.add(np.concatenate([np.arange(100), np.arange(50)]))
    a.merge(b)
    assert (a.counts == both.counts).all() and a.total == both.total
    restored = CountMin()
    restored.restore(a.state())
    assert (restored.counts == a.counts).all()


def test_sketches_of_other_shapes_are_refused():
    with pytest.raises(ConfigError, match="power of two"):
        CountMin(width=100)
    with pytest.raises(ConfigError, match="vista train"):
        CountMin(width=64).merge(CountMin(width=128))
