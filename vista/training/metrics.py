"""Ranking and calibration metrics over slates, and their bootstrap intervals over users.

Scores come as one jagged batch: ``scores`` and ``labels`` [B] with ``offsets`` int64 [G + 1], one group per
slate. Nothing is sampled: a group holds every candidate that was to be ranked. Ties count half, so a constant
score gets the rank of a coin toss and never the benefit of the doubt.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vista.jagged import lengths_between, offsets_of, owners_of, starts_of


def _group(offsets: np.ndarray) -> np.ndarray:
    return owners_of(np.diff(offsets))


def mid_ranks(scores: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """float64 [B]: 1 + number of better candidates of the group + half of the ties (the item itself
    aside)."""
    scores = np.asarray(scores, np.float64)
    scores = np.where(np.isnan(scores), -np.inf, scores)  # a diverged model is tied at the bottom, not first
    group = _group(offsets)
    order = np.lexsort((-scores, group))
    ordered, ordered_group = scores[order], group[order]
    place = np.arange(len(order)) - np.asarray(offsets)[ordered_group]
    starts = starts_of(ordered, ordered_group)
    sizes = lengths_between(starts, len(order))
    run = owners_of(sizes)
    ranks = np.empty(len(order))
    ranks[order] = place[starts][run] + 1.0 + (sizes[run] - 1) / 2.0 if len(order) else 0.0
    return ranks


def positive_ranks(
    scores: np.ndarray, labels: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each positive among the *negatives* of its group, and its group.

    Other positives of the slate do not push a positive down: each is judged as the only right answer.

    Returns:
        float64 [P] ranks (1 is best) and int64 [P] group numbers, in row order.
    """
    labels = np.asarray(labels, bool)
    group = _group(offsets)
    everyone = mid_ranks(scores, offsets)
    positives = np.flatnonzero(labels)
    sizes = np.bincount(group[positives], minlength=len(offsets) - 1)
    among = mid_ranks(np.asarray(scores)[positives], offsets_of(sizes))
    return everyone[positives] - among + 1.0, group[positives]


def slate_metrics(
    scores: np.ndarray, labels: np.ndarray, offsets: np.ndarray, ks: tuple[int, ...] = (1, 3, 10)
) -> dict[str, np.ndarray]:
    """Per slate with at least one positive, float64 [G'] each: ``hr@k``, ``recall@k``, ``ndcg@k``, ``mrr``,
    ``auc`` (NaN where a slate has no negative), and ``group``, its number.

    hr@k: any positive among the best k. recall@k: positives among the best k over positives. ndcg@k: binary
    gains, over the best attainable. mrr: one over the best positive's rank.
    """
    labels = np.asarray(labels, bool)
    group = _group(offsets)
    ranks = mid_ranks(scores, offsets)
    groups = len(offsets) - 1
    positives = np.bincount(group[labels], minlength=groups).astype(np.float64)
    sizes = np.diff(offsets).astype(np.float64)
    kept = np.flatnonzero(positives > 0)
    best = np.full(groups, np.inf)
    np.minimum.at(best, group[labels], ranks[labels])
    out: dict[str, np.ndarray] = {"group": kept, "mrr": 1.0 / best[kept]}
    ideal = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, int(sizes.max(initial=0)) + 3)))])
    for k in ks:
        inside = labels & (ranks <= k)
        hits = np.bincount(group[inside], minlength=groups)
        gains = np.bincount(group[inside], weights=1.0 / np.log2(ranks[inside] + 1.0), minlength=groups)
        out[f"hr@{k}"] = (hits[kept] > 0).astype(np.float64)
        out[f"recall@{k}"] = hits[kept] / positives[kept]
        out[f"ndcg@{k}"] = gains[kept] / ideal[np.minimum(positives[kept], k).astype(np.int64)]
    rank_sum = np.bincount(group[labels], weights=ranks[labels], minlength=groups)[kept]
    p, n = positives[kept], sizes[kept] - positives[kept]
    with np.errstate(invalid="ignore", divide="ignore"):
        # Mann-Whitney with ranks counted from the best: AUC = 1 - (sum of ranks - p (p + 1) / 2) / (p n)
        out["auc"] = np.where(n > 0, 1.0 - (rank_sum - p * (p + 1) / 2) / (p * n), np.nan)
    return out


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve over all rows; NaN when one class is absent."""
    labels = np.asarray(labels, bool)
    p = int(labels.sum())
    n = len(labels) - p
    if not p or not n:
        return float("nan")
    ranks = mid_ranks(scores, np.array([0, len(labels)]))
    return float(1.0 - (ranks[labels].sum() - p * (p + 1) / 2) / (p * n))


def gauc(scores: np.ndarray, labels: np.ndarray, offsets: np.ndarray) -> float:
    """AUC per group, averaged with the group's rows as weight (DIN, arXiv 1706.06978, section 5); groups with
    one class are left out. NaN when none is left."""
    per = slate_metrics(scores, labels, offsets, ks=())
    sizes = np.diff(offsets)[per["group"]].astype(np.float64)
    ok = ~np.isnan(per["auc"])
    return float(np.average(per["auc"][ok], weights=sizes[ok])) if ok.any() else float("nan")


def log_loss(probability: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Mean binary cross-entropy in nats; ``weights`` float [n] say how many rows each stands for."""
    p = np.clip(np.asarray(probability, np.float64), 1e-12, 1 - 1e-12)
    y = np.asarray(labels, np.float64)
    return (
        float(np.average(-(y * np.log(p) + (1 - y) * np.log1p(-p)), weights=weights))
        if len(y)
        else float("nan")
    )


