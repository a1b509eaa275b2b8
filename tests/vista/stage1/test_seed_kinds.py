"""The laws of the summarizer hold for every kind of seed tokens; what place tokens hold and how they are read."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.vista.asking import AskingNothing
from vista.config import EmbeddingConfig, ModelConfig, SlotConfig, SummarizerConfig, TokenConfig
from vista.data.events import Events
from vista.embedding.encoders import EventEncoder, ItemEncoder, gaps
from vista.model import VistaModel
from vista.ops.crossing import Plan
from vista.ops.qla import plan_step
from vista.serving.kv_pool import KVPool
from vista.stage1.packing import Strands
from vista.stage1.places import PlaceRead, coded, decoded, horizons
from vista.stage1.seed_tokens import SeedTokenGroup
from vista.stage1.summarizer import KINDS, Summarizer
from vista.stage2.context_kv import ContextKV
from vista.training.loader import Arrays
from vista.training.survey import survey

C = 8
CONFIG = ModelConfig(
    width=16,
    embedding=EmbeddingConfig(rows=256),
    tokens=TokenConfig(items=0),
    slots=SlotConfig(buckets=0, clusters=0),
    summarizer=SummarizerConfig(layers=2, heads=2, chunk=C, seeds=3),
)


def built(kind: str, **changes) -> Summarizer:
    summarizer = dataclasses.replace(CONFIG.summarizer, kind=kind, **changes)
    config = dataclasses.replace(CONFIG, summarizer=summarizer)
    torch.manual_seed(0)
    return Summarizer(config, EventEncoder(config, ItemEncoder(config)))


MODELS = {kind: built(kind) for kind in KINDS}


def histories(lengths: list[int], seed: int) -> Events:
    random = np.random.default_rng(seed)
    n = sum(lengths)
    time = 1_600_000_000_000 + np.arange(n) * 3_600_000
    return Events.of(lengths, item=random.integers(0, 90, n), action=random.integers(1, 8, n), time=time)


@pytest.mark.parametrize("kind", KINDS)
@given(
    st.lists(st.sampled_from([0, 1, C - 1, C, C + 1, 2 * C, 5 * C + 3]), min_size=1, max_size=4),
    st.floats(0, 1),
)
def test_resume_equals_recompute(kind, lengths, share):
    model, events = MODELS[kind], histories(lengths, 1)
    whole = model.summarize(events).tokens["seeds"]
    cut = events.offsets[:-1] + (events.lengths * share).astype(np.int64)
    first = model.summarize(events.slices(events.offsets[:-1], cut))
    second = model.summarize(events.slices(cut, events.offsets[1:]), first.states).tokens["seeds"]
    np.testing.assert_allclose(second, whole, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize("kind", KINDS)
def test_how_steps_are_filled_changes_nothing(kind):
    model, events = built(kind), histories([0, 3, 40, 8, 21], 2)
    whole = model.summarize(events).tokens["seeds"]
    for rows in (1, 30):
        model.token_groups[0].step_rows = rows
        found = model.summarize(events).tokens["seeds"]
        np.testing.assert_allclose(found, whole, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_cuts_may_hang_on_one_chunk(kind):
    model, events = built(kind), histories([3 * C], 2)
    cuts, user = np.arange(3 * C + 1).repeat(3), np.zeros(3 * (3 * C + 1), np.int64)
    whole = model.prefixes(events, cuts, user, exact=True)["seeds"].detach().numpy()
    model.token_groups[0].step_rows = 2 * C
    found = model.prefixes(events, cuts, user, exact=True)["seeds"].detach().numpy()
    np.testing.assert_allclose(found, whole, atol=1e-5 * np.abs(whole).max())


def test_places_know_no_chunks():
    events = histories([0, 3, 40, 8, 21], 3)
    whole = built("places").summarize(events).tokens["seeds"]
    for chunk in (0, 3, 64):
        found = built("places", chunk=chunk).summarize(events).tokens["seeds"]
        np.testing.assert_allclose(found, whole, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind):
    model, events = built(kind), histories([40, 5], 5)
    tokens = model.prefixes(events, np.array([40, 16, 5]), np.array([0, 0, 1]))["seeds"]
    (tokens * torch.randn_like(tokens)).sum().backward()
    silent = [name for name, p in model.encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


def test_a_place_holds_what_fell_near_it_and_forgets_with_its_half_life():
    model, events = built("places", half_lives_events=(math.inf, 4.0), seeds=6), histories([29], 4)
    encoder = model.encoder
    assert horizons(model.config) == [(3, math.inf), (3, 4.0)]
    with torch.inference_mode():
        x = model.events.items.vector(torch.from_numpy(events.item))
        score = encoder.log_sharpness.exp() * x @ torch.nn.functional.normalize(encoder.seeds, dim=-1).T
        share = torch.cat([part.softmax(-1) for part in score.split(3, -1)], -1)
        share[:, 3:] *= 2.0 ** (-torch.arange(28, -1, -1) / 4.0)[:, None]
        wanted = torch.nn.functional.normalize((share.T @ x)[:, :15], dim=-1)
    found = torch.from_numpy(model.summarize(events).tokens["seeds"][0])
    torch.testing.assert_close(found[:, :15], wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decoded(found[:, 15]), share.sum(0), rtol=1e-3, atol=1e-5)
    assert not model.summarize(histories([0], 4)).tokens["seeds"].any()


@given(st.floats(0, 1e6))
def test_a_mass_comes_back_from_its_code(mass):
    assert float(decoded(coded(torch.tensor(mass)))) == pytest.approx(mass, rel=1e-3, abs=1e-6)


@given(st.lists(st.integers(0, 7), min_size=1, max_size=5), st.integers(0, 2**16))
def test_log_odds_are_those_of_plain_loops(slates, seed):
    config = dataclasses.replace(
        CONFIG,
        summarizer=SummarizerConfig(kind="places", seeds=6, half_lives_events=(math.inf, math.inf, 4.0)),
    )
    read, random = PlaceRead(config), torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(len(slates), 6, 15, generator=random), dim=-1)
    mass = torch.rand(len(slates), 6, generator=random) * 9
    offsets = np.concatenate([[0], np.cumsum(slates)])
    x = torch.nn.functional.normalize(torch.randn(int(offsets[-1]), 16, generator=random), dim=-1)
    with torch.inference_mode():
        found = read(x, torch.cat([direction, coded(mass)[..., None]], -1), Plan.of(offsets))
    assert found.shape == (len(x), 4)
    for u, places in enumerate(direction):
        for b in range(offsets[u], offsets[u + 1]):
            cosine = [float(torch.cosine_similarity(x[b, :15], p, dim=0)) for p in places]
            wanted = [
                math.log(1e-6 + sum(float(mass[u, p]) * math.exp(s * (cosine[p] - 0.8)) for p in group))
                for s in (12.0, 30.0)
                for group in (range(4), range(4, 6))
            ]
            np.testing.assert_allclose(found[b], wanted, rtol=1e-3, atol=1e-3)


def test_places_start_where_the_events_are():
    model, events = built("places"), histories([400], 6)
    before = model.encoder.seeds.detach().clone()
    model.start(events)
    with torch.inference_mode():
        x = model.events.items.vector(torch.from_numpy(events.item))
        near = [(x @ s.T).amax(-1).mean() for s in (model.encoder.seeds, before)]
    assert near[0] > near[1] + 0.1
    built("qla").start(events)  # nothing to do


def test_training_starts_the_places_and_the_same_histories_start_the_same():
    config = dataclasses.replace(CONFIG, summarizer=dataclasses.replace(CONFIG.summarizer, kind="places"))
    catalogue = survey(Arrays(np.arange(3), histories([200, 40, 9], 7)), held_out=0.1)
    models = [VistaModel(config), VistaModel(config)]
    before = models[0].summarizer.encoder.seeds.detach().clone()
    for model in models:
        catalogue.fit(model)
    one, other = (model.summarizer.encoder.seeds for model in models)
    assert torch.equal(one, other) and not torch.equal(one, before)


def test_a_context_with_places_ranks_alike_from_the_pool(tmp_path):
    config = dataclasses.replace(
        CONFIG,
        tokens=TokenConfig(items=0),
        slots=SlotConfig(buckets=24, clusters=8),
        summarizer=dataclasses.replace(CONFIG.summarizer, kind="places", seeds=5),
    )
    model, events = VistaModel(config).eval(), histories([30, 9], 8)
    last = events.time[events.offsets[1:] - 1]
    with torch.inference_mode():
        tokens = {n: torch.from_numpy(x) for n, x in model.summarizer.summarize(events).tokens.items()}
        ctx = model.ranker.context(tokens, None, Events.empty(2), last, last, owner=["a", "b"])
        assert ctx.slots.shape[1] == model.ranker.addressed == model.slots.tokens + 5
        pool = KVPool.create(tmp_path / "pool", model, 2)
        tickets = pool.put(ctx)
        back = ContextKV.concat([pool.get(t, o) for t, o in zip(tickets, ctx.owner, strict=True)])
        asked = np.arange(12), np.array([0, 5, 12])
        assert torch.equal(model.ranker.rank(back, *asked), model.ranker.rank(ctx, *asked))
        pool.close()


@pytest.mark.parametrize("kind", ["qla", "places"])
def test_a_step_of_seed_tokens_asks_nothing_of_the_device(kind):
    model = VistaModel(
        ModelConfig(
            width=8,
            embedding=EmbeddingConfig(rows=64),
            summarizer=SummarizerConfig(
                kind=kind, seeds=4, chunk=4, layers=2, half_lives_events=(float("inf"), 20.0)
            ),
        )
    )
    group = model.summarizer.token_groups[0]
    assert isinstance(group, SeedTokenGroup)
    lengths = np.array([0, 3, 4, 21])
    events = Events.of(lengths, item=np.arange(28) % 5, time=np.arange(28) * 1_000)
    zeros, everyone = np.zeros(4, np.int64), np.arange(4)
    strands = Strands(events.offsets[:-1], zeros, lengths // 4, everyone, lengths)
    gap = gaps(events)
    with torch.no_grad():
        wanted, states = group.run(events, gap, strands, {}, keep=True)
        with AskingNothing():
            found, kept = group.run(events, gap, strands, {}, keep=True)
    assert torch.equal(found, wanted) and kept.keys() == states.keys() == {2, 3}


def test_a_plan_goes_to_a_device_whole_in_one_copy():
    plan = plan_step(4, np.array([0, 0]), np.array([0, 0]), np.zeros(1), np.array([1, 3]), np.array([1, 2]))
    moved = plan.to(torch.device("meta"))
    pairs = [(plan, moved), *zip(plan.groups, moved.groups, strict=True)]
    for before, after in pairs:
        for field in dataclasses.fields(before):
            a, b = getattr(before, field.name), getattr(after, field.name)
            if isinstance(a, torch.Tensor):
                assert (b.device.type, b.shape, b.dtype) == ("meta", a.shape, a.dtype), field.name
            elif field.name != "groups":
                assert a == b
