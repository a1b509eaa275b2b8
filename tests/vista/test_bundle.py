"""Bundles: whole or absent, the same model back, every kind of damage named."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from vista import bundle
from vista.config import EmbeddingConfig, ModelConfig, RankerConfig, SlotConfig, SummarizerConfig, TokenConfig
from vista.errors import BundleError, FingerprintMismatch
from vista.model import VistaModel

SMALL = ModelConfig(
    width=16,
    actions=("view", "buy"),
    embedding=EmbeddingConfig(rows=32, surfaces=4, content_width=3),
    tokens=TokenConfig(items=0),
    slots=SlotConfig(buckets=8, clusters=4),
    summarizer=SummarizerConfig(layers=1, seeds=2, chunk=4),
    ranker=RankerConfig(layers=1, recent=4),
)


def catalogue() -> pa.Table:
    return bundle.items_table(np.array([9, 3]), np.array([1, 0]), np.array([5, 7]), ["nine", "three"])


@pytest.fixture(scope="module")
def model() -> VistaModel:
    made = VistaModel(SMALL)
    made.slots.set_clusters(np.array([3, 9]), np.array([1, 2]))
    made.items.set_content(np.array([3]), np.ones((1, 3), np.float32))
    return made


@pytest.fixture
def saved(tmp_path, model):
    meta = bundle.Meta(
        "string", ("view", "buy"), ("home",), {"mrr": 0.5, "none": float("nan")}, {"seed": 1}, 77
    )
    return bundle.save(tmp_path / "b", model, meta, catalogue())


def test_a_loaded_model_has_the_same_weights_tables_and_fingerprint(saved, model):
    found = bundle.load(saved)
    ours, theirs = model.state_dict(), found.model.state_dict()
    assert set(ours) == set(theirs) and all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert found.config == SMALL and not found.model.training
    assert found.fingerprint == bundle.load(saved).fingerprint and len(found.fingerprint) == 32
    assert found.meta.metrics["mrr"] == 0.5 and np.isnan(found.meta.metrics["none"])
    assert found.meta.table_snapshot == 77 and found.meta.surfaces == ("home",)
    assert found.items().column("name").to_pylist() == ["three", "nine"]


def test_a_tensor_that_parts_share_is_stored_once_and_stays_shared(saved):
    found = bundle.load(saved)
    assert found.model.events.items.weight is found.model.items.weight
    tables = SMALL.embedding.tables * SMALL.embedding.rows * (SMALL.width // SMALL.embedding.tables) * 4
    assert (saved / "weights.safetensors").stat().st_size < tables + 200_000


def test_the_fingerprint_changes_with_any_weight_and_any_setting(tmp_path, model):
    weights = {n: v.clone() for n, v in model.state_dict().items()}
    first = bundle.model_fingerprint(SMALL, weights)
    for name, value in weights.items():
        if value.numel() and value.is_floating_point():
            value.view(-1)[0] += 1
            assert bundle.model_fingerprint(SMALL, weights) != first, name
            value.view(-1)[0] -= 1
    assert bundle.model_fingerprint(ModelConfig(), weights) != first


def test_a_bundle_from_before_a_setting_existed_loads_with_its_default(saved):
    """As an older version wrote it: the fingerprint is over the settings that it knew."""
    config = json.loads((saved / "config.json").read_text())
    del config["summarizer"]["gradient_events"]
    meta = json.loads((saved / "bundle.json").read_text())
    meta["fingerprint"] = bundle.model_fingerprint(config, load_file(str(saved / "weights.safetensors")))
    (saved / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (saved / "bundle.json").write_text(json.dumps(meta))
    found = bundle.load(saved)
    assert found.config == SMALL and found.fingerprint == meta["fingerprint"]


def test_a_model_of_another_fingerprint_is_refused_with_the_remedy(saved):
    with pytest.raises(FingerprintMismatch, match="vista summarize"):
        bundle.load(saved, expect="0" * 32)
    bundle.load(saved, expect=bundle.load(saved).fingerprint)


def test_an_existing_folder_is_not_overwritten(saved, model):
    with pytest.raises(BundleError, match="--model"):
        bundle.save(saved, model, bundle.Meta(), catalogue())


def test_a_save_that_fails_leaves_nothing_behind(tmp_path, model):
    with pytest.raises(BundleError, match="items"):
        bundle.save(tmp_path / "b", model, bundle.Meta(), pa.table({"item_id": [1]}))
    with pytest.raises(TypeError):
        bundle.save(tmp_path / "b", model, bundle.Meta(training={"x": object()}), catalogue())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", bundle.FILES)
def test_a_bundle_without_one_of_its_files_is_incomplete(saved, name):
    (saved / name).unlink()
    with pytest.raises(BundleError, match=f"missing .*{name}"):
        bundle.load(saved)


def test_no_bundle_at_all_names_the_verb_that_makes_one(tmp_path):
    with pytest.raises(BundleError, match="vista train"):
        bundle.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("config.json", lambda text: text.replace(b'"seeds": 2', b'"seeds": 3')),
        ("config.json", lambda text: b"{"),
        ("weights.safetensors", lambda text: text[:-1] + bytes([text[-1] ^ 1])),
        ("weights.safetensors", lambda text: text[:100]),
        ("bundle.json", lambda text: b"[]"),
        ("bundle.json", lambda text: text.replace(b"vista-bundle 1", b"vista-bundle 9")),
        ("bundle.json", lambda text: text.replace(b'"actions"', b'"acts"')),
    ],
)
def test_every_damage_is_a_bundle_error_that_names_the_file(saved, name, damage):
    path = saved / name
    before = path.read_bytes()
    path.write_bytes(damage(before))
    assert path.read_bytes() != before
    with pytest.raises(BundleError, match=str(saved)):
        bundle.load(saved)


def test_a_catalogue_of_another_schema_is_refused(saved):
    pq.write_table(pa.table({"item": [1]}), saved / "items.parquet")
    with pytest.raises(BundleError, match="item_id"):
        bundle.load(saved).items()
    (saved / "items.parquet").write_bytes(b"no")
    with pytest.raises(BundleError, match="Parquet"):
        bundle.load(saved).items()


def test_meta_can_be_read_without_weights(saved):
    meta, mark = bundle.read_meta(saved)
    assert meta.actions == ("view", "buy")
    assert mark == json.loads((saved / "bundle.json").read_text())["fingerprint"]


@pytest.mark.parametrize(
    "part, name, value",
    [
        ("summarizer", "layers", 10**9),
        ("ranker", "layers", 900),
        ("embedding", "rows", 10**10),
        ("summarizer", "seeds", 10**10),
        (None, "width", 2**20),
    ],
)
def test_sizes_that_the_file_has_no_weights_for_are_refused_before_memory_is_taken(saved, part, name, value):
    text = saved / "config.json"
    values = json.loads(text.read_text())
    (values[part] if part else values)[name] = value
    text.write_text(json.dumps(values))
    facts = json.loads((saved / "bundle.json").read_text())
    facts["fingerprint"] = bundle.model_fingerprint(values, load_file(str(saved / "weights.safetensors")))
    (saved / "bundle.json").write_text(json.dumps(facts))
    with pytest.raises(BundleError, match=r"config\.json.*(1 to 1000|the file)"):
        bundle.load(saved)
