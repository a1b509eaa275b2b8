"""Law 9: tokens of another model are refused.

Also: by the index, tests/vista/serving/test_retrieval.py; by contexts, tests/vista/stage2/test_ranker.py; by states,
tests/vista/stage1/test_summarizer.py.
"""

from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known_stores import KnownStore
from small_worlds import CONFIG, save_bundle

from cache_store import Status
from cache_store.errors import FingerprintMismatch
from vista import bundle
from vista.config import ModelConfig, from_dict, to_dict
from vista.errors import BundleError, ConfigError
from vista.model import VistaModel


def leaves(values: dict) -> list[tuple[dict, str]]:
    """Where every value of a configuration stands."""
    own = [(values, name) for name, value in values.items() if not isinstance(value, dict)]
    return own + [leaf for value in values.values() if isinstance(value, dict) for leaf in leaves(value)]


def another(value, by: int):
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [*value[:-1], another(value[-1], by)]
    if value == "inf" or isinstance(value, float):
        return by + 1.5 if value != by + 1.5 else by + 2.5
    return value + (by if isinstance(value, int) else "x" * by)


FIELDS = len(leaves(to_dict(CONFIG)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A bundle, and a store that it made."""
    path = tmp_path_factory.mktemp("made")
    trained = bundle.load(save_bundle(path / "model", VistaModel(CONFIG)))
    known = KnownStore(path / "store", fingerprint=trained.fingerprint)
    known.publish({1: 1})
    return trained, known


@settings(max_examples=80)
@given(at=st.integers(0, FIELDS - 1), by=st.integers(1, 3))
def test_law_9_a_model_of_any_other_configuration_is_refused(made, at, by):
    trained, known = made
    text = to_dict(CONFIG)
    values, name = leaves(text)[at]
    values[name] = another(values[name], by)
    weights = trained.model.state_dict()
    try:  # what no model can have is refused for that, the rest as another model
        marks = {bundle.model_fingerprint(from_dict(ModelConfig, text), weights)}
    except ConfigError:
        marks = set()
    for mark in marks | {bundle.model_fingerprint(text, weights)}:
        with pytest.raises(FingerprintMismatch, match=f"{trained.fingerprint}.*{mark}.*vista summarize"):
            known.open(fingerprint=mark)
    was = (trained.path / "config.json").read_text()
    (trained.path / "config.json").write_text(json.dumps(text))
    with pytest.raises(BundleError):
        bundle.load(trained.path)
    (trained.path / "config.json").write_text(was)


@given(data=st.data())
def test_law_9_a_model_of_any_other_weight_is_refused(made, data):
    trained, known = made
    weights = copy.deepcopy({n: w for n, w in trained.model.state_dict().items() if w.numel()})
    mark = bundle.model_fingerprint(CONFIG, weights)
    flat = weights[data.draw(st.sampled_from(sorted(weights)))].view(-1).view(torch.uint8)
    flat[data.draw(st.integers(0, len(flat) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert bundle.model_fingerprint(CONFIG, weights) != mark
    with pytest.raises(FingerprintMismatch):
        known.open(fingerprint=bundle.model_fingerprint(CONFIG, weights))


def test_law_9_a_shard_of_another_model_under_the_name_of_this_is_corrupt(tmp_path):
    known = KnownStore(tmp_path / "s")
    known.publish({1: 1})
    other = KnownStore(tmp_path / "other", fingerprint="model-b")
    other.publish({1: 1})
    # Every record says whose it is.
    for name in (p.name for p in (known.path / "generations/00000001").glob("shard-*")):
        source = other.path / "generations/00000001" / name
        (known.path / "generations/00000001" / name).write_bytes(source.read_bytes())
    assert known.open(fingerprint="model-a", verify=False).lookup([1]).status[0] == Status.CORRUPT
