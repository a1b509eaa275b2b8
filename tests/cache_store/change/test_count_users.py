"""How many users a chain holds, counted without reading the keys of the full generation below."""

from __future__ import annotations

import numpy as np
import pytest
from known_stores import SMALL, TEXT, KnownStore


@pytest.mark.parametrize("schema", [SMALL, TEXT], ids=["int64", "string"])
@pytest.mark.parametrize("seed", range(3))
def test_the_count_is_that_of_the_users_listed_whatever_the_deltas_say(tmp_path, schema, seed):
    rng = np.random.default_rng(seed)
    known = KnownStore(tmp_path / "store", schema, num_shards=3)
    known.publish({u: 0 for u in rng.choice(40, 25, replace=False).tolist()})
    for version in range(1, 5):
        users = rng.choice(60, 15, replace=False).tolist()
        known.publish({u: version if rng.random() < 0.6 else None for u in users}, kind="delta")
        with known.open() as store:
            listed = sum(len(store.users(bucket)) for bucket in range(3))
            assert store.count_users() == listed == len(known.truth[store.manifest.generation])
    known.admin.forget(known.ids(list(known.truth[known.admin.lines()["main"]])[:5]))
    with known.open() as store:
        assert store.count_users() == sum(len(store.users(bucket)) for bucket in range(3))
        store.compact()
        assert store.count_users() == sum(len(store.users(bucket)) for bucket in range(3))
