from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vista.config import EmbeddingConfig, ModelConfig, SlotConfig, SummarizerConfig, TokenConfig
from vista.data.events import Events
from vista.embedding.encoders import EventEncoder, ItemEncoder
from vista.errors import ConfigError, DataError
from vista.stage1.state import StateError, UserState
from vista.stage1.summarizer import Summarizer

C = 8
CONFIG = ModelConfig(
    width=16,
    embedding=EmbeddingConfig(rows=256),
    tokens=TokenConfig(items=0),
    slots=SlotConfig(rows=2, buckets=40, clusters=8),
    summarizer=SummarizerConfig(
        layers=2, heads=2, chunk=C, seeds=3, rows="events", half_lives_events=(float("inf"), 20.0)
    ),
)
LENGTH = st.one_of(st.sampled_from([0, 1, C - 1, C, C + 1, 2 * C, 9 * C + 3]), st.integers(0, 60))


def built(config: ModelConfig = CONFIG) -> Summarizer:
    torch.manual_seed(config.seed)
    return Summarizer(config, EventEncoder(config, ItemEncoder(config)))


def varied(**changes) -> ModelConfig:
    return dataclasses.replace(CONFIG, summarizer=dataclasses.replace(CONFIG.summarizer, **changes))


def histories(lengths, seed: int = 0) -> Events:
    random = np.random.default_rng(seed)
    n = int(np.sum(lengths))
    return Events.of(
        lengths,
        item=random.integers(0, 90, n),
        action=random.integers(1, 8, n),
        surface=random.integers(0, 4, n),
        time=1_600_000_000_000 + random.integers(0, 40, n) * 86_400_000,
        request=random.permutation(n),  # distinct events
    ).sorted()


def cut_at(events: Events, cuts: np.ndarray) -> tuple[Events, Events]:
    middle = events.offsets[:-1] + cuts
    return events.slices(events.offsets[:-1], middle), events.slices(middle, events.offsets[1:])


def assert_same_tokens(found, wanted, tolerance: float = 1e-5) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        a, b = (np.asarray(x, np.float64) for x in (found[name], wanted[name]))
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(initial=0), 1e-3))


MODEL = built()


@given(st.lists(LENGTH, min_size=1, max_size=4), st.integers(0, 99), st.data())
def test_resume_equals_recompute_for_any_split(lengths, seed, data):
    events = histories(lengths, seed)
    whole = MODEL.summarize(events)
    cuts = np.sort([[data.draw(st.integers(0, n)) for n in lengths] for _ in range(3)], axis=0)
    states, at = None, np.zeros(len(lengths), np.int64)
    for cut in [*cuts, events.lengths]:
        part = events.slices(events.offsets[:-1] + at, events.offsets[:-1] + cut)
        summary = MODEL.summarize(part, states)
        states = [UserState.from_bytes(state.to_bytes()) for state in summary.states]
        at = cut
    assert_same_tokens(summary.tokens, whole.tokens)
    assert not summary.late.any()
    for state, wanted, n in zip(states, whole.states, lengths, strict=True):
        assert (state.count, state.total, state.last_key) == (wanted.count, n, wanted.last_key)


@given(st.lists(LENGTH, min_size=1, max_size=5), st.integers(0, 99), st.integers(1, 200))
def test_a_users_tokens_do_not_depend_on_the_others_or_on_how_steps_are_filled(lengths, seed, rows):
    events, model = histories(lengths, seed), built()
    whole = model.summarize(events)
    model.token_groups[0].step_rows = rows
    assert_same_tokens(model.summarize(events).tokens, whole.tokens)
    for u in range(len(lengths)):
        alone = model.summarize(events.user(u))
        assert_same_tokens(alone.tokens, {name: x[u : u + 1] for name, x in whole.tokens.items()})


def test_the_same_input_gives_the_same_bytes():
    events = histories([3, 40, 0, 100])
    a, b = MODEL.summarize(events), built().summarize(events)
    assert all(np.array_equal(a.tokens[name], b.tokens[name]) for name in a.tokens)
    assert [s.to_bytes() for s in a.states] == [s.to_bytes() for s in b.states]


