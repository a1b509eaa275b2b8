"""Law 12: serving cost does not depend on the length of the history.

Counted, not timed: bytes read out of the store, and every element that every tensor operation of a request reads or
writes. In seconds, up to a million events: ``vista bench flat``.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_worlds import NOW, World, all_events
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vista import bundle
from vista.data.events import Events
from vista.serving.index import ItemIndex
from vista.serving.recommender import Recommender


class Work(TorchDispatchMode):
    """Elements that pass through each kind of operation."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        self.elements[str(func)] += sum(x.numel() for x in tensors)
        return out


@pytest.fixture(scope="module")
def served(home: World):
    """Users by the length of their histories, their store, and what serves them."""
    users, events = all_events(home)
    assert events.lengths.max() > 100 * events.lengths.min()
    model = bundle.load(home.bundle).model
    index = ItemIndex.build(model, np.arange(400, dtype=np.int64))
    with home.store() as store:
        yield users[np.argsort(events.lengths, kind="stable")], store, Recommender(store.lookup, model, index)


@settings(max_examples=8)
@given(
    pair=st.sets(st.integers(0, 39), min_size=2, max_size=2), recent=st.integers(0, 6), k=st.integers(1, 9),
    candidates=st.integers(10, 60),
)  # fmt: skip
@example(pair={0, 39}, recent=3, k=5, candidates=50)
def test_law_12_two_requests_of_one_shape_cost_the_same_however_long_the_histories_are(
    served, pair, recent, k, candidates
):
    users, store, service = served
    items = np.arange(recent)
    newest = Events.of([recent], item=items, time=NOW - 30 + items)
    cost = []
    for u in pair:
        user = users[u : u + 1]
        record = store.lookup_raw(user).rows.nbytes
        with Work() as work:
            best = service.recommend(user, newest, np.array([NOW]), k=k, candidates=candidates)
        assert best.summarized.all() and len(best.item) == k
        cost.append((record, work.elements))
    assert cost[0] == cost[1] and cost[0][1].total() > 0
