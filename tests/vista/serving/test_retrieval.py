"""The item index against a brute-force search, its refusals, and its files."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vista.errors import DataError, FingerprintMismatch
from vista.serving.index import KINDS, IndexDamaged, ItemIndex, _seal


def unit(rng, *shape):
    x = rng.normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def catalogue(rng, m, d=8):
    return rng.permutation(10 * m)[:m].astype(np.int64) - 5, unit(rng, m, d)


@given(st.integers(1, 60), st.integers(1, 3), st.integers(1, 3), st.integers(1, 70), st.integers(0, 2**16))
def test_exact_search_is_the_brute_force_answer_over_all_queries(m, users, queries, k, seed):
    rng = np.random.default_rng(seed)
    items, vectors = catalogue(rng, m)
    query = unit(rng, users, queries, 8)
    found = ItemIndex.of_vectors(items, vectors).search(query, k)
    best = np.einsum("uqd,md->uqm", query, vectors).max(1)
    row = {item: r for r, item in enumerate(items)}
    for u in range(users):
        n = min(k, m)
        assert found.counts[u] == n
        expected = np.sort(best[u])[::-1][:n]
        np.testing.assert_allclose(found.scores[u, :n], expected, rtol=1e-5, atol=1e-6)
        rows = [row[i] for i in found.ids[u, :n]]
        assert len(set(rows)) == n
        np.testing.assert_allclose(best[u][rows], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found.vectors[u, :n], vectors[rows])
        assert (found.ids[u, n:] == -1).all() and (found.vectors[u, n:] == 0).all()
        assert np.isneginf(found.scores[u, n:]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_returns_the_stored_vector_of_every_id(kind):
    rng = np.random.default_rng(0)
    items, vectors = catalogue(rng, 2_000)
    index = ItemIndex.of_vectors(items, vectors, kind)
    found = index.search(unit(rng, 4, 2, 8), 50)
    row = {item: r for r, item in enumerate(items)}
    for u in range(4):
        for i in range(found.counts[u]):
            np.testing.assert_array_equal(found.vectors[u, i], vectors[row[found.ids[u, i]]])
    np.testing.assert_array_equal(index.vectors(), vectors)


def test_recall_against_exact_is_told_and_rises_with_effort():
    rng = np.random.default_rng(1)
    items, vectors = catalogue(rng, 4_000)
    query = unit(rng, 20, 1, 8)
    assert ItemIndex.of_vectors(items, vectors).recall_vs_exact(query, 50) == 1.0
    assert ItemIndex.of_vectors(items, vectors, "hnsw").recall_vs_exact(query, 50) > 0.9
    recalls = [
        ItemIndex.of_vectors(items, vectors, "ivf", search_effort=effort).recall_vs_exact(query, 50)
        for effort in (1, 8, 10_000)
    ]
    assert recalls[0] < recalls[1] < recalls[2] == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_index_answers_as_before_and_refuses_another_model(kind, tmp_path):
    rng = np.random.default_rng(2)
    items, vectors = catalogue(rng, 500)
    index = ItemIndex.of_vectors(items, vectors, kind, fingerprint="model-a")
    index.save(tmp_path / "index")
    index.save(tmp_path / "index")  # replaces
    assert [p.name for p in tmp_path.iterdir()] == ["index"]
    loaded = ItemIndex.load(tmp_path / "index", "model-a")
    query = unit(rng, 3, 1, 8)
    for a, b in zip(index.search(query, 10), loaded.search(query, 10, fingerprint="model-a"), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(FingerprintMismatch, match="model-b"):
        ItemIndex.load(tmp_path / "index", "model-b")
    with pytest.raises(FingerprintMismatch, match="model-b"):
        loaded.search(query, 10, fingerprint="model-b")


def test_while_an_index_is_replaced_readers_find_the_old_one_or_the_new_one_whole(tmp_path):
    rng = np.random.default_rng(8)
    both = [ItemIndex.of_vectors(np.arange(40) + 100 * k, unit(rng, 40, 8)) for k in range(2)]
    both[0].save(tmp_path / "index")
    answers = [index.search(np.ones((1, 1, 8), np.float32), 5).ids for index in both]
    done = threading.Event()

    def replace():
        try:
            for turn in range(80):
                both[(turn + 1) % 2].save(tmp_path / "index")
        finally:
            done.set()

    writer = threading.Thread(target=replace)
    writer.start()
    loads = 0
    while not done.is_set() or loads < 10:
        loaded = ItemIndex.load(tmp_path / "index")
        found = loaded.search(np.ones((1, 1, 8), np.float32), 5).ids
        np.testing.assert_array_equal(found, answers[loaded.items[0] // 100])
        loads += 1
    writer.join(60)
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


@pytest.mark.parametrize("damage", ["no items", "short items", "truncated", "other format", "no json"])
def test_a_damaged_index_is_refused_by_name(damage, tmp_path):
    rng = np.random.default_rng(3)
    path = tmp_path / "index"
    ItemIndex.of_vectors(*catalogue(rng, 50)).save(path)
    if damage == "no items":
        (path / "items.npy").unlink()
    elif damage == "short items":
        np.save(path / "items.npy", np.arange(3))
    elif damage == "truncated":
        raw = (path / "index.faiss").read_bytes()
        (path / "index.faiss").write_bytes(raw[: len(raw) // 2])
    elif damage == "no json":
        (path / "index.json").unlink()
    else:
        facts = json.loads((path / "index.json").read_text())
        (path / "index.json").write_text(json.dumps({**facts, "format": "vista-index 9"}))
    with pytest.raises(IndexDamaged, match=str(path)):
        ItemIndex.load(path)


def test_wrong_inputs_are_refused():
    rng = np.random.default_rng(4)
    items, vectors = catalogue(rng, 5)
    with pytest.raises(DataError, match="expected one of"):
        ItemIndex.of_vectors(items, vectors, "flat")
    with pytest.raises(DataError, match="at least one item"):
        ItemIndex.of_vectors(items[:0], vectors[:0])
    with pytest.raises(DataError, match="twice"):
        ItemIndex.of_vectors(np.zeros(5), vectors)
    with pytest.raises(DataError, match="queries"):
        ItemIndex.of_vectors(items, vectors).search(unit(rng, 2, 8), 3)


def test_no_users_or_no_candidates_give_empty_answers():
    rng = np.random.default_rng(5)
    index = ItemIndex.of_vectors(*catalogue(rng, 5))
    assert index.search(np.zeros((0, 1, 8)), 3).vectors.shape == (0, 3, 8)
    assert index.search(unit(rng, 2, 1, 8), 0).ids.shape == (2, 0)


def test_vectors_that_are_not_finite_are_refused_and_such_queries_find_nothing():
    rng = np.random.default_rng(3)
    items, vectors = catalogue(rng, 50)
    query = unit(rng, 2, 1, 8)
    query[0, 0, 0] = np.nan
    assert ItemIndex.of_vectors(items, vectors).search(query, 5).counts.tolist() == [0, 5]
    vectors[7, 3] = np.nan
    with pytest.raises(DataError, match=str(items[7])):
        ItemIndex.of_vectors(items, vectors)
    with pytest.raises(DataError, match="-1"):
        ItemIndex.of_vectors(items[:5], vectors[:5]).search(query, -1)


@pytest.mark.parametrize("ids", ["empty", "float", "twice"])
def test_an_index_whose_ids_are_damaged_does_not_open(ids, tmp_path):
    items, vectors = catalogue(np.random.default_rng(4), 20)
    ItemIndex.of_vectors(items, vectors).save(tmp_path / "index")
    file = tmp_path / "index" / "items.npy"
    if ids == "empty":
        file.write_bytes(b"")
    else:
        np.save(file, items.astype(np.float32) if ids == "float" else np.full(20, items[0]))
    for _ in range(2):
        with pytest.raises(IndexDamaged, match="items.npy"):
            ItemIndex.load(tmp_path / "index")
        seal_anew(tmp_path / "index")  # a file that was made so, not altered


@pytest.mark.parametrize(
    "facts",
    [{"kind": "hnsw"}, {"kind": ["exact"]}, {"kind": "flat"}, {"count": 19}, {"count": -1}, {"width": 9}, {"seal": 3},
     {"search_effort": "all"}, {"search_effort": -(10**30)}, {"fingerprint": 7}, {"width": True}],
)  # fmt: skip
def test_no_field_of_an_index_is_believed(facts, tmp_path):
    ItemIndex.of_vectors(*catalogue(np.random.default_rng(4), 20)).save(tmp_path / "index")
    seal_anew(tmp_path / "index", **facts)
    with pytest.raises(IndexDamaged, match="build the index again"):
        ItemIndex.load(tmp_path / "index")


def test_an_index_of_a_model_opens_for_that_model_alone_and_another_file_in_it_does_not(tmp_path):
    items, vectors = catalogue(np.random.default_rng(6), 20)
    ItemIndex.of_vectors(items, vectors, fingerprint="model-a").save(tmp_path / "index")
    for other in (None, "model-b"):
        with pytest.raises(FingerprintMismatch, match="model-a"):
            ItemIndex.load(tmp_path / "index", other)
    ItemIndex.of_vectors(items, vectors[::-1], fingerprint="model-a").save(tmp_path / "other")
    (tmp_path / "other/index.faiss").replace(tmp_path / "index/index.faiss")
    with pytest.raises(IndexDamaged, match="sealed"):
        ItemIndex.load(tmp_path / "index", "model-a")


def seal_anew(path, **changes):
    """Change facts of an index and seal it again, as a forger would who knows the fingerprint."""
    facts = {**json.loads((path / "index.json").read_text()), **changes}
    if "seal" not in changes:
        facts.pop("seal")
        mark = facts["fingerprint"]
        facts["seal"] = _seal(path, facts, mark if isinstance(mark, str) else None)
    (path / "index.json").write_text(json.dumps(facts))


def test_an_index_is_not_written_over_something_else(tmp_path):
    items, vectors = catalogue(np.random.default_rng(5), 20)
    (tmp_path / "note").write_text("mine")
    for path in (tmp_path, tmp_path / "note"):
        with pytest.raises(DataError, match="something else"):
            ItemIndex.of_vectors(items, vectors).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["note"]
