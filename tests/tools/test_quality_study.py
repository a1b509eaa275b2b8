"""The study's own parts: what it asks, what its readers compute, that contexts share questions, that none leaks."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from cache_store.torch.sequence import ItemVectors, TokenSequence
from tools.bench.harness import Result
from tools.studies import quality
from tools.studies.contexts import Fed, Feed, Variant, _Laid, _NewestEvents, decoded, encoded, product
from tools.studies.learned import HeaviestTokens, distilled
from tools.studies.protocol import (
    Data,
    bytes_per_event,
    examples,
    from_columns,
    held_out,
    last_touch,
    training_batches,
)
from tools.studies.reader import TokenReader
from tools.studies.rivals import CURVE, SIZES, WHOLE, variants
from tools.studies.study import answer, build, feeds, train
from tools.studies.tokens import Space, touches
from vista.config import ModelConfig, TokenConfig
from vista.errors import DataError
from vista.stage1.clusters import company
from vista.training import metrics

SMALL = {"items": 24, "clusters": 8, "sequence": 16, "places": 4}
VARIANTS = [
    Variant("recent", "none", 0),
    Variant("full", "raw", 0, {"events": 64}),
    Variant("record", "record", 0, SMALL),
    Variant("alone", "record", 0, {**SMALL, "alone": 1}),
    Variant("learned", "record", 0, {**SMALL, "learned": 4, "distil": 1.0}),
    Variant("heaviest", "record", 0, {**SMALL, "heaviest": 4}),
    Variant("twin", "twin", 0, {"count": 8}),
    Variant("sketch", "sketch", 0, {"places": 8}),
    Variant("sdim", "sdim", 0, {"groups": 4, "bits": 2}),
    Variant("oracle", "touches", 0),
]


@pytest.fixture(scope="module")
def data() -> Data:
    """Twelve users who go back and forth between items of their own."""
    rng = np.random.default_rng(0)
    n, users = 12 * 300, 12
    user = np.repeat(np.arange(users), n // users)
    own = rng.integers(0, 300, (users, 40))
    phase = (np.arange(n) % (n // users)) // 30 % 5
    columns = {
        "item": own[user, phase * 8 + rng.integers(0, 8, n)],
        "action": 1 << rng.integers(0, 2, n),
        "surface": np.zeros(n, np.int64),
        "time": (np.arange(n) % (n // users)) * 60_000,
        "request": np.zeros(n, np.int64),
    }
    return from_columns("small", user, columns, ("a", "b"), 0.2)


@pytest.fixture(scope="module")
def space(data) -> Space:
    return Space(data.catalogue.item, data.content)


@pytest.fixture(scope="module")
def asked(data):
    return held_out(data, examples(256, 4, 8, min_history=64), 32, 60)


def test_distances_count_events_since_the_last_touch(data, asked):
    k = 0
    for batch in asked.batches:
        for j in range(len(batch)):
            own = data.events.user(int(batch.owner[batch.user_of[j]]))
            a, b = batch.offsets[j], batch.offsets[j + 1]
            positive = batch.item[a:b][batch.action[a:b] != 0]
            assert len(positive) == 1 and 50 < b - a <= 100
            seen = int((own.time < batch.now_ms[j]).sum())
            touches = [i for i in range(seen) if own.item[i] == positive[0]]
            assert asked.distance[k] == (seen - touches[-1] if touches else -1)
            k += 1
    slices = asked.slices()
    assert slices["returns"].any() and not (slices["new"] & slices["returns"]).any()


def test_questions_are_of_as_many_users_as_there_are(data):
    few = held_out(data, examples(256, 4, 8, min_history=64), 32, 36)
    assert len(np.unique(few.owner)) == 12


def untrained(data: Data, batches, space: Space) -> float:
    """AUC of the greatest cosine between a candidate and the 32 newest events, nothing learned."""
    found = []
    for batch in batches:
        for k in range(len(batch)):
            a, b = batch.offsets[k], batch.offsets[k + 1]
            recent = batch.recent.user(k).item
            score = (space.content[space.rows(batch.item[a:b])] @ space.content[space.rows(recent)].T).max(1)
            label = batch.action[a:b] != 0
            found.append(metrics.slate_metrics(score, label, np.array([0, b - a]), ks=())["auc"][0])
    return float(np.nanmean(found))


def test_an_untrained_reader_scores_no_better_on_training_slates_than_on_held_out_ones():
    """Items that come once: whoever fitted vectors to a request's own neighbours knows its answer, and nobody else."""
    rng = np.random.default_rng(0)
    users, each, kinds = 40, 400, 20
    user = np.repeat(np.arange(users), each)
    kind = (user * 7 + np.tile(np.arange(each) // 20, users)) % kinds
    item = kind * 1_000 + rng.integers(0, 1_000, users * each)
    zeros = np.zeros(users * each, np.int64)
    columns = {"item": item, "action": zeros + 1, "surface": zeros, "request": zeros,
               "time": np.tile(np.arange(each) * 60_000, users)}  # fmt: skip
    made = from_columns("once", user, columns, ("a",), 0.2)
    config = examples(256, 19, 8, min_history=64)
    batches = training_batches(made, config, 32, 8, 32, 0)
    assert min(b.now_ms.min() for b in batches) >= made.asks_after_ms == made.catalogue.fit_ms
    questions = held_out(made, config, 32, 200)
    honest = Space(made.catalogue.item, made.content)
    training, judged = (untrained(made, part, honest) for part in (batches, questions.batches))
    assert training < judged + 0.05

    # what it was before: vectors of the whole training period, asked about the same period
    names, vector = company(made.catalogue.sample)
    content = np.zeros_like(made.content)
    content[np.searchsorted(made.catalogue.item, names)] = vector.numpy()
    leaking = Space(made.catalogue.item, content)
    assert untrained(made, batches, leaking) > untrained(made, questions.batches, leaking) + 0.1


def test_the_ceiling_is_softmax_over_the_events_before_the_cut_and_an_empty_place(data, asked, space):
    limit = 50
    contest = build(data, space, VARIANTS[1], [Fed()]).eval()
    batch = asked.batches[0]
    window, read, n = _NewestEvents(contest, batch, limit), contest.raw, 0
    vectors = contest.model.items.vector(torch.from_numpy(batch.item))
    got = window(n, vectors)
    events = window.events
    keys, bias = read.vectors(n, events.vector), read.by_age(n, events.features)
    query = read.vectors(n, vectors) * read.log_scale[n].exp()[:, None]
    matched = []
    for row in range(0, len(batch.item), 37):
        slate = int(np.searchsorted(batch.offsets, row, side="right")) - 1
        w, cut = int(window.unit[slate]), int(window.cut[row])
        start = int(window.offsets[w])
        rows = slice(start + max(0, cut - limit), start + cut)
        score = torch.einsum("he,nhe->hn", query[row], keys[rows]) + bias[rows].T
        share = torch.cat([score, read.empty[n][:, None]], 1).softmax(-1)[:, :-1].sum(1)
        torch.testing.assert_close(got[row, :, -1], share, rtol=1e-4, atol=1e-5)
        own = batch.events.user(int(batch.user_of[slate])).item[: int(batch.cut[slate])][-limit:]
        matched.append((int((own == batch.item[row]).sum()), float(share.mean().detach())))
    touched = [m for hits, m in matched if hits]
    assert touched and min(touched) > max(m for hits, m in matched if not hits)


def test_tokens_with_masses_read_as_the_raw_events_they_stand_for():
    """One reader, two contexts: n events of an item, and one token of mass n."""
    config = ModelConfig(width=16, actions=("a",))
    torch.manual_seed(0)
    reader = TokenReader(config, horizons=1)
    item, times = torch.randn(5, 16), torch.tensor([1, 3, 2, 7, 1])
    asked, values = torch.randn(1, 4, 16), torch.randn(5, 2, 8)
    one = reader.read(0, asked, reader.vectors(0, item)[None], reader.by_mass(0, times[:, None].float())[None],
                      values[None], torch.ones(1, 1, 5, dtype=torch.bool))  # fmt: skip
    events = item.repeat_interleave(times, 0)
    flat = reader.by_mass(0, torch.ones(len(events), 1))
    values = values.repeat_interleave(times, 0)
    seen = torch.ones(1, 1, len(events), dtype=torch.bool)
    each = reader.read(0, asked, reader.vectors(0, events)[None], flat[None], values[None], seen)
    torch.testing.assert_close(one, each)


def test_the_study_feeds_the_record_that_the_store_keeps(data, asked, space):
    """The record of a slate is the product's summary of the events before its cut, in the store's own codecs."""
    feed = Feed(VARIANTS[2], space)
    batch = asked.batches[0]
    fed = feed(batch, True)
    k = len(batch) // 2
    own = batch.events.user(int(batch.user_of[k])).rows(0, int(batch.cut[k]))
    whole = feed.maker.summarizer.prefixes(own, np.array([len(own)]), np.zeros(1, np.int64), exact=True)
    assert fed.record[fed.unit[k]] == encoded(feed.maker, whole)[0]
    assert fed.record.dtype.itemsize >= 24 * (8 + 3) + 8 * 3


def test_few_tokens_are_made_of_the_record_alone_and_start_near_what_was_kept(data, asked, space):
    batch = asked.batches[0]
    learned = next(v for v in VARIANTS if v.name == "learned")
    fed = Feed(learned, space)(batch, True)
    contest = build(data, space, learned, [fed]).eval()
    vector, mass = contest.made(fed.record)
    assert vector.shape[:2] == (len(batch), 4) and mass.isfinite().all()
    torch.testing.assert_close(vector.norm(dim=-1), torch.ones(len(batch), 4))
    # whoever else is in the batch: what a job emits for a user must not depend on it
    one = [x[0] for x in contest.made(fed.record[3:4])]
    torch.testing.assert_close(one, [vector[3], mass[3]], rtol=1e-4, atol=1e-5)
    contest.few = HeaviestTokens(contest.model, 4)
    heaviest, masses = contest.made(fed.record)
    assert (heaviest * vector).sum(-1).mean() > 0.8 and (masses[..., 0].sum(1) > 0).all()


def test_distillation_is_nothing_for_the_raw_window_itself_and_moves_tokens_not_their_reader():
    torch.manual_seed(0)
    reader = TokenReader(ModelConfig(width=16, actions=("a",)), horizons=2)
    made, past = (
        (torch.nn.functional.normalize(torch.randn(2, n, 16), dim=-1).requires_grad_(), torch.rand(2, n, 2))
        for n in (3, 9)
    )
    asked = torch.nn.functional.normalize(torch.randn(2, 5, 16), dim=-1)
    assert distilled(reader, 0, asked, past, past).abs().max() < 1e-6
    lost = distilled(reader, 0, asked, made, past)
    assert lost.shape == (2, 2, 5) and (lost > 0).all()
    lost.mean().backward()
    assert made[0].grad.abs().sum() > 0 and past[0].grad is None
    assert all(p.grad is None and p.requires_grad for p in reader.parameters())


@pytest.mark.parametrize("told", [{}, {"clusters": 40, "clusters_told": 5}], ids=["all", "heaviest"])
def test_what_is_read_alone_is_what_a_store_gives_and_scores_as_the_models_own_sequence(
    data, asked, space, told
):
    variant, batch = Variant("alone", "record", 0, {**SMALL, **told, "alone": 1}), asked.batches[0]
    fed = Feed(variant, space)(batch, exact=True)
    contest = build(data, space, variant, [fed]).eval()
    tokens = contest.model.tokens
    groups = decoded(contest.model, fed.record[fed.unit])
    seen = contest.vectors.sequence(groups)
    held = tokens.unpack(torch.cat([groups[name] for name in tokens.rows], 1))
    own = tokens.sequence(held, contest.model.items)
    item, laid = torch.from_numpy(batch.item), _Laid(np.arange(len(batch)), batch.offsets, len(batch))
    wanted = TokenSequence(
        own.vector, own.mass[..., tokens.deciding].log(), own.mass, own.item, own.place, own.last
    )
    asks = laid, contest.model.items.vector(item), item, torch.rand(len(batch))
    none, nowhere = np.zeros(0, np.int64), np.zeros((0, 1))
    table = ItemVectors(none, nowhere, none, nowhere)
    table.cluster_of = tokens.cluster
    with torch.no_grad():
        assert torch.equal(contest.alone(seen, contest.vectors, *asks), contest.alone(wanted, table, *asks))
    assert seen.masses[..., 0].count_nonzero() and seen.last[..., 1].any()


def test_the_oracle_knows_counts_and_ages_exactly():
    items, times = np.array([5, 7, 5, 9]), np.array([0, 1, 2, 3]) * 3_600_000
    got = touches(items, times, 4 * 3_600_000, np.array([5, 9, 1]), 1)
    assert got[0, 1] == pytest.approx(math.log1p(2)) and got[1, 1] == pytest.approx(math.log1p(1))
    np.testing.assert_array_equal(got[:, 0], [1, 1, 0])
    assert got[0, -1] == pytest.approx(1 / 3) and not got[2].any()


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_every_context_learns_from_and_answers_the_same_questions(data, asked, space, variant):
    batches = training_batches(data, examples(256, 4, 8, min_history=64), 32, 2, 16, 0)
    fed = feeds(data, space, variant, batches, exact=False)
    contest = build(data, space, variant, fed)
    losses: list[float] = []
    train(contest, batches, fed, watch=lambda _, loss: losses.append(loss))
    assert all(math.isfinite(x) for x in losses)
    few = dataclasses.replace(asked, batches=asked.batches[:1])
    got = answer(contest, few, feeds(data, space, variant, few.batches, exact=True))
    assert len(got.rank) == len(asked.batches[0]) and (got.rank >= 1).all() and (got.rank <= 100).all()


def test_a_study_can_be_made_in_pieces_and_its_shares_are_those_of_the_means(tmp_path, data):
    runs = quality.Runs(data, tmp_path, 2, 16, 64, 60, 64)
    chosen = {
        "recent": VARIANTS[0],
        "full": VARIANTS[1],
        "ours": dataclasses.replace(VARIANTS[2], name="ours"),
    }
    rows = {name: [runs.run(v, seed) for seed in (0, 1)] for name, v in chosen.items()}
    assert runs.run(chosen["recent"], 0) == rows["recent"][0]
    assert len(list(tmp_path.glob("*.json"))) == 6
    gain = {name: np.mean([1 / np.array(r["rank"]) for r in found], 0).mean() for name, found in rows.items()}
    unit = gain["full"] - gain["recent"]
    share = runs.share("ours", "all")
    if unit < quality.LEAST:
        assert share is None
    else:
        assert share[0].value == pytest.approx((gain["ours"] - gain["recent"]) / unit)
        assert share[0].low <= share[0].value <= share[0].high


def test_a_longer_run_tells_the_way_the_end_and_whether_tokens_are_the_user_s_own(tmp_path, data):
    runs, result = quality.Runs(data, tmp_path, 2, 16, 64, 30, 64), Result(params={})
    runs.longer(result, dataclasses.replace(VARIANTS[2], options={**SMALL, "heaviest": 4}), 0, 3, "")
    found = {key for key in result.figures if "_all_" in key}
    assert found == {f"mrr_all_record_{end}" for end in ("at_1", "at_2", "at_4", "at_6", "swapped_at_6")}
    assert 0 < result.figures["personal_share_record_at_6"].value <= 1
    assert 1 <= result.figures["effective_rank_record_at_6"].value <= 4


def test_every_rival_is_named_and_sizes_are_what_they_say():
    found = variants(8_192, 3.0)
    assert set(WHOLE) | set(CURVE) <= set(found)
    for kib in SIZES:
        assert kib * 1_000 < found[f"ours_{kib}KiB"].bytes <= kib * 1_024
        assert found[f"raw_{kib}KiB"].bytes <= kib * 1_024
        alone = found[f"tokens_{kib}KiB"]
        assert (alone.reads, alone.bytes) == (found[f"ours_{kib}KiB"].reads, found[f"ours_{kib}KiB"].bytes)
        assert product(alone, ("a",), 0, 0).tokens.sequence_length <= 768
    assert product(found["ours"], ("a",), 0, 0).tokens.sequence_length <= 768
    assert product(found["ours_small"], ("a",), 0, 0).config.tokens == TokenConfig.named("small")


@pytest.mark.parametrize("asked", [{"names": "recent,ful"}, {"sets": "events"}, {"sets": "made"}])
def test_a_name_or_set_that_is_none_is_refused_with_those_that_are(asked):
    with pytest.raises(DataError, match="expected some of .*found .*vista study quality"):
        quality.run(quick=True, **asked)


def test_a_raw_event_costs_what_compression_leaves(data):
    assert 0.5 < bytes_per_event(data.events) < 17
    assert last_touch(data.events, 1).max() < len(data.events)


def test_a_share_says_all_only_of_all():
    assert [quality.percent(np.arange(n) < k) for n, k in ((9379, 9379), (9379, 9378), (9379, 1), (9, 0), (4, 1))] == [
        "100%", "99.99%", "0.01%", "0%", "25%",
    ]  # fmt: skip
