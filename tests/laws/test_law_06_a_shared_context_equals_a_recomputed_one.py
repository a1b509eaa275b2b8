"""Law 6: a shared context equals a recomputed one.

Also: across real processes, tests/vista/serving/test_kv_pool.py.
"""

from __future__ import annotations

from contextlib import closing

import numpy as np
import torch
from small_worlds import NOW, World, all_events

from vista import bundle
from vista.data.events import Events
from vista.serving.index import ItemIndex
from vista.serving.kv_pool import KVPool
from vista.serving.recommender import Recommender


def test_law_6_ranking_over_the_context_of_retrieval_equals_ranking_over_a_new_one(home: World, tmp_path):
    users, events = all_events(home)
    asked = users[:3]
    recent = Events.concat([events.user(u).rows(0, 4) for u in range(3)])
    now, items, offsets = np.full(3, NOW), np.arange(30, dtype=np.int64), np.array([0, 8, 20, 30])
    model = bundle.load(home.bundle).model
    index = ItemIndex.build(model, np.arange(400, dtype=np.int64))
    with home.store() as store, torch.no_grad():
        service = Recommender(store.lookup, model, index)
        shared, _ = service.context(asked, recent, now)
        with closing(KVPool.create(tmp_path / "pool", model, 4)) as pool:
            tickets = pool.put(shared)

            def compute(missed: np.ndarray) -> None:
                raise AssertionError(f"rows {missed} were not served from the pool")

            with closing(KVPool.attach(tmp_path / "pool")) as reader:
                taken = reader.get_or_compute(tickets, asked, compute, generation=shared.generation)
        recomputed, _ = service.context(asked, recent, now)
        wanted = model.ranker.rank(recomputed, items, offsets)
        torch.testing.assert_close(model.ranker.rank(shared, items, offsets), wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.ranker.rank(taken, items, offsets), wanted, rtol=1e-5, atol=1e-6)
        whole = service.recommend(asked, recent, now, k=5, candidates=50)
        halves = service.rank(asked, service.retrieve(asked, recent, now, candidates=50), 5)
    np.testing.assert_array_equal(whole.item, halves.item)
    np.testing.assert_allclose(whole.score, halves.score, rtol=1e-5)
