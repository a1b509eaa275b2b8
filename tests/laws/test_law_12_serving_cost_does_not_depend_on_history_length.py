"""Law 12: serving cost does not depend on the length of the history.

Counted, not timed: bytes read out of the store, and every element that every tensor operation of a request reads or
writes. In seconds, up to a million events: ``vista bench flat``.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
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


def test_law_12_a_request_of_a_long_history_costs_what_one_of_a_short_history_costs(home: World):
    users, events = all_events(home)
    long, short = int(events.lengths.argmax()), int(events.lengths.argmin())
    assert events.lengths[long] > 100 * events.lengths[short]
    model = bundle.load(home.bundle).model
    index = ItemIndex.build(model, np.arange(400, dtype=np.int64))
    recent = Events.of([3], item=np.array([1, 2, 3]), time=NOW - np.array([30, 20, 10]))
    cost = []
    with home.store() as store:
        service = Recommender(store.lookup, model, index)
        for u in (long, short):
            record = store.lookup_raw(users[u : u + 1]).rows.nbytes
            with Work() as work:
                best = service.recommend(users[u : u + 1], recent, np.array([NOW]), k=5, candidates=50)
            assert best.summarized.all()
            cost.append((record, work.elements))
    assert cost[0] == cost[1] and cost[0][1].total() > 0
