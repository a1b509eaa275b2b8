"""A record's tables read as a sequence, by somebody who has the store and a table of vectors and no model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cache_store import Group, Publication, RecordSchema, ShardWriter, Store, Table
from cache_store.errors import SchemaError, StoreError
from cache_store.torch.feature import SummaryFeature
from cache_store.torch.sequence import ItemVectors

K, CLUSTERS, H, D = 6, 4, 3, 8
LIVES = (None, 2_048.0, 256.0)
SCHEMA = RecordSchema(
    (Group("items", 2, D, "int64"), Group("masses", 3, D, "log8"), Group("clusters", 2, D, "log8")),
    "int64",
    (Table("items", "masses", K, LIVES, 1), Table("", "clusters", CLUSTERS, LIVES, 1)),
)
TOLD = RecordSchema(
    (*SCHEMA.groups[:2], Group("numbers", 1, D, "int64"), SCHEMA.groups[2]),
    "int64",
    (SCHEMA.tables[0], Table("", "clusters", 3, LIVES, 1, "numbers", CLUSTERS)),
)
"""Of the clusters the heaviest alone, with their numbers."""
IDS = np.array([-(2**62) - 1, 3, 2**60 + 1, 2**63 - 1])
CLUSTER = np.array([0, 1, 1, -1])


def record(mass: dict[int, float], rest: list[float]) -> dict[str, np.ndarray]:
    """One user's groups: item id to mass, and what each cluster has beside."""
    ids = np.full(2 * D // 2, 2**63 - 1)
    masses, counters = np.zeros((3 * D,), np.float32), np.zeros((2 * D,), np.float32)
    for i, (item, m) in enumerate(sorted(mass.items())):
        ids[i] = item
        masses[i * H : (i + 1) * H] = m
        where = CLUSTER[IDS == item]
        for c in where[where >= 0]:
            counters[c * H : (c + 1) * H] += m
    for c, m in enumerate(rest):
        counters[c * H : (c + 1) * H] += m
    return {
        "items": ids.view(np.float32).reshape(1, 2, D),
        "masses": masses.reshape(1, 3, D),
        "clusters": counters.reshape(1, 2, D),
    }


def told(groups: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same record with the clusters that are not empty, at most three of them."""
    counters = groups["clusters"].reshape(-1)[: CLUSTERS * H].reshape(CLUSTERS, H)
    there = np.flatnonzero(counters[:, 1])
    numbers, masses = np.zeros(2 * D, np.uint16), np.zeros(2 * D, np.float32)
    numbers[: len(there)], masses[: len(there) * H] = there, counters[there].ravel()
    return groups | {
        "numbers": numbers.view(np.float32).reshape(1, 1, D),
        "clusters": masses.reshape(1, 2, D),
    }


@pytest.fixture(params=[SCHEMA, TOLD], ids=["all", "heaviest"])
def store(tmp_path, request):
    schema = request.param
    users = {1: record({3: 4.0, 2**60 + 1: 2.0, 77: 1.0}, [0, 8.0, 0, 0.5]), 2: record({}, [0, 0, 0, 0])}
    users = {user: told(groups) for user, groups in users.items()} if schema is TOLD else users
    made = Store.create(tmp_path / "store", user_kind="int64", num_shards=1)
    staging = made.stage("run")
    with ShardWriter(staging, 0, 1, schema, False, fingerprint="m") as writer:
        for user, tokens in users.items():
            writer.add(np.array([user]), tokens, [5], [1_000], 2_000)
        receipt = writer.finish()
    made.publish(staging, [receipt], Publication(fingerprint="m", watermark_ms=1_000, expected=2))
    made.close()
    with Store.open(tmp_path / "store") as opened:
        yield opened


def vectors() -> ItemVectors:
    rng = np.random.default_rng(0)
    return ItemVectors(IDS, rng.normal(size=(4, 5)), CLUSTER, rng.normal(size=(CLUSTERS, 5)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("on_device", [False, True])
def test_heaviest_items_come_first_then_clusters_with_what_no_item_stands_for(store, dtype, on_device):
    feature = SummaryFeature(store, dtype=dtype, on_device=on_device)
    table = vectors()
    seen = feature(np.array([1, 2, 9, 1])).sequence(table, tokens=5, places=2)
    assert seen.items[0].tolist() == [3, 2**60 + 1, 77] and seen.places[0].tolist() == [1, 3]
    torch.testing.assert_close(
        seen.masses[0, :, 1], torch.tensor([4.0, 2.0, 1.0, 8.0, 0.5]), rtol=0.1, atol=0
    )
    torch.testing.assert_close(seen.tokens[0, :2], table.vectors[1:3])
    # an item that the reader does not know cannot be matched; nothing is read of the empty and the missing user
    assert seen.log_mass[0].isinf().tolist() == [False, False, True, False, False]
    assert seen.log_mass[1:3].isinf().all() and torch.equal(seen.tokens[0], seen.tokens[3])
    read = torch.nn.functional.scaled_dot_product_attention(
        torch.randn(4, 1, 7, 5),
        torch.cat([seen.tokens, torch.zeros(4, 1, 5)], 1)[:, None],
        torch.cat([seen.tokens, torch.zeros(4, 1, 5)], 1)[:, None],
        attn_mask=torch.cat([seen.log_mass, torch.zeros(4, 1)], 1)[:, None, None],
        scale=1.0,
    )
    assert read.isfinite().all() and not read[1].any()


def test_a_quarter_of_the_tokens_are_places_and_no_more_can_be_than_there_are_tokens(store):
    found = SummaryFeature(store)(np.array([1, 2]))
    for tokens, places in [(1, 0), (4, 1), (8, 2)]:
        seen = found.sequence(vectors(), tokens)
        assert (seen.items.shape[1], seen.places.shape[1]) == (min(tokens - places, K), places)
    assert found.sequence(vectors(), 2, 2).items.shape == (2, 0)
    for tokens, places in [(0, 0), (2, 3), (4, -1)]:
        with pytest.raises(SchemaError, match="as many places"):
            found.sequence(vectors(), tokens, places)


def test_vectors_of_ones_own_take_the_place_of_the_published_ones(store):
    own = np.random.default_rng(1).normal(size=(3, 7)).astype(np.float32)
    table = vectors().with_vectors(IDS[:3], own)
    seen = SummaryFeature(store)(np.array([1])).sequence(table, tokens=4, places=1)
    unit = own / np.linalg.norm(own, axis=1, keepdims=True)
    np.testing.assert_allclose(seen.tokens[0, 0].numpy(), unit[1], rtol=1e-5)
    middle = unit[1] + unit[2]
    np.testing.assert_allclose(seen.tokens[0, 3].numpy(), middle / np.linalg.norm(middle), rtol=1e-4)


def test_whole_numbers_come_as_they_were_written_whatever_the_type_of_the_tokens(store):
    for dtype in (torch.float32, torch.float16):
        found = SummaryFeature(store, dtype=dtype)(np.array([1]))
        assert found.numbers["items"][0, :4].tolist() == [3, 77, 2**60 + 1, 2**63 - 1]
    if "numbers" in found.numbers:
        looked = store.lookup([1])
        assert found.numbers["numbers"].tolist() == looked.groups["numbers"].tolist() == [[1, 3, 0]]
        masses = looked.masses(looked.schema.tables[1])[0, :, 1].tolist()
        assert masses == pytest.approx([14, 0.5, 0], rel=0.1)


def test_a_schema_that_says_which_clusters_are_told_reads_back_and_one_that_does_not_is_as_it_was():
    for schema in (SCHEMA, TOLD):
        assert RecordSchema.from_dict(schema.as_dict()) == schema
    assert "of" not in SCHEMA.as_dict()["tables"][1] and TOLD.as_dict()["tables"][1]["of"] == CLUSTERS


def test_a_store_without_tables_says_so(tmp_path):
    made = Store.create(tmp_path / "store", user_kind="int64", num_shards=1)
    staging = made.stage("run")
    schema = RecordSchema((Group("seeds", 2, D, "int8"),))
    with ShardWriter(staging, 0, 1, schema, False, fingerprint="m") as writer:
        writer.add(np.array([1]), {"seeds": np.ones((1, 2, D), np.float32)}, [5], [1_000], 2_000)
        receipt = writer.finish()
    made.publish(staging, [receipt], Publication(fingerprint="m", watermark_ms=1_000, expected=1))
    found = SummaryFeature(Store.open(tmp_path / "store"))(np.array([1]))
    with pytest.raises(SchemaError, match="table of items"):
        found.sequence(vectors())


@pytest.mark.parametrize("groups, places", [(["masses"], 0), (["items"], 0), (["items", "masses"], 2)])
def test_a_sequence_of_groups_that_were_not_looked_up_is_refused(store, groups, places):
    found = SummaryFeature(store, groups=groups)(np.array([1]))
    with pytest.raises(SchemaError, match="table of clusters" if places else "look all groups up"):
        found.sequence(vectors(), tokens=4, places=places)
    with pytest.raises(SchemaError, match="group last for ages=True"):
        SummaryFeature(store)(np.array([1])).sequence(vectors(), tokens=4, places=2, ages=True)


def test_a_file_that_holds_no_vectors_is_refused_with_the_remedy(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(1))
    np.save(tmp_path / "one.npy", np.zeros(3))
    whole = vectors()
    np.savez(tmp_path / "v.npz", **{n: x.numpy() for n, x in whole.named_buffers()})
    read = ItemVectors.read(tmp_path / "v.npz")
    assert all(torch.allclose(x, y) for x, y in zip(read.buffers(), whole.buffers(), strict=True))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "v.npz").read_bytes()[:-40])
    for name in ("other.npz", "none.npz", "one.npy", "cut.npz"):
        with pytest.raises(StoreError, match="vista train"):
            ItemVectors.read(tmp_path / name)


@pytest.mark.parametrize(
    "ids, own, said",
    [
        (["a", "b"], np.ones((2, 3)), "encode"),
        ([1.0, 2.0], np.ones((2, 3)), "encode"),
        ([1, 2], np.ones(2), r"\[M, D\]"),
        ([1, 2], np.ones((3, 3)), r"\[M, D\]"),
        ([1, 1], np.ones((2, 3)), "1 of 2 distinct"),
    ],
)
def test_vectors_that_fit_no_ids_are_refused(ids, own, said):
    with pytest.raises(StoreError, match=said):
        vectors().with_vectors(ids, own)
    with pytest.raises(StoreError, match=said):
        ItemVectors(np.array(ids), own, np.full(2, -1), np.zeros((0, 3)))
    with pytest.raises(StoreError, match="a cluster for each"):
        ItemVectors(np.arange(2), np.ones((2, 3)), np.full(2, -1), np.zeros((4, 5)))


def test_a_table_of_ones_own_without_a_bundle_reads_items_alone(store):
    table = ItemVectors(IDS, np.eye(4), np.full(4, -1), np.zeros((0, 4)))
    seen = SummaryFeature(store)(np.array([1, 9])).sequence(table, tokens=3, places=0)
    assert seen.items[0].tolist() == [3, 2**60 + 1, 77] and seen.log_mass[1].isinf().all()
    assert table.cluster_of(seen.items).eq(-1).all()
    none = ItemVectors(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0), np.zeros((CLUSTERS, 4)))
    assert SummaryFeature(store)(np.array([1])).sequence(none, 4, 1).log_mass.isinf().all()


@pytest.mark.parametrize(
    "table",
    [
        Table("items", "masses", 9, LIVES, 1),
        Table("items", "masses", 0, LIVES, 1),
        Table("masses", "masses", 4, LIVES, 1),
        Table("items", "nothing", 4, LIVES, 1),
        Table("items", "masses", 4, LIVES, 3),
        Table("items", "masses", 4, (0.0,), 0),
        Table("items", "masses", 4.0, LIVES, 1),
        Table("", "clusters", 3, LIVES, 1, "items", 0),
        Table("", "clusters", 3, LIVES, 1, "items", 2),
        Table("", "clusters", 3, LIVES, 1, "items", 1 << 17),
        Table("", "clusters", 3, LIVES, 1, "masses", 4),
        Table("", "clusters", 3, LIVES, 1, "", 4),
    ],
)
def test_a_table_that_its_groups_cannot_hold_is_refused(table):
    with pytest.raises(SchemaError, match="table of"):
        RecordSchema(SCHEMA.groups, "int64", (table,))


def test_a_schema_with_tables_equals_its_plain_form_read_back():
    import json

    assert RecordSchema.from_dict(json.loads(json.dumps(SCHEMA.as_dict()))) == SCHEMA
