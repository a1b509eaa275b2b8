"""What stands beside a figure: baselines that take no model, and words for which of them was beaten."""

from __future__ import annotations

import numpy as np
import pytest

from vista.data.events import Events
from vista.training import metrics
from vista.training.evaluate import Scored, measures, verdict
from vista.training.loader import Arrays
from vista.training.survey import Catalogue, survey


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    """Item i was touched 2 ** i times."""
    item = np.repeat(np.arange(8), 2 ** np.arange(8))
    events = Events.of([len(item)], item=item, action=np.ones(len(item), np.int64), time=np.arange(len(item)))
    return survey(Arrays(np.zeros(1, np.int64), events), 0.0)


def scored(score: np.ndarray, item: np.ndarray, engaged: np.ndarray, slate: int) -> Scored:
    n = len(item)
    owner = np.arange(n // slate) // 2
    return Scored(
        owner, np.arange(0, n + 1, slate), score[:, None].astype(np.float32), engaged.astype(np.int32),
        np.ones(n, bool), np.full(int(engaged.sum()), 3.0), np.flatnonzero(engaged) // slate,
        np.ones(n, np.float32), item, np.full(n, np.nan), np.full(2, np.nan),
    )  # fmt: skip


def made(
    catalogue: Catalogue, kind: str, slate: int = 8, slates: int = 60, seed: int = 0
) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    item = np.concatenate([rng.permutation(8)[:slate] for _ in range(slates)])
    engaged = np.zeros(len(item), bool)
    engaged[np.arange(slates) * slate + rng.integers(0, slate, slates)] = True
    score = {
        "oracle": engaged + 0.1 * rng.random(len(item)),
        "popular": item / 10,
        "noise": rng.random(len(item)),
        "inverse": 1 - engaged + 0.1 * rng.random(len(item)),
    }[kind]
    found = measures(scored(score, item, engaged, slate), ("a",), draws=200, catalogue=catalogue)
    gain = found["ranking.gain"]
    flat = {name: m.value for name, m in found.items()}
    return flat | {"ranking.gain.low": gain.low, "ranking.gain.high": gain.high}


def test_a_constant_and_popularity_stand_beside_every_ranking(catalogue):
    found = made(catalogue, "popular")
    assert found["baseline.constant.ranking.auc"] == 0.5
    assert found["baseline.constant.ranking.mrr"] == pytest.approx(1 / 4.5)
    assert found["baseline.popularity.ranking.auc"] == found["ranking.auc"]
    assert found["ranking.candidates"] == 8
    assert "baseline.popularity.retrieval.recall@10" in found


@pytest.mark.parametrize(
    ("kind", "words"),
    [("oracle", "^better than"), ("noise", "^(not shown|worse)"), ("inverse", "^worse than chance"),
     ("popular", "^(not shown|worse)")],
)  # fmt: skip
def test_the_verdict_says_which_baseline_was_beaten(catalogue, kind, words):
    import re

    assert re.search(words, verdict(made(catalogue, kind)))


def test_a_high_mrr_over_tiny_slates_is_called_what_it_is(catalogue):
    text = verdict(made(catalogue, "noise", slate=2))
    assert "2.0 candidates" in text and "coin toss" in text
    assert "do not serve it" in text or "not shown" in text


def test_a_model_without_figures_is_not_called_good():
    assert verdict({}).startswith("not judged")
    good = {"ranking.auc": 0.8, "ranking.gain": 0.3, "ranking.gain.low": 0.2, "ranking.gain.high": 0.4}
    swapped = {"summary.swapped": 0.05, "summary.swapped.low": 0.03, "summary.swapped.high": 0.07}
    assert "personal" not in verdict(good | swapped | {"summary.seeds.personal_share": 0.4})
    assert "nothing personal" in verdict(good | swapped | {"summary.swapped.low": -0.001})
    alike = {"summary.seeds.personal_share": 0.02, "summary.seeds.effective_rank": 1.04}
    assert "nearly the same for all users (personal share 0.020, effective rank 1.0)" in verdict(good | alike)
    assert verdict({"ranking.auc": float("nan")}).startswith("not judged")
    assert verdict({"ranking.auc": 0.47, "ranking.mrr": 0.9667}).startswith("worse than chance")


def test_popularity_ranks_the_whole_catalogue_and_unknown_items_last(catalogue):
    popularity = catalogue.popularity()
    np.testing.assert_array_equal(popularity(np.array([7, 0, 99, -1])), [128, 1, 0, 0])


def test_weighted_calibration_is_that_of_the_rows_written_out():
    rng = np.random.default_rng(0)
    p, y, w = rng.random(50), rng.integers(0, 2, 50), rng.integers(1, 5, 50)
    out = np.repeat(np.arange(50), w)
    for measure in (metrics.log_loss, metrics.normalised_entropy, metrics.calibration):
        assert measure(p, y, w) == pytest.approx(measure(p[out], y[out]))
    assert metrics.calibration_error(p, y, 1, weights=w) == pytest.approx(
        metrics.calibration_error(p[out], y[out], 1)
    )
