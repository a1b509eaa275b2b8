"""The MovieLens benchmark: its split, its judge and its own side, on made-up ratings in RecBole's format."""

from __future__ import annotations

import numpy as np
import pytest

from tools.bench import harness
from tools.studies import movielens
from vista.errors import DataError


@pytest.fixture(scope="module")
def ratings(tmp_path_factory):
    rng = np.random.default_rng(0)
    rows = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user in range(1, 41):
        items = rng.permutation(120)[: rng.integers(8, 30)] + 1
        times = 880_000_000 + np.sort(rng.integers(0, 12, len(items)))  # many ratings of one second
        rows += [f"{user}\t{i}\t{rng.integers(1, 6)}\t{t}" for i, t in zip(items, times, strict=True)]
    path = tmp_path_factory.mktemp("ml") / "made-up.inter"
    head, body = rows[0], rows[1:]
    path.write_text("\n".join([head, *(body[i] for i in rng.permutation(len(body)))]) + "\n")
    return path


def test_ratings_of_one_second_keep_one_order_and_get_distinct_times(ratings, tmp_path):
    split = movielens.read(ratings)
    gap = np.diff(split.events.time)
    inner = np.ones(len(gap), bool)
    inner[split.events.offsets[1:-1] - 1] = False
    assert (gap[inner] >= 1).all()
    lines = ratings.read_text().splitlines()
    backwards = tmp_path / "backwards.inter"
    backwards.write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    again = movielens.read(backwards)
    np.testing.assert_array_equal(split.events.item, again.events.item)


def test_test_and_validation_events_are_in_no_training_history(ratings):
    split = movielens.read(ratings)
    whole, training = split.events, split.before(2)
    np.testing.assert_array_equal(training.lengths, whole.lengths - 2)
    for u in range(whole.users):
        assert not set(whole.user(u).item[-2:].tolist()) & set(training.user(u).item.tolist())


def test_the_judge_finds_a_target_that_is_scored_best_and_leaves_rated_items_out_where_asked(ratings):
    split = movielens.read(ratings)
    users, items = len(split.users), len(split.items)
    place = np.searchsorted(split.items, split.events.item[split.target(1)])
    best = np.zeros((users, items), np.float32)
    best[np.arange(users), place] = 1
    assert movielens.quality(best, split, 1)[0] == {"hr@10": 1.0, "ndcg@10": 1.0, "mrr": 1.0}
    before = split.before(1)
    rated = best / 2
    rated[np.repeat(np.arange(users), before.lengths), np.searchsorted(split.items, before.item)] = 1
    assert movielens.quality(rated, split, 1)[1].min() > before.lengths.min()
    assert movielens.quality(rated, split, 1, new=True)[0]["hr@10"] == 1.0


def test_our_side_runs_and_is_taken_from_where_it_was_kept(ratings, tmp_path):
    def figures():
        found = harness.run("movielens", quick=True, data=str(ratings), seconds=2, keep=str(tmp_path))
        return {name: figure["value"] for name, figure in found["figures"].items()}

    first = figures()
    assert {"hr10_retrieval", "ndcg10_retrieval", "new_hr10_ranking", "new_ndcg10_ranking"} <= set(first)
    assert first == figures()


def test_without_data_the_benchmark_says_how_to_get_it():
    with pytest.raises(DataError, match=r"ml-100k\.inter.*vista study movielens"):
        movielens.run(quick=True)
