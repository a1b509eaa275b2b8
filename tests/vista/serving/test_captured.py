"""Graphs of a serving step: what is recorded, what is copied, what falls back. What CUDA itself does is not here: the
recording is passed in, and runs the step again on the memory where it was recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.vista.asking import AskingNothing
from tests.vista.serving.test_serving import INDEX, ITEMS, MODEL, NOW, recent_of, summaries
from vista.ops import crossing
from vista.serving.captured import GRAPHS, Captured
from vista.serving.context_graph import ContextGraph
from vista.serving.recommender import Recommender
from vista.stage2.context_kv import ContextKV


def repeated(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """As ``cuda_graph``: the same work on the same memory, its result where the first one lay."""
    out = work()

    def again() -> None:
        found = work()
        for old, new in zip(*(x.values() if isinstance(x, dict) else [x] for x in (out, found)), strict=True):
            old.copy_(new)

    return again, out


def asking_nothing(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Likewise of work that asks nothing of the device, as no graph may."""
    with AskingNothing():
        return repeated(work)


def scaled(plan: float, x: Tensor, y: Tensor) -> Tensor:
    return x * plan + y


def test_a_shape_is_recorded_when_it_comes_again_and_gives_what_the_work_gives():
    step = Captured(scaled, repeated)
    results = []
    for i in range(5):
        x, y = torch.full((3,), float(i)), torch.arange(3.0)
        results.append(step("a", lambda: 2.0, x=x, y=y))
        assert torch.equal(results[-1], 2.0 * x + y)
    assert step.replayed == 4 and step.told is None
    # a result is the caller's own: later calls do not write over it
    assert all(torch.equal(r, 2.0 * i + torch.arange(3.0)) for i, r in enumerate(results))


def test_other_shapes_and_other_plans_have_graphs_of_their_own():
    step = Captured(scaled, repeated)
    for _ in range(3):
        for n, plan in ((3, 2.0), (4, 2.0), (3, 5.0)):
            x = torch.randn(n, generator=torch.Generator().manual_seed(n))
            assert torch.equal(step(plan, lambda plan=plan: plan, x=x, y=x), x * plan + x)
    assert step.replayed == 6


def test_graphs_that_are_not_used_are_let_go():
    step = Captured(scaled, repeated)
    for n in range(1, 3 * GRAPHS):
        for _ in range(2):
            step(0, lambda: 1.0, x=torch.ones(n), y=torch.ones(n))
    assert len(step._graphs) == GRAPHS and len(step._seen) == GRAPHS


def test_what_cannot_be_recorded_runs_as_it_is_and_the_reason_is_told():
    def refuse(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        raise RuntimeError("operation not permitted\n when stream is capturing")

    step = Captured(scaled, refuse)
    x = torch.ones(2)
    assert torch.equal(step(0, lambda: 3.0, x=x, y=x), 4 * x)
    with pytest.warns(RuntimeWarning, match="without a CUDA graph: operation not permitted when"):
        assert torch.equal(step(0, lambda: 3.0, x=x, y=x), 4 * x)
    assert torch.equal(step(0, lambda: 3.0, x=x, y=x), 4 * x)  # told once, not tried again
    assert step.told is not None and step.replayed == 0


def test_recommendations_by_graphs_and_resident_vectors_are_those_without():
    plain = Recommender(summaries, MODEL, INDEX, fingerprint="m1")
    # by the CPU's own kernel it would ask whether anything is masked
    service = Recommender(summaries, MODEL, INDEX, fingerprint="m1", cross=crossing.naive)
    service._resident.set(INDEX.items, INDEX.vectors())
    service.step = Captured(service._logits, asking_nothing)
    service.context_step = ContextGraph(MODEL.ranker, service.recent, asking_nothing)
    for users in ([5, 9, 2], [7, 1, 30], [4, 11, 8], [3]):
        users = np.array(users)
        found, wanted = (
            s.recommend(users, recent_of(users), NOW, k=9, candidates=40) for s in (service, plain)
        )
        assert np.array_equal(found.item, wanted.item) and np.array_equal(found.offsets, wanted.offsets)
        np.testing.assert_allclose(found.probability, wanted.probability, rtol=1e-5)
    assert service.step.replayed == 2 and len(ITEMS) == len(INDEX)
    assert service.context_step.step.replayed == 2


def test_a_context_by_graphs_is_that_without_whatever_is_missing_of_a_user():
    def half_known(users):
        return summaries(users, lambda user: user % 2 == 0)

    for lookup in (half_known, None):
        service, plain = (Recommender(lookup, MODEL, INDEX, fingerprint="m1") for _ in range(2))
        service.context_step = ContextGraph(MODEL.ranker, service.recent, asking_nothing)
        for users, length in (([5, 9, 2], 9), ([7, 4, 30], 9), ([4, 11, 8], 2), ([1, 2, 3], 0)):
            users = np.array(users)
            (ctx, status), (wanted, same) = (
                s.context(users, recent_of(users, length), NOW) for s in (service, plain)
            )
            assert np.array_equal(status, same) and list(ctx.owner) == list(users)
            assert (ctx.generation, ctx.fingerprint) == (wanted.generation, wanted.fingerprint)
            wanted = ContextKV.concat([wanted, ctx])[:3]  # with as much room
            for name, x in wanted.tensors().items():
                if name in ("keys", "values"):  # what is hidden may be anything
                    there = wanted.mask[None, :, :, None, None]
                    torch.testing.assert_close(ctx.tensors()[name] * there, x * there)
                else:
                    torch.testing.assert_close(ctx.tensors()[name], x)
        assert service.context_step.step.replayed == 3 and service.context_step.step.told is None
