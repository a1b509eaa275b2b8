"""Laws 4, 5 and 6 on the whole of stage 2, and what a missing summary does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vista.config import EmbeddingConfig, ModelConfig, RankerConfig, SlotConfig, SummarizerConfig, TokenConfig
from vista.data.events import Events
from vista.data.recent import select_recent
from vista.embedding.encoders import EventEncoder, ItemEncoder
from vista.errors import DataError, FingerprintMismatch
from vista.ops import crossing
from vista.stage1.exact_tokens import ExactTokenGroup
from vista.stage1.slots import SlotMemory
from vista.stage1.tokens import ExactTokens
from vista.stage2.naive import one_sequence
from vista.stage2.ranker import Ranker
from vista.stage2.readers import RecentReader

DAY = 86_400_000
NOW = 20_000 * DAY

CONFIG = ModelConfig(
    width=16,
    actions=("view", "save"),
    embedding=EmbeddingConfig(tables=2, rows=97),
    tokens=TokenConfig(items=0),
    slots=SlotConfig(rows=2, buckets=24, clusters=8),
    summarizer=SummarizerConfig(seeds=5),
    ranker=RankerConfig(layers=2, heads=2, recent=6, queries=2),
)


def build(config: ModelConfig = CONFIG, seed: int = 0) -> Ranker:
    torch.manual_seed(seed)
    items = ItemEncoder(config)
    ranker = Ranker(config, items, EventEncoder(config, items), SlotMemory(config))
    with torch.no_grad():  # away from the start, so that no term is silent
        for p in ranker.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return ranker.eval()


RANKER = build()
PLACES = build(dataclasses.replace(CONFIG, summarizer=SummarizerConfig(seeds=5, kind="places")))
EXACT_CONFIG = dataclasses.replace(
    CONFIG,
    tokens=TokenConfig(items=12, clusters=6, sequence=10, places=3),
    slots=SlotConfig(),
    summarizer=SummarizerConfig(),
)
EXACT = build(EXACT_CONFIG)
BEFORE = dict(ages=False, direct=0, neighbours=0, near=True)
DENSITY = build(
    dataclasses.replace(EXACT_CONFIG, ranker=dataclasses.replace(CONFIG.ranker, **BEFORE)),
)
KINDS = pytest.mark.parametrize(
    "ranker", [RANKER, PLACES, EXACT, DENSITY], ids=["qla", "places", "exact", "density"]
)


def histories(lengths, rng) -> Events:
    n = int(sum(lengths))
    return Events.of(
        lengths,
        item=rng.integers(0, 30, n),
        action=rng.integers(0, 4, n),
        surface=rng.integers(0, 5, n),
        time=NOW - rng.integers(0, 90 * DAY, n),
    ).sorted()


def request(lengths, rng, ranker=RANKER, **kwargs):
    """Inputs of ``context`` for users with so many recent events, summaries drawn at random."""
    u = len(lengths)
    old = histories(rng.integers(1, 50, u), rng)
    tokens = {}
    if ranker.config.summarizer.seeds:
        tokens["seeds"] = torch.from_numpy(rng.normal(size=(u, 5, 16)).astype(np.float32))
    if ranker.config.slots.enabled:
        slots = ranker.slots.serve(ranker.slots.update(ranker.slots.empty(u), old))
        tokens["slots"] = torch.from_numpy(slots)
    if ranker.config.tokens.enabled:
        group = ExactTokenGroup(ranker.tokens)
        tokens |= group.prefixes(old, old.lengths, np.arange(u), True)
    return dict(
        tokens=tokens,
        usable=np.ones(u, bool),
        recent=histories(lengths, rng),
        now_ms=np.full(u, NOW),
        last_event_ms=NOW - rng.integers(0, 9 * DAY, u),
        **kwargs,
    )


def only(inputs, users):
    """The same request for some of its users."""
    return {
        **inputs,
        "tokens": {n: x[users] for n, x in inputs["tokens"].items()},
        "usable": inputs["usable"][users],
        "recent": inputs["recent"].select(users),
        "now_ms": inputs["now_ms"][users],
        "last_event_ms": inputs["last_event_ms"][users],
    }


def offsets_of(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-5)


SLATES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 7)), min_size=1, max_size=4)


@KINDS
@given(SLATES, st.integers(0, 2**16))
def test_deduplicated_equals_one_context_per_candidate_row(ranker, shape, seed):
    rng = np.random.default_rng(seed)
    inputs = request([r for r, _ in shape], rng, ranker)
    counts = np.array([b for _, b in shape])
    items = rng.integers(0, 40, counts.sum())
    with torch.no_grad():
        shared = ranker.rank(ranker.context(**inputs), items, offsets_of(counts))
        rows = only(inputs, np.repeat(np.arange(len(shape)), counts))
        expanded = ranker.rank(ranker.context(**rows), items, np.arange(len(items) + 1), cross=crossing.naive)
    close(shared, expanded)


@KINDS
@given(st.integers(0, 6), st.integers(1, 9), st.booleans(), st.integers(0, 2**16))
def test_context_and_crossing_equal_one_masked_sequence(ranker, recent, candidates, usable, seed):
    rng = np.random.default_rng(seed)
    inputs = {**request([recent], rng, ranker), "usable": np.array([usable])}
    items = rng.integers(0, 40, candidates)
    with torch.no_grad():
        split = ranker.rank(ranker.context(**inputs), items, [0, candidates])
        close(split, one_sequence(ranker, inputs, items))


@given(SLATES, st.integers(0, 2**16))
def test_scores_do_not_depend_on_slate_order_or_company_or_other_users(shape, seed):
    rng = np.random.default_rng(seed)
    inputs = request([r for r, _ in shape], rng)
    counts = np.array([b for _, b in shape])
    items, offsets = rng.integers(0, 40, counts.sum()), offsets_of(counts)
    with torch.no_grad():
        ctx = RANKER.context(**inputs)
        whole = RANKER.rank(ctx, items, offsets)
        u = int(rng.integers(len(shape)))
        mine = slice(offsets[u], offsets[u + 1])
        order = rng.permutation(counts[u])
        alone = RANKER.context(**only(inputs, np.array([u])))
        close(RANKER.query(alone), RANKER.query(ctx)[u : u + 1])
        close(RANKER.rank(alone, items[mine][order], [0, counts[u]]), whole[mine][order])
        for i in range(counts[u]):
            close(RANKER.rank(alone, items[mine][i : i + 1], [0, 1]), whole[mine][i : i + 1])


@given(st.integers(0, 2**16))
def test_gradients_of_deduplicated_and_expanded_training_steps_are_equal(seed):
    rng = np.random.default_rng(seed)
    ranker = build()
    inputs = request([3, 0, 6], rng)
    counts = np.array([4, 1, 3])
    items = rng.integers(0, 40, 8)
    label = torch.from_numpy(rng.integers(0, 2, (8, 2))).float()
    grads = []
    for expanded in (False, True):
        ranker.zero_grad()
        rows = only(inputs, np.repeat(np.arange(3), counts)) if expanded else inputs
        offsets = np.arange(9) if expanded else offsets_of(counts)
        logits = ranker.rank(ranker.context(**rows), items, offsets)
        torch.nn.functional.binary_cross_entropy_with_logits(logits, label).backward()
        grads.append({n: p.grad.clone() for n, p in ranker.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-3, atol=1e-6, msg=name)


@given(st.integers(0, 2**16))
def test_shared_context_gives_what_a_recomputed_one_gives(seed):
    rng = np.random.default_rng(seed)
    inputs = request([4, 2, 6], rng)
    items, offsets = rng.integers(0, 40, 9), np.array([0, 3, 6, 9])
    with torch.no_grad():
        shared = RANKER.context(**inputs)
        first = RANKER.rank(shared, items, offsets)
        close(RANKER.rank(RANKER.context(**inputs), items, offsets), first)
        picked = shared.select(np.array([2, 0]))
        close(RANKER.rank(picked, items[[6, 7, 8, 0, 1, 2]], [0, 3, 6]), first[[6, 7, 8, 0, 1, 2]])
        stored = RANKER.items.vector(torch.from_numpy(items))
        close(RANKER.rank(shared, items, offsets, vectors=stored), first)


@given(st.integers(0, 2**16))
def test_the_last_layer_computed_in_full_changes_nothing_that_is_served(seed):
    rng = np.random.default_rng(seed)
    inputs = request([4, 0, 6], rng)
    with torch.no_grad():
        lean, full = RANKER.context(**inputs), RANKER.context(**inputs, full=True)
    for name, value in lean.tensors().items():
        torch.testing.assert_close(value, full.tensors()[name], rtol=1e-5, atol=1e-5)
    assert full.hidden.shape == (3, lean.length, 16) and lean.hidden is None


def test_a_large_batch_worked_off_in_blocks_gives_what_one_piece_gives(monkeypatch):
    rng = np.random.default_rng(5)
    inputs = request([4, 0, 6, 2, 5], rng)
    items, offsets = rng.integers(0, 30, 20), np.arange(6) * 4
    with torch.no_grad():
        whole = RANKER.context(**inputs, full=True)
        logits = RANKER.rank(whole, items, offsets)
        monkeypatch.setattr("vista.stage2.layer.BIAS", 2 * whole.length**2)
        pieces = RANKER.context(**inputs, full=True)
        close(RANKER.rank(pieces, items, offsets), logits)
    close(pieces.hidden[pieces.mask], whole.hidden[whole.mask])


def test_summary_keys_do_not_depend_on_the_recent_events_or_the_time():
    rng = np.random.default_rng(0)
    inputs = request([4, 6], rng)
    later = {**inputs, "recent": histories([6, 3], rng), "now_ms": inputs["now_ms"] + DAY}
    with torch.no_grad():
        a, b = RANKER.context(**inputs), RANKER.context(**later)
    close(a.keys[:, :, :5], b.keys[:, :, :5])
    close(a.values[:, :, :5], b.values[:, :, :5])


def test_a_past_event_sees_nothing_that_came_after_it():
    rng = np.random.default_rng(1)
    inputs = request([6], rng)
    recent = inputs["recent"]
    changed = Events.of([6], **{**recent.columns, "item": np.append(recent.item[:5], 7777)})
    with torch.no_grad():
        results = []
        for events in (recent, changed):
            ctx = RANKER.context(**{**inputs, "recent": events}, full=True)
            results.append(RANKER.past(ctx, events))
    for before, after in zip(*results, strict=True):
        close(before[:5], after[:5])
        assert not torch.allclose(before[5], after[5])


def test_a_masked_action_reaches_no_output_and_an_unmasked_one_does():
    rng = np.random.default_rng(2)
    inputs = request([6, 3], rng)
    recent = inputs["recent"]
    flipped = Events.of(recent.lengths, **{**recent.columns, "action": recent.action ^ 3})
    for masked, same in ((np.ones(9, bool), True), (np.zeros(9, bool), False)):
        outs = []
        for events in (recent, flipped):
            with torch.no_grad():
                ctx = RANKER.context(**{**inputs, "recent": events}, masked=masked, full=True)
                outs.append([ctx.keys, ctx.query, *RANKER.past(ctx, events)])
        assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True)) is same


@pytest.mark.parametrize("how", ["missing", "zeros", "absent"])
def test_however_a_summary_is_unavailable_the_user_is_scored_the_same(how):
    rng = np.random.default_rng(3)
    inputs = request([4, 0], rng)
    gone = {**inputs}
    if how == "missing":
        gone["usable"] = np.zeros(2, bool)
    elif how == "zeros":
        gone["tokens"] = {n: torch.zeros_like(x) for n, x in inputs["tokens"].items()}
    else:
        gone["tokens"], gone["last_event_ms"] = {}, None
    items = rng.integers(0, 40, 4)
    with torch.no_grad():
        ctx = RANKER.context(**gone)
        plain = RANKER.context({}, None, inputs["recent"], inputs["now_ms"])
        logits = RANKER.rank(ctx, items, [0, 2, 4])
    assert not ctx.summarized.any() and not ctx.mask[:, :5].any()
    assert torch.isfinite(logits).all() and torch.isfinite(ctx.query).all()
    close(logits, RANKER.rank(plain, items, [0, 2, 4]))


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(
            width=16,
            tokens=TokenConfig(items=0),
            slots=SlotConfig(buckets=0),
            summarizer=SummarizerConfig(seeds=3),
        ),
        ModelConfig(
            width=16,
            tokens=TokenConfig(items=0),
            slots=SlotConfig(buckets=8, clusters=0),
            summarizer=SummarizerConfig(seeds=0),
        ),
    ],
    ids=["seeds only", "slots only"],
)
def test_either_group_of_summary_tokens_may_be_off(config):
    ranker = build(config)
    tokens = {"seeds": torch.randn(1, 3, 16)} if config.summarizer.seeds else {}
    if config.slots.enabled:
        tokens["slots"] = torch.rand(1, ranker.slots.tokens, 16)
    ctx = ranker.context(tokens, None, histories([3], np.random.default_rng(0)), [NOW], [NOW - DAY])
    assert torch.isfinite(ranker.rank(ctx, [1, 2], [0, 2])).all() and ctx.summarized.all()


def test_before_training_a_frequent_item_outranks_one_never_seen():
    torch.manual_seed(0)
    items = ItemEncoder(CONFIG)
    ranker = Ranker(CONFIG, items, EventEncoder(CONFIG, items), SlotMemory(CONFIG))
    old = Events.of([30], item=np.repeat([5, 6], [25, 5]), time=NOW - np.arange(30)[::-1] * DAY)
    slots = torch.from_numpy(ranker.slots.serve(ranker.slots.update(ranker.slots.empty(1), old)))
    ctx = ranker.context({"slots": slots}, None, Events.empty(1), [NOW], [NOW])
    logits = ranker.rank(ctx, [5, 6, 1234], [0, 3])
    assert (logits[0] > logits[1]).all() and (logits[1] > logits[2]).all()


def test_candidates_read_the_counters_of_the_clusters_nearest_to_their_own():
    torch.manual_seed(0)
    config = dataclasses.replace(EXACT_CONFIG, ranker=dataclasses.replace(CONFIG.ranker, neighbours=3))
    items = ItemEncoder(config)
    tokens = ExactTokens(config)
    tokens.set_clusters(np.arange(60), np.arange(60) % 5, items)  # of six clusters, one knows no item
    ranker = Ranker(config, items, EventEncoder(config, items), SlotMemory(config), tokens)
    old = Events.of([90], item=np.arange(90) * 7 % 60, time=NOW - np.arange(90)[::-1] * DAY)
    summary = ExactTokenGroup(tokens).prefixes(old, old.lengths, np.arange(1), True)
    ctx = ranker.context(summary, None, Events.empty(1), [NOW], [NOW])
    asked = torch.tensor([3, 14, 58])
    found = ranker.readers[0](ctx, asked, items.vector(asked), crossing.Plan.of([0, 3], "cpu"))
    near = found[:, -ranker.neighbours.log_sharpness.numel() * (2 * tokens.horizons - 1) :]

    unit = torch.nn.functional.normalize(tokens.cluster_vectors, dim=1)
    counters = tokens.unpack(torch.cat([summary[n] for n in tokens.rows], 1)).cluster[0]
    for row, item in enumerate(asked.tolist()):
        cosine = unit[:5] @ unit[item % 5]
        nearest = cosine.argsort(descending=True)[:3]
        for i, b in enumerate(ranker.neighbours.log_sharpness.exp()):
            weight = torch.exp(b * (cosine[nearest] - 1))
            h = counters.shape[1]
            expected = torch.log1p((weight[:, None] * counters[nearest]).sum(0))
            close(near[row, i * h : (i + 1) * h], expected)
    assert (tokens.cosine[5, 1:] < -100).all() and tokens.near[5, 0] == 5


def test_tokens_of_another_shape_are_refused():
    with pytest.raises(DataError, match="vista summarize"):
        RANKER.context({"seeds": torch.zeros(1, 4, 16)}, None, Events.empty(1), [NOW])


def test_candidates_that_do_not_agree_with_their_offsets_or_contexts_are_refused():
    ctx = RANKER.context({}, None, Events.empty(2), [NOW, NOW])
    vectors = torch.randn(3, 16)
    RANKER.rank(ctx, [1, 2, 3], [0, 1, 3], vectors)
    for item, offsets, given_vectors in (
        ([1, 2], [0, 1, 3], None),
        ([1, 2, 3], [0, 3], None),
        ([1, 2, 3], [0, 1, 2, 3], None),
        ([1, 2, 3], [0, 1, 3], vectors[:1]),  # would be broadcast
    ):
        with pytest.raises(DataError, match="candidates: expected"):
            RANKER.rank(ctx, item, offsets, given_vectors)


def test_a_context_of_another_model_is_refused():
    ctx = RANKER.context({}, None, Events.empty(1), [NOW], fingerprint="a")
    ctx.expect("a")
    ctx.expect(None)
    with pytest.raises(FingerprintMismatch, match="expected model b"):
        ctx.expect("b")


@given(
    st.lists(st.lists(st.integers(0, 5), max_size=12), min_size=1, max_size=4),
    st.integers(0, 7),
    st.booleans(),
)
def test_recent_events_are_newest_first_and_distinct_items_before_repeats(items, recent, distinct):
    flat = np.array([i for row in items for i in row], np.int64)
    events = Events.of([len(r) for r in items], item=flat, time=np.arange(len(flat)))
    kept = select_recent(events, recent, distinct)
    for u, row in enumerate(items):
        mine = kept.user(u)
        assert len(mine) == min(recent, len(row)) and (np.diff(mine.time) > 0).all()
        if not distinct:
            assert list(mine.item) == row[len(row) - len(mine) :]
            continue
        assert len(set(mine.item)) == min(recent, len(set(row)))
        newest = {item: i for i, item in enumerate(row)}
        expected = sorted(sorted(newest.values())[::-1][:recent])
        start = int(events.offsets[u])
        assert set(expected) <= set(mine.time - start)


@pytest.mark.parametrize("candidates", [[9, 9, 9], [70, 1, 64]], ids=["fewer than events", "more"])
def test_candidates_read_their_own_recent_events_as_written_out_one_by_one(candidates):
    rng = np.random.default_rng(1)
    last = np.iinfo(np.int64).max  # an id like another, also where the room of padding is
    recent = histories([11, 0, 7], rng)
    item = np.where(recent.item % 5 == 0, last, recent.item % 4)
    recent = Events(recent.offsets, **{**recent.columns, "item": item})
    asked = torch.from_numpy(rng.choice([0, 1, 2, 3, 77, -5, last], sum(candidates)))
    plan = crossing.Plan.of(offsets_of(np.array(candidates)))
    ctx = RANKER.context({}, None, recent, [NOW] * 3, None)
    found = RecentReader(ages=True)(ctx, asked, torch.zeros(len(asked), 1), plan)
    for row, (user, one) in enumerate(zip(plan.user.tolist(), asked.tolist(), strict=True)):
        mine = slice(recent.offsets[user], recent.offsets[user + 1])
        at = np.flatnonzero(item[mine] == one)
        if not len(at):
            assert not found[row].any()
            continue
        rank, age = float(recent.lengths[user] - at[-1]), float(NOW - recent.time[mine][at[-1]])
        told = [np.log1p(len(at)), 1 / rank, 1 / (1 + age / DAY), 1.0, 0.25 * np.log(rank)]
        told += [np.log1p(age / 3_600_000) / 8]
        for x in (age / 1000, rank - 1):
            angle = np.log1p(x) * np.pi / 4 * 2.0 ** np.arange(-4, 4)
            told += [*np.sin(angle), *np.cos(angle)]
        np.testing.assert_allclose(found[row].numpy(), told, atol=2e-4)
