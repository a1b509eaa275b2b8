"""The laws of the summarizer hold for every kind."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vista.catalogue import survey
from vista.config import EmbeddingConfig, ModelConfig, SlotConfig, SummarizerConfig
from vista.data.events import Events
from vista.data.loader import Arrays
from vista.embedding import EventEncoder, ItemEncoder
from vista.model import VistaModel
from vista.summarizer import KINDS, Summarizer

C = 8
CONFIG = ModelConfig(
    width=16,
    embedding=EmbeddingConfig(rows=256),
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
        model.step_rows = rows
        found = model.summarize(events).tokens["seeds"]
        np.testing.assert_allclose(found, whole, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_cuts_may_hang_on_one_chunk(kind):
    model, events = built(kind), histories([3 * C], 2)
    cuts, user = np.arange(3 * C + 1).repeat(3), np.zeros(3 * (3 * C + 1), np.int64)
    whole = model.prefixes(events, cuts, user, exact=True)["seeds"].detach().numpy()
    model.step_rows = 2 * C
    found = model.prefixes(events, cuts, user, exact=True)["seeds"].detach().numpy()
    np.testing.assert_allclose(found, whole, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize("kind", ["pooled", "sketch"])
def test_without_mixing_between_events_the_chunk_makes_no_difference(kind):
    events = histories([0, 3, 40, 8, 21], 3)
    whole = built(kind).summarize(events).tokens["seeds"]
    for chunk in (0, 3, 64):
        found = built(kind, chunk=chunk).summarize(events).tokens["seeds"]
        np.testing.assert_allclose(found, whole, atol=1e-5 * np.abs(whole).max())


def test_pooled_seeds_are_softmax_attention_over_all_events():
    model, events = MODELS["pooled"], histories([29], 4)
    encoder = model.encoder
    with torch.inference_mode():
        columns = (events.item, events.action, events.surface, events.time, np.zeros(29, np.int64))
        gap = torch.full((29,), 3_600_000)
        gap[0] = 0
        x = model.events(*(torch.from_numpy(c) for c in columns[:4]), gap)
        x = torch.nn.functional.rms_norm(x, (16,), eps=1e-8)
        k, v, q = (
            (t).view(-1, 2, 8).transpose(0, 1) for t in (x @ encoder.key, x @ encoder.value, encoder.seeds)
        )
        read = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v
        wanted = encoder.read(
            encoder.seeds, torch.nn.functional.rms_norm(read.transpose(0, 1).flatten(1), (16,), eps=1e-8)
        ).numpy()
    np.testing.assert_allclose(model.summarize(events).tokens["seeds"][0], wanted, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind):
    model, events = built(kind), histories([40, 5], 5)
    tokens = model.prefixes(events, np.array([40, 16, 5]), np.array([0, 0, 1]))["seeds"]
    (tokens * torch.randn_like(tokens)).sum().backward()
    silent = [name for name, p in model.encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == (["layers.1.local"] if kind == "hybrid" else [])  # nothing reads the last layer's events


def test_prototypes_start_where_the_events_are():
    model, events = built("sketch"), histories([400], 6)
    before = model.encoder.seeds.detach().clone()
    model.start(events)
    seeds = model.encoder.seeds.detach()
    torch.testing.assert_close(seeds.square().mean(-1), torch.ones(3))
    columns = (events.item, events.action, events.surface, events.time, np.full(400, 3_600_000))
    with torch.inference_mode():
        x = torch.nn.functional.normalize(model.events(*(torch.from_numpy(c) for c in columns)), dim=-1)
        near = [(x @ torch.nn.functional.normalize(s, dim=-1).T).amax(-1).mean() for s in (seeds, before)]
    assert near[0] > near[1] + 0.1
    built("qla").start(events)  # nothing to do


def test_training_starts_the_prototypes_and_the_same_histories_start_the_same():
    config = dataclasses.replace(CONFIG, summarizer=dataclasses.replace(CONFIG.summarizer, kind="sketch"))
    catalogue = survey(Arrays(np.arange(3), histories([200, 40, 9], 7)), held_out=0.1)
    models = [VistaModel(config), VistaModel(config)]
    before = models[0].summarizer.encoder.seeds.detach().clone()
    for model in models:
        catalogue.fit(model)
    one, other = (model.summarizer.encoder.seeds for model in models)
    assert torch.equal(one, other) and not torch.equal(one, before)
