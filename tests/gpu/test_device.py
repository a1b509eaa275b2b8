"""Whole pieces of the device path against the same on the CPU; without a GPU that only tries the tests themselves."""

from __future__ import annotations

import copy
import dataclasses
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.vista.serving.test_captured import repeated
from tests.vista.serving.test_serving import INDEX, MODEL, recent_of, summaries
from tests.vista.serving.test_serving import NOW as SERVED
from tests.vista.stage1.test_exact_tokens import CONFIG, C, histories, same
from tests.vista.training.test_trainer import trainer
from tests.vista.training.test_training import loyal, one_batch
from vista.model import VistaModel
from vista.ops import crossing
from vista.serving.captured import Captured, cuda_graph
from vista.serving.context_graph import ContextGraph
from vista.serving.recommender import Recommender
from vista.stage1.exact_tokens import ExactTokenGroup
from vista.stage2.context_kv import ContextKV
from vista.training.compiled import compile_layers
from vista.training.trainer import Trainer

pytestmark = pytest.mark.gpu
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")


@pytest.mark.parametrize("told", [0, 13], ids=["all", "heaviest"])
def test_records_and_states_folded_on_the_device_are_numpys_to_the_bit(told: int):
    tokens = dataclasses.replace(CONFIG.tokens, items=40, clusters=30, clusters_told=told)
    config = dataclasses.replace(CONFIG, tokens=tokens)
    plain = VistaModel(config).eval()
    ids = np.unique(histories([300], 0, 90).item)[::2]
    plain.set_clusters(ids, np.arange(len(ids)) % 30)
    ours = copy.deepcopy(plain).to(DEVICE)
    (group,) = (g for g in ours.summarizer.token_groups if isinstance(g, ExactTokenGroup))
    group.in_torch = True
    lengths = np.array([0, 1, C - 1, C, C + 1, 40 * C + 3, 700])
    events = histories(lengths, 5, 90)
    wanted = plain.summarizer.summarize(events)
    states, at = None, np.zeros_like(lengths)
    for to in (lengths // 3, lengths // 2, lengths):
        part = events.slices(events.offsets[:-1] + at, events.offsets[:-1] + to)
        found, at = ours.summarizer.summarize(part, states), to
        states = found.states
    assert same(found.tokens, wanted.tokens)
    assert [s.parts.keys() for s in states] == [s.parts.keys() for s in wanted.states]
    for a, b in zip(states, wanted.states, strict=True):
        assert all(np.array_equal(a.parts[name], b.parts[name]) for name in b.parts)
    cuts, user_of = np.array([5, 200, 0, 699, C]), np.array([5, 5, 0, 6, 4])
    found = {n: x.cpu() for n, x in ours.summarizer.prefixes(events, cuts, user_of).items()}
    assert same(found, plain.summarizer.prefixes(events, cuts, user_of))


@pytest.mark.parametrize("form", [crossing.fast, crossing.flex], ids=["fast", "flex"])
def test_both_forms_of_the_crossing_equal_the_definition_in_float64(form):
    draw = torch.Generator().manual_seed(2)
    for lengths, t in (([70, 0, 9, 300], 200), ([5, 5], 130), ([1], 993), ([4, 4], 0)):
        users, rows = len(lengths), sum(lengths)
        inputs = [torch.randn(rows, 2, 32, generator=draw) for _ in range(3)]
        inputs += [torch.randn(users, t, 2, 32, generator=draw) for _ in range(2)]
        mask = torch.rand(users, t, generator=draw) < 0.7
        mask[0] = len(lengths) == 1
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        wanted = crossing.naive(*(x.double() for x in inputs), mask, offsets)
        with torch.inference_mode():
            plan = crossing.Plan.of(offsets, DEVICE)
            found = form(*(x.to(DEVICE) for x in inputs), mask.to(DEVICE), plan)
        torch.testing.assert_close(found.cpu().double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", [crossing.fast, crossing.flex], ids=["fast", "flex"])
def test_recommendations_by_graphs_are_those_of_the_cpu(form):
    model = copy.deepcopy(MODEL).to(DEVICE)
    service = Recommender(summaries, model, INDEX, fingerprint="m1", cross=form)
    plain = Recommender(summaries, MODEL, INDEX, fingerprint="m1")
    if not CUDA:
        service._resident.set(INDEX.items, INDEX.vectors())
        service.step = Captured(service._logits, repeated)
        service.context_step = ContextGraph(model.ranker, service.recent, repeated)
    assert service.step is not None and service.context_step is not None
    for users in ([5, 9, 2], [7, 1, 30], [4, 11, 8], [3], [6]):
        asked = np.array(users)
        ctx, status = plain.context(asked, recent_of(asked), SERVED)
        by_graph, _ = service.context(asked, recent_of(asked), SERVED)
        torch.testing.assert_close(by_graph.query.cpu(), ctx.query, rtol=1e-3, atol=1e-4)
        retrieved = plain.retrieve(asked, recent_of(asked), SERVED, candidates=40)
        wanted = plain.rank(asked, retrieved, 40)
        moved: ContextKV = retrieved.ctx.to(DEVICE)
        found = service.rank(asked, dataclasses.replace(retrieved, ctx=moved), 40)
        order = np.argsort(wanted.item), np.argsort(found.item)
        assert np.array_equal(found.item[order[1]], wanted.item[order[0]])
        np.testing.assert_allclose(found.score[order[1]], wanted.score[order[0]], rtol=1e-3, atol=1e-5)
    for step in (service.step, service.context_step.step):
        assert step.told is None and step.replayed == 3


def test_a_graph_repeats_its_step_on_new_inputs():
    step = Captured(lambda plan, x: (x @ x.T).relu() + plan, cuda_graph if CUDA else repeated)
    plan = torch.ones((), device=DEVICE)
    for i in range(6):
        x = torch.full((64, 64), float(i), device=DEVICE)
        torch.testing.assert_close(step(0, lambda: plan, x=x), (x @ x.T).relu() + 1)
    assert step.replayed == 5 and step.told is None


@pytest.mark.parametrize("update", ["all", "touched"])
def test_the_collectives_of_a_step_leave_a_single_process_as_it_was(update, tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # a step by the interpreter takes minutes
    batch = one_batch(loyal())
    alone = trainer(embedding_update=update, precision="float32")
    alone = Trainer(alone.config, alone.model, np.arange(40), DEVICE)
    ours = trainer(embedding_update=update, precision="float32")
    ours = Trainer(ours.config, ours.model, np.arange(40), DEVICE)
    wanted = [alone.step(batch, 0)["loss"] for _ in range(2)]
    backend = "cpu:gloo,cuda:nccl" if CUDA and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        for module in ("objective", "trainer"):
            monkeypatch.setattr(f"vista.training.{module}.parallel", lambda: True)
        assert [ours.step(batch, 0)["loss"] for _ in range(2)] == pytest.approx(wanted, rel=1e-4)
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not CUDA, reason="the compiler for CPUs is not what is asked about")
@pytest.mark.parametrize("update", ["all", "touched"])
def test_a_compiled_step_of_training_has_the_losses_of_a_plain_one(update):
    batch = one_batch(loyal())
    ours, plain = trainer(embedding_update=update), trainer()
    fast = Trainer(ours.config, ours.model, np.arange(40), DEVICE)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert compile_layers(fast.model) is None
    for _ in range(3):
        assert fast.step(batch, 0)["loss"] == pytest.approx(plain.step(batch, 0)["loss"], rel=0.05)
