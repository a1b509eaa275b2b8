"""The stage 2 benchmarks run, and what they compare is the same answer."""

from __future__ import annotations

from tools.bench import harness


def figures(name: str, **params) -> dict:
    return harness.run(name, quick=True, **params)["figures"]


def test_the_sides_of_bench_rank_give_the_same_logits():
    found = figures("rank", candidates=50, train_users=4, recent=8, seeds=4)
    assert found["largest_difference"]["met"]
    assert {"serving_speedup", "training_speedup"} <= set(found)


def test_the_sides_of_bench_cascade_retrieve_the_same_items_and_give_the_same_logits():
    found = figures("cascade", recent=16, candidates=40, processes=False)
    assert found["same_items"]["met"] and found["largest_difference"]["met"]
    assert {"qps_gain", "latency_ratio", "qps_gain_against_recomputed"} <= set(found)


def test_bench_flat_serves_summaries_of_every_length_from_a_real_store():
    found = figures("flat", lengths=(50, 500), candidates=40, repeats=3)
    assert {"cost_ratio", "request_at_50", "request_at_500"} <= set(found)


def test_bench_joint_takes_a_side_that_was_kept_and_tells_the_same(tmp_path):
    first = figures("joint", names="joint,ranking_only", steps=3, slates=60, keep=str(tmp_path))
    kept = sorted(p.name for p in tmp_path.glob("*.npz"))
    again = figures("joint", names="joint,ranking_only", steps=3, slates=60, keep=str(tmp_path))
    assert again == first and len(kept) == 2
    assert {"joint_recall@100", "ranking_only_ne", "joint_over_ranking_only_mrr"} <= set(first)


def test_bench_index_finds_everything_that_exact_search_finds_when_it_looks_everywhere():
    found = figures("index", steps=2, ks=(10,))
    assert 0 < found["learned_ivf_recall@10"]["value"] <= found["learned_ivf_x4_recall@10"]["value"] <= 1
    assert {"random_hnsw_recall@10", "learned_hnsw_speedup@10"} <= set(found)
