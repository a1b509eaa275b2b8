"""Metrics against their definitions in plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vista.training import evaluate as evaluation
from vista.training import metrics


@st.composite
def slates(draw):
    sizes = draw(st.lists(st.integers(1, 7), min_size=1, max_size=6))
    n = sum(sizes)
    scores = np.array(draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)), float)
    labels = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    return scores, labels, np.concatenate([[0], np.cumsum(sizes)])


def mid_rank(scores: np.ndarray, i: int) -> float:
    return 1 + (scores > scores[i]).sum() + ((scores == scores[i]).sum() - 1) / 2


@given(slates())
def test_every_slate_metric_equals_its_definition_in_a_loop(batch):
    scores, labels, offsets = batch
    got = metrics.slate_metrics(scores, labels, offsets, ks=(1, 3))
    row = 0
    for g, (a, b) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        s, y = scores[a:b], labels[a:b]
        if not y.any():
            assert g not in got["group"]
            continue
        assert got["group"][row] == g
        ranks = [mid_rank(s, i) for i in np.flatnonzero(y)]
        assert got["mrr"][row] == pytest.approx(1 / min(ranks))
        for k in (1, 3):
            inside = [r for r in ranks if r <= k]
            assert got[f"hr@{k}"][row] == bool(inside)
            assert got[f"recall@{k}"][row] == pytest.approx(len(inside) / y.sum())
            best = sum(1 / math.log2(r + 1) for r in range(1, min(k, int(y.sum())) + 1))
            assert got[f"ndcg@{k}"][row] == pytest.approx(sum(1 / math.log2(r + 1) for r in inside) / best)
        pairs = [(p > n) + (p == n) / 2 for p in s[y] for n in s[~y]]
        if pairs:
            assert got["auc"][row] == pytest.approx(np.mean(pairs))
        else:
            assert math.isnan(got["auc"][row])
        row += 1
    assert row == len(got["mrr"])


@given(slates())
def test_a_positive_is_ranked_among_negatives_alone(batch):
    scores, labels, offsets = batch
    ranks, groups = metrics.positive_ranks(scores, labels, offsets)
    expected = []
    for a, b in zip(offsets[:-1], offsets[1:], strict=True):
        for i in range(a, b):
            if labels[i]:
                others = scores[a:b][~labels[a:b]]
                expected.append(1 + (others > scores[i]).sum() + (others == scores[i]).sum() / 2)
    assert ranks == pytest.approx(np.array(expected))
    assert len(groups) == labels.sum()


@given(slates())
def test_auc_is_the_share_of_ordered_pairs(batch):
    scores, labels, _ = batch
    pairs = [(p > n) + (p == n) / 2 for p in scores[labels] for n in scores[~labels]]
    if pairs:
        assert metrics.auc(scores, labels) == pytest.approx(np.mean(pairs))
    else:
        assert math.isnan(metrics.auc(scores, labels))


def test_a_model_that_returns_nan_gets_no_benefit_of_the_doubt():
    got = metrics.slate_metrics(np.full(9, np.nan), np.arange(9) == 0, np.array([0, 9]))
    assert got["mrr"][0] == pytest.approx(1 / 5)


def test_the_base_rate_has_entropy_one_and_is_calibrated():
    labels = np.random.default_rng(0).random(2000) < 0.3
    constant = np.full(2000, labels.mean())
    assert metrics.normalised_entropy(constant, labels) == pytest.approx(1.0)
    assert metrics.calibration(constant, labels) == pytest.approx(1.0)
    assert metrics.calibration(2 * constant, labels) == pytest.approx(2.0)
    assert metrics.calibration_error(constant, labels, bins=1) == pytest.approx(0.0, abs=1e-12)
    assert metrics.normalised_entropy(np.where(labels, 0.9, 0.1), labels) < 0.5


def test_gauc_weighs_users_by_their_rows_and_skips_one_sided_ones():
    scores = np.array([2.0, 1, 1, 2, 5, 5])
    labels = np.array([1, 0, 1, 0, 1, 1], bool)
    assert metrics.gauc(scores, labels, np.array([0, 2, 4, 6])) == pytest.approx(0.5)
    assert math.isnan(metrics.gauc(scores[4:], labels[4:], np.array([0, 2])))


def test_the_bootstrap_resamples_users_so_that_repeated_rows_do_not_narrow_it():
    rng = np.random.default_rng(1)
    values = rng.normal(size=30)
    single = metrics.bootstrap(np.arange(30), values)
    repeated = metrics.bootstrap(np.repeat(np.arange(30), 50), np.repeat(values, 50))
    assert repeated == pytest.approx(single)
    estimate, low, high = single
    assert low < estimate < high and estimate == pytest.approx(values.mean())


def test_the_bootstrap_takes_a_statistic_of_several_means():
    users = np.arange(200)
    base = np.random.default_rng(2).random(200)
    table = np.stack([base, base + 0.1, base + 0.2], axis=1)
    got = metrics.bootstrap(users, table, statistic=lambda m: (m[:, 1] - m[:, 0]) / (m[:, 2] - m[:, 0]))
    assert got == pytest.approx((0.5, 0.5, 0.5))


def test_no_rows_give_nan_not_an_exception():
    assert all(math.isnan(x) for x in metrics.bootstrap(np.zeros(0), np.zeros(0)))
    assert math.isnan(metrics.log_loss(np.zeros(0), np.zeros(0)))


def test_a_query_that_is_not_a_number_retrieves_its_item_last():
    table, items = torch.eye(4), np.arange(4) * 3
    query = torch.stack([table[2], torch.full((4,), torch.nan)])[:, None]
    ranks = evaluation._retrieval_ranks(query, table, items, np.array([6, 6, 5]), np.array([0, 1, 0]))
    assert ranks.tolist() == [1, 5, 5]  # 5 is no item of the catalogue