def normalised_entropy(
    probability: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Log loss over that of always predicting the base rate (He et al. 2014, section 3); lower is better, 1
    is no better than a constant. NaN when one class is absent."""
    y = np.asarray(labels, np.float64)
    base = float(np.average(y, weights=weights)) if len(y) else 0.0
    if base in (0.0, 1.0):
        return float("nan")
    return log_loss(probability, y, weights) / log_loss(np.full(len(y), base), y, weights)


def calibration(probability: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Expected positives over observed ones; 1 is calibrated. NaN without positives."""
    w = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    observed = float(w @ np.asarray(labels, np.float64))
    return float(w @ np.asarray(probability, np.float64)) / observed if observed else float("nan")


def calibration_error(
    probability: np.ndarray, labels: np.ndarray, bins: int = 20, weights: np.ndarray | None = None
) -> float:
    """Expected calibration error over bins of equal count: mean of ``|mean probability - base rate|``."""
    p, y = np.asarray(probability, np.float64), np.asarray(labels, np.float64)
    if not len(p):
        return float("nan")
    w = np.ones(len(p)) if weights is None else np.asarray(weights, np.float64)
    parts = np.array_split(np.argsort(p, kind="stable"), min(bins, len(p)))
    return float(sum(abs(w[i] @ (p[i] - y[i])) for i in parts) / w.sum())


def bootstrap(
    users: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray | None = None,
    statistic: Callable[[np.ndarray], np.ndarray] | None = None,
    draws: int = 1_000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Weighted mean of ``values`` with a percentile interval that resamples *users*, not rows.

    Rows of one user depend on each other; resampling rows would make every interval too narrow.

    Args:
        users: [n], whose row it is.
        values: float [n], or [n, m] with ``statistic``.
        weights: float [n]; None weighs rows alike.
        statistic: maps the mean of each column [draws, m] to [draws]; None takes column 0.
            The recovered fraction, a ratio of differences of means, is such a statistic.

    Returns:
        (estimate, low, high); NaN when there are no rows.
    """
    values = np.asarray(values, np.float64)
    table = values if values.ndim == 2 else values[:, None]
    if not len(table):
        return float("nan"), float("nan"), float("nan")
    w = np.ones(len(table)) if weights is None else np.asarray(weights, np.float64)
    _, owner = np.unique(np.asarray(users), return_inverse=True)
    u = int(owner.max()) + 1
    sums = np.stack([np.bincount(owner, weights=w * column, minlength=u) for column in table.T], axis=1)
    mass = np.bincount(owner, weights=w, minlength=u)
    pick = np.random.default_rng(seed).multinomial(u, np.full(u, 1.0 / u), size=draws).astype(np.float64)

    def value(times: np.ndarray) -> np.ndarray:
        total = times @ mass
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (times @ sums) / total[:, None]
        return means[:, 0] if statistic is None else statistic(means)

    estimate = float(value(np.ones((1, u)))[0])
    spread = value(pick)
    spread = spread[np.isfinite(spread)]
    if not len(spread):
        return estimate, float("nan"), float("nan")
    low, high = np.percentile(spread, [50 * (1 - level), 50 * (1 + level)])
    return estimate, float(low), float(high)
