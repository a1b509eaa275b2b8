"""Stores that users make for tests of their own."""

from __future__ import annotations

import numpy as np
import pytest

from cache_store import Group, RecordSchema, Status, Store
from cache_store.errors import FingerprintMismatch
from cache_store.testing import WrongValue, stored


@pytest.mark.parametrize(
    "kind, users, stranger", [("int64", [11, -7, 3], 12), ("string", ["b", "a", "é"], "c")]
)
def test_a_store_made_of_tokens_gives_each_user_the_tokens_he_was_given(tmp_path, kind, users, stranger):
    schema = RecordSchema((Group("seeds", 4, 16, "float16"), Group("small", 2, 16, "int8")), kind)
    rng = np.random.default_rng(0)
    tokens = {g.name: rng.standard_normal((3, g.tokens, g.width), np.float32) for g in schema.groups}
    with stored(tmp_path / "store", schema, tokens, users) as store:
        found = store.lookup([*users, stranger])
    assert found.status.tolist() == [Status.FRESH] * 3 + [Status.MISSING]
    assert np.allclose(found.tokens[:3, :4], tokens["seeds"], rtol=1e-3, atol=1e-3)
    assert np.allclose(found.tokens[:3, 4:], tokens["small"], atol=0.02)
    assert not found.tokens[3].any()


def test_a_store_for_tests_is_refused_by_another_model_as_any_store_is(tmp_path):
    schema = RecordSchema((Group("seeds", 4, 16, "float16"),))
    stored(
        tmp_path / "store", schema, {"seeds": np.ones((300, 4, 16), np.float32)}, fingerprint="mine"
    ).close()
    with Store.open(tmp_path / "store", fingerprint="mine") as store:
        assert (store.lookup(np.arange(300)).tokens == 1).all()
    with pytest.raises(FingerprintMismatch):
        Store.open(tmp_path / "store", fingerprint="other")


def test_a_value_of_another_version_is_found_by_the_check(tmp_path):
    from cache_store.testing import STEP, Truth

    truth = Truth()
    store = truth.create(tmp_path / "store")
    truth.publish(store, "run", STEP)
    found = store.lookup(truth.users)
    truth.check(found, np.arange(truth.num_users), STEP)
    with pytest.raises(WrongValue):
        truth.check(found, np.arange(truth.num_users)[::-1], STEP)