def test_new_events_that_sort_into_the_tail_are_merged_with_it():
    events = histories([30, 20], 5)
    whole = MODEL.summarize(events)
    kept = np.ones(50, bool)
    kept[[26, 27, 29, 46, 48]] = False  # behind the last chunk boundary of each user

    def only(mask):
        lengths = np.add.reduceat(mask, events.offsets[:-1])
        return Events.of(lengths, **{n: c[mask] for n, c in events.columns.items()})

    first = MODEL.summarize(only(kept))
    second = MODEL.summarize(only(~kept), first.states)
    assert not second.late.any()
    assert_same_tokens(second.tokens, whole.tokens)


def test_an_event_seen_before_is_dropped():
    events = histories([30], 6)
    first = MODEL.summarize(events)
    again = MODEL.summarize(events.rows(23, 30), first.states)
    assert not again.late.any()
    assert again.states[0].total == 30
    assert_same_tokens(again.tokens, first.tokens)


def test_an_event_older_than_the_chunk_boundary_makes_its_user_late_and_no_other():
    events = histories([30, 30], 7)
    keep = np.ones(60, bool)
    keep[4] = False
    lengths = np.array([29, 30])
    first = MODEL.summarize(Events.of(lengths, **{n: c[keep] for n, c in events.columns.items()}))
    missed = Events.of([1, 0], **{n: c[4:5] for n, c in events.columns.items()})
    second = MODEL.summarize(missed, first.states)
    assert second.late.tolist() == [True, False]
    assert_same_tokens(second.tokens, first.tokens)


def test_an_empty_history_has_finite_tokens_and_empty_slots():
    summary = MODEL.summarize(Events.empty(2))
    assert np.isfinite(summary.tokens["seeds"]).all()
    assert np.ptp(summary.tokens["seeds"], axis=0).max() == 0
    assert not summary.tokens["slots"].any()
    assert [state.last_key for state in summary.states] == [None, None]


def test_a_state_of_other_weights_is_refused():
    other = built(dataclasses.replace(CONFIG, seed=1))
    states = MODEL.summarize(histories([9])).states
    with pytest.raises(StateError, match="run vista summarize"):
        other.summarize(Events.empty(1), states)
    model = built()
    model.summarize(Events.empty(1), states)
    with torch.no_grad():
        model.encoder.seeds.add_(1)
    with pytest.raises(StateError):
        model.summarize(Events.empty(1), states)


def test_events_out_of_order_are_refused():
    events = Events.of([2], item=np.arange(2), time=np.array([5, 4]))
    with pytest.raises(DataError, match="ascending time"):
        MODEL.summarize(events)


def test_an_unknown_kind_is_refused_by_the_configuration():
    with pytest.raises(ConfigError, match="summarizer.kind.*found 'none'"):
        varied(kind="none")


def test_slots_alone_and_seeds_alone_are_models_too():
    events = histories([3, 30], 8)
    slots = built(varied(seeds=0))
    seeds = built(
        dataclasses.replace(CONFIG, tokens=TokenConfig(items=0), slots=SlotConfig(buckets=0, clusters=0))
    )
    whole = MODEL.summarize(events).tokens
    for model, name in ((slots, "slots"), (seeds, "seeds")):
        older, newer = cut_at(events, np.array([2, 19]))
        summary = model.summarize(newer, model.summarize(older).states)
        assert list(summary.tokens) == [name] == [group[0] for group in model.groups()]
        if name == "slots":
            assert_same_tokens(summary.tokens, {name: whole[name]})


# --- the full form


def test_the_full_form_has_no_states_and_reads_every_event_from_every_event():
    model, events = built(varied(chunk=0)), histories([20, 0, 7], 9)
    summary = model.summarize(events)
    assert summary.states == [None, None, None]
    one = built(varied(chunk=64))  # a chunk as long as any history is the full form
    assert_same_tokens(summary.tokens, one.summarize(events).tokens)


