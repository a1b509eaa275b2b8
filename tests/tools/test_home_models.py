"""Several bundles in one home: where the next one goes, and which one is live."""

from __future__ import annotations

import json
import os
import stat

import numpy as np
import pytest

from cache_store import testing
from tools import cli
from tools.home import Home
from tools.verbs.train import hours_apart
from vista import bundle
from vista.config import EmbeddingConfig, ModelConfig, SlotConfig, TokenConfig
from vista.errors import BundleError
from vista.model import VistaModel

SMALL = ModelConfig(
    width=8,
    embedding=EmbeddingConfig(rows=8),
    tokens=TokenConfig(items=0),
    slots=SlotConfig(buckets=4, clusters=0),
)


def put(path, fingerprint: str) -> None:
    path.mkdir(parents=True)
    (path / "bundle.json").write_text(json.dumps({"fingerprint": fingerprint}))


def test_the_first_bundle_is_model_and_the_next_ones_are_numbered_beside_it(tmp_path):
    at = Home(tmp_path)
    assert at.next_model == tmp_path / "model" == at.model
    put(at.next_model, "a")
    assert at.next_model == tmp_path / "model" / "2" and at.model == tmp_path / "model"
    put(at.next_model, "b")
    (tmp_path / "model" / "3.training").mkdir()
    assert at.next_model == tmp_path / "model" / "3"
    for number in range(3, 12):
        put(tmp_path / "model" / str(number), "x")
    assert at.next_model == tmp_path / "model" / "12" and at.newest_model == tmp_path / "model" / "11"


def test_the_live_model_is_the_one_whose_summaries_are_served_also_after_a_rollback(tmp_path, monkeypatch):
    at, truth = Home(tmp_path), testing.Truth()
    store = truth.create(at.store)
    for version, mark in ((1000, "a"), (2000, "b")):
        put(at.next_model, mark)
        assert at.newest_model.name == ("model" if mark == "a" else "2")
        monkeypatch.setattr(testing, "FINGERPRINT", mark)
        if mark == "b":
            assert (
                at.model == tmp_path / "model"
            )  # trained, not summarised with: serving goes on with the first
        truth.publish(store, f"run-{version}", version)
        assert at.model == at.newest_model
    store.rollback()
    assert at.model == tmp_path / "model" and at.newest_model == tmp_path / "model" / "2"


def test_a_second_training_says_where_it_goes_before_anything_else(tmp_path, capsys):
    put(tmp_path / "model", "a")
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--home", str(tmp_path)])  # no tables: it ends at once, after having said so
    told = capsys.readouterr().err.replace("\n", " ")
    assert ended.value.code == 2 and f"{tmp_path}/model/2" in told.replace(" ", "") + told
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--home", str(tmp_path), "--model", str(tmp_path / "model")])
    assert ended.value.code == 2 and "found one" in capsys.readouterr().err


def test_training_takes_summaries_to_be_as_old_as_the_generations_are_apart(tmp_path):
    truth, hour = testing.Truth(), 3_600_000
    assert hours_apart(tmp_path / "store") is None
    store = truth.create(tmp_path / "store")
    for number, at in enumerate((1, 20, 43, 64)):
        truth.publish(store, f"run-{number}", at * hour)
        assert hours_apart(tmp_path / "store") == (None if number < 2 else 24.0)


def saved(path):
    items = bundle.items_table(np.arange(3), np.zeros(3), np.ones(3))
    return bundle.save(path, VistaModel(SMALL), bundle.Meta(), items)


def test_every_file_of_a_bundle_has_the_mode_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        saved(tmp_path / "b")
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "b").iterdir()}
    assert modes == dict.fromkeys((*bundle.FILES, bundle.VECTORS), 0o640)


def test_a_bundle_that_may_not_be_read_is_told_as_that(tmp_path, monkeypatch):
    path = saved(tmp_path / "b")
    # root may read everything, so the answer of the kernel is given in its place
    denied = path / "weights.safetensors"
    real = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: str(p) != str(denied) and real(p, mode))
    with pytest.raises(BundleError, match="permission denied.*chmod"):
        bundle.load(path)


@pytest.mark.parametrize("name", ["bundle.json", "weights.safetensors"])
def test_a_bundle_that_lost_a_file_is_told_and_never_taken_for_none(name, tmp_path, capsys):
    items = bundle.items_table(np.array([1]), np.array([0]), np.array([1]))
    bundle.save(tmp_path / "model", VistaModel(SMALL), bundle.Meta(actions=SMALL.actions), items)
    (tmp_path / "model" / name).unlink()
    truth = testing.Truth()
    truth.publish(truth.create(tmp_path / "store"), "run", 1000)
    for words in (["explain", str(truth.users[0])], ["status"]):
        with pytest.raises(SystemExit) as stop:
            cli.main([*words, "--home", str(tmp_path)])
        assert stop.value.code == 2 and name in capsys.readouterr().err
    assert Home(tmp_path).next_model == tmp_path / "model" / "2"
