"""What readers find, against loops; and that ranking asks nothing of the device."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.vista.asking import AskingNothing
from tests.vista.stage2.test_ranker import KINDS, NOW, RANKER, offsets_of, request
from vista.data.events import Events
from vista.ops import crossing
from vista.stage2.readers import DAY_MS, RecentReader

IDS = np.array([-(2**63), -5, 0, 3, 2**63 - 1])


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 7)), min_size=1, max_size=4), st.integers(0, 99))
def test_recent_events_of_a_candidates_item_are_those_that_a_loop_finds(slates, seed):
    random = np.random.default_rng(seed)
    lengths, counts = np.array(slates).T
    n = int(lengths.sum())
    recent = Events.of(
        lengths, item=random.choice(IDS, n), time=NOW - random.integers(0, 9 * DAY_MS, n)
    ).sorted()
    tokens = {n: x[:1].expand(len(lengths), -1, -1) * 0 for n, x in request([1], random)["tokens"].items()}
    with torch.no_grad():
        ctx = RANKER.context(tokens, None, recent, np.full(len(lengths), NOW))
    asked = torch.from_numpy(random.choice(IDS, int(counts.sum())))
    plan = crossing.Plan.of(offsets_of(counts))
    found = RecentReader()(ctx, asked, asked, plan)
    for row, (item, u) in enumerate(zip(asked.tolist(), plan.user.tolist(), strict=True)):
        mine = recent.user(u)
        places = np.flatnonzero(mine.item == item)
        wanted = [0.0, 0.0, 0.0]
        if len(places):
            age = (NOW - int(mine.time[places[-1]])) / DAY_MS
            wanted = [math.log1p(len(places)), 1 / (len(mine) - places[-1]), 1 / (1 + age)]
        torch.testing.assert_close(
            found[row], torch.tensor(wanted, dtype=torch.float32), rtol=1e-5, atol=1e-6
        )


@KINDS
def test_ranking_asks_nothing_of_the_device(ranker):
    random = np.random.default_rng(3)
    with torch.inference_mode():
        ctx = ranker.context(**request([3, 0, 5], random, ranker))
        items = torch.from_numpy(random.integers(0, 30, 9))
        plan = crossing.Plan.of([0, 4, 4, 9])
        wanted = ranker.rank(ctx, items, plan, cross=crossing.naive)
        with AskingNothing():
            found = ranker.rank(ctx, items, plan, cross=crossing.naive)
    assert torch.equal(found, wanted)