# --- prefixes


@given(st.lists(LENGTH, min_size=1, max_size=3), st.integers(0, 99), st.data(), st.sampled_from([0, C]))
def test_a_prefix_is_the_summary_of_the_events_before_the_cut(lengths, seed, data, chunk):
    model, events = built(varied(chunk=chunk)), histories(lengths, seed)
    user_of = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=6)))
    cuts = np.array([data.draw(st.integers(0, lengths[u])) for u in user_of])
    start = events.offsets[user_of]
    rounded = np.where(cuts < C, cuts, cuts // C * C) if chunk else cuts
    for exact in (True, False):
        found = {name: x.detach().numpy() for name, x in model.prefixes(events, cuts, user_of, exact).items()}
        wanted = model.summarize(events.slices(start, start + cuts)).tokens
        if not exact:
            wanted["seeds"] = model.summarize(events.slices(start, start + rounded)).tokens["seeds"]
        assert_same_tokens(found, wanted)


def gradients(model: Summarizer, events: Events, cuts: np.ndarray, user_of: np.ndarray) -> list[torch.Tensor]:
    model.zero_grad()
    model.events.zero_grad()
    tokens = model.prefixes(events, cuts, user_of)["seeds"]
    (tokens * torch.cos(torch.arange(tokens.numel())).view_as(tokens)).sum().backward()
    return [p.grad.clone() for p in (*model.encoder.parameters(), *model.events.parameters())]


def test_gradient_checkpointing_changes_no_gradient():
    events, cuts, user_of = histories([50, 9], 1), np.array([8, 30, 50, 9]), np.array([0, 0, 0, 1])
    plain = gradients(built(), events, cuts, user_of)
    saved = gradients(built(varied(checkpoint=True)), events, cuts, user_of)
    for a, b in zip(plain, saved, strict=True):
        torch.testing.assert_close(a, b)


def test_truncation_changes_gradients_and_no_summary():
    events, cuts, user_of = histories([90, 9], 2), np.array([5, 8, 30, 88, 9]), np.array([0, 0, 0, 0, 1])
    plain, cut = built(), built(varied(gradient_events=20))
    found = {name: x.detach() for name, x in cut.prefixes(events, cuts, user_of).items()}
    assert_same_tokens(found, {name: x.detach() for name, x in plain.prefixes(events, cuts, user_of).items()})
    far = gradients(built(varied(gradient_events=1000)), events, cuts, user_of)
    pairs = list(zip(gradients(plain, events, cuts, user_of), far, strict=True))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs)
    near = gradients(cut, events, cuts, user_of)
    assert any(not torch.allclose(a, b[1], rtol=1e-2) for a, b in zip(near, pairs, strict=True))


def test_a_cut_outside_its_history_is_refused():
    with pytest.raises(DataError, match="cuts between 0"):
        MODEL.prefixes(histories([3]), np.array([4]), np.array([0]))


@pytest.mark.parametrize("form", ["causal", "seeds"])
def test_the_reconstruction_loss_teaches_the_seeds_and_not_its_targets(form):
    model, events = built(varied(reconstruction=form, reconstruction_window=6)), histories([40, 3, 1, 0], 3)
    cuts, user_of = np.array([40, 20, 3, 1, 0]), np.array([0, 0, 1, 2, 3])
    seeds = model.prefixes(events, cuts, user_of)["seeds"].detach().requires_grad_()
    loss = model.reconstruction_loss(seeds, events, cuts, user_of, np.random.default_rng(0))
    loss.backward()
    assert 0.5 < loss.item() < 2.5
    assert (seeds.grad[:3] != 0).any(dim=(1, 2)).all()
    assert not seeds.grad[3:].any()
    if form == "seeds":
        assert model.events.items.weight.grad is None


def test_float64_models_run_in_float64():
    model = built(varied(seeds=2)).double()
    model.events.double()
    model.events.items.double()
    tokens = model.prefixes(histories([20]), np.array([20]), np.array([0]))["seeds"]
    assert tokens.dtype == torch.float64
