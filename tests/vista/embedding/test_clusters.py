from __future__ import annotations

import numpy as np
import pytest

from vista.data.events import Events
from vista.errors import DataError
from vista.stage1.clusters import fit_clusters, kmeans


def sessions(groups: int, per_group: int, seed: int) -> Events:
    """Histories that stay within one group of items for a while; ids carry no hint of the group."""
    random = np.random.default_rng(seed)
    names = random.permutation(groups * per_group).reshape(groups, per_group) * 1_000_003
    runs = [random.choice(names[random.integers(groups)], 12) for _ in range(600)]
    items = np.concatenate(runs)
    return names, Events.of([len(items)], item=items, time=np.arange(len(items)))


def test_items_used_together_share_a_cluster():
    names, events = sessions(8, 12, 0)
    items, cluster = fit_clusters(events, 8, seed=1)
    assert (items == np.unique(events.item)).all()
    found = cluster[np.searchsorted(items, names)]
    purity = np.mean([np.bincount(row).max() / len(row) for row in found])
    assert purity > 0.9


def test_the_same_sample_and_seed_give_the_same_clusters():
    _, events = sessions(4, 6, 2)
    assert (fit_clusters(events, 4, seed=3)[1] == fit_clusters(events, 4, seed=3)[1]).all()


def test_an_item_without_company_is_left_to_the_hash():
    events = Events.of([1, 3], item=np.array([9, 1, 2, 1]), time=np.arange(4))
    assert fit_clusters(events, 4)[0].tolist() == [1, 2]
    with pytest.raises(DataError, match="slots.clusters"):
        fit_clusters(Events.of([1], item=np.array([9]), time=np.zeros(1)), 4)


def test_fewer_vectors_than_clusters_get_one_each():
    assert kmeans(np.eye(3), 8).tolist() == [0, 1, 2]
