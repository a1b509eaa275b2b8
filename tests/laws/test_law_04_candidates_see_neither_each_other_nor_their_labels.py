"""Law 4: candidates see neither each other nor their own labels.

Also: against one masked sequence per user, tests/vista/stage2/test_ranker.py; through the whole training step,
tests/vista/training/test_training.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_worlds import NOW, World, all_events

from vista import bundle
from vista.data.events import Events
from vista.model import VistaModel


@pytest.fixture(scope="module")
def model(home: World) -> VistaModel:
    return bundle.load(home.bundle).model


def test_law_4_a_candidate_is_scored_alike_in_any_company_and_order(home: World, model: VistaModel):
    users, events = all_events(home)
    recent = Events.concat([events.user(u).rows(0, 4) for u in range(3)])
    rng = np.random.default_rng(0)
    items, offsets = rng.integers(0, 400, 30), np.array([0, 10, 20, 30])
    with home.store() as store, torch.no_grad():
        found = store.lookup(users[:3])
        context = model.ranker.context(
            _groups(model, found.tokens), found.status < 2, recent, np.full(3, NOW), found.last_event_ms
        )
        together = model.ranker.rank(context, items, offsets)
        order = np.concatenate([rng.permutation(10) + 10 * u for u in range(3)])
        torch.testing.assert_close(
            model.ranker.rank(context, items[order], offsets), together[order], rtol=1e-4, atol=1e-5
        )
        for row in range(0, 30, 7):
            alone = model.ranker.rank(context[row // 10], items[row : row + 1], [0, 1])
            torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


def test_law_4_a_masked_action_reaches_no_output(model: VistaModel):
    recent = Events.of([4], item=np.arange(4), action=np.array([1, 2, 4, 1]), time=NOW - np.arange(4)[::-1])
    other = Events.of([4], **{**recent.columns, "action": 7 - recent.action})
    outputs = []
    with torch.no_grad():
        for events in (recent, other):
            context = model.ranker.context({}, None, events, [NOW], masked=np.ones(4, bool), full=True)
            logits = model.ranker.rank(context, [5, 6], [0, 2])
            outputs.append([logits, model.ranker.query(context), *model.ranker.past(context, events)])
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


def _groups(model: VistaModel, tokens: np.ndarray) -> dict[str, torch.Tensor]:
    """The matrix [U, S, D] of a lookup by group."""
    sizes = [size for _, size, _, _ in model.groups]
    parts = torch.from_numpy(tokens).split(sizes, dim=1)
    return {group[0]: part for group, part in zip(model.groups, parts, strict=True)}
