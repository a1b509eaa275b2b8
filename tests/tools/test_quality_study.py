"""The study's own parts: what it asks, what its ceilings compute, that variants share their questions."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from tools.studies import quality
from tools.studies.contexts import BASE, ExactMasses, History, variants
from tools.studies.information import information
from tools.studies.protocol import Data, examples, from_columns, held_out, training_batches
from tools.studies.study import answer, build, train
from vista.config import SlotConfig, SummarizerConfig, TokenConfig

SMALL = dataclasses.replace(
    BASE,
    embedding=dataclasses.replace(BASE.embedding, rows=1_024),
    tokens=TokenConfig(items=0),
    slots=SlotConfig(rows=1, buckets=65_536, clusters=8),
    summarizer=SummarizerConfig(layers=1, heads=2, seeds=4, chunk=16),
)


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
def asked(data):
    return held_out(data, examples(256, 4, 8, min_history=64), 64, 60)


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


def test_exact_masses_equal_the_slot_memory_where_nothing_collides(data, asked):
    variant = variants(256)["slots"]
    model = build(data, variant, SMALL).eval()
    items = torch.from_numpy(data.catalogue.item)
    assert len(torch.unique(model.slots.keys(items)[:, 0])) == len(items)
    batch = asked.batches[0]
    tokens = model.summarizer.prefixes(batch.events, batch.cut, batch.user_of, exact=True)
    user = torch.from_numpy(np.repeat(np.arange(len(batch)), np.diff(batch.offsets)))
    elapsed = torch.from_numpy(batch.now_ms - batch.last_event_ms)
    item = torch.from_numpy(batch.item)
    hashed = model.slots.read(tokens["slots"], elapsed, user, item)
    exact = ExactMasses(model.slots, batch).read(tokens["slots"], elapsed, user, item)
    assert hashed.max() > 1
    torch.testing.assert_close(exact, hashed, rtol=1e-4, atol=1e-4)


def test_the_ceiling_is_softmax_over_the_events_before_the_cut_and_an_empty_place(data, asked):
    limit = 50
    model = build(data, variants(limit)["full"], SMALL).eval()
    batch = asked.batches[0]
    history = History(model, model.history, batch, limit)
    got = history._long(0)
    (hk, hv), read = history.layers[0], model.history
    ones = torch.ones(len(history.asked), read.heads)
    query = read.keys(0, history.asked, ones)
    scale = torch.cat([read.log_scale[0].exp()[:, None].expand(-1, read.size - 1), ones[:1].T], -1)
    matched = []
    for row in range(0, len(batch.item), 37):
        slate = int(np.searchsorted(batch.offsets, row, side="right")) - 1
        w = int(batch.user_of[slate])
        place = int(np.flatnonzero(np.flatnonzero(batch.user_of == w) == slate)[0])
        cut = int(history.cuts[w][place])
        shift = max(0, int(batch.cut[batch.user_of == w].min()) - limit)
        assert cut == batch.cut[slate] - shift
        rows = slice(int(history.offsets[w]) + max(0, cut - limit), int(history.offsets[w]) + cut)
        score = torch.einsum("he,nhe->hn", query[row] * scale, hk[rows])
        values = torch.cat([hv[rows], torch.zeros_like(hv[:1])])
        weight = torch.cat([score, read.empty[0][:, None]], 1).softmax(-1)
        torch.testing.assert_close(got[row], torch.einsum("hn,nhe->he", weight, values), rtol=1e-4, atol=1e-5)
        own = batch.events.user(w).item[max(0, int(batch.cut[slate]) - limit) : int(batch.cut[slate])]
        matched.append((int((own == batch.item[row]).sum()), float(got[row, :, -1].mean().detach())))
    touched = [m for n, m in matched if n]
    assert touched and min(touched) > max(m for n, m in matched if not n)


@pytest.mark.parametrize("name", sorted(variants(64)))
def test_every_variant_learns_from_and_answers_the_same_questions(data, asked, name):
    variant = variants(64)[name]
    model = build(data, variant, SMALL)
    batches = training_batches(data, examples(256, 4, 8, min_history=64), 64, 2, 16, 0)
    losses: list[float] = []
    train(model, variant, batches, watch=lambda _, loss: losses.append(loss))
    assert all(math.isfinite(x) for x in losses)
    got = answer(model, variant, dataclasses.replace(asked, batches=asked.batches[:1]))[""]
    assert len(got.rank) == len(asked.batches[0]) and (got.rank >= 1).all() and (got.rank <= 100).all()


def test_a_study_can_be_made_in_pieces(tmp_path, data):
    whole = quality.Runs(data, tmp_path, 2, 16, 64, 30, 64)
    variant = variants(64)["recent"]
    first = whole.run(variant, 0, SMALL)
    assert whole.run(variant, 0, SMALL) == first
    assert len(list(tmp_path.glob("*.json"))) == 1


def test_counters_without_collisions_tell_every_item_and_nothing_tells_none(data, asked):
    model = build(data, variants(256)["slots"], SMALL)
    told = information(model, variants(256)["slots"], data, asked, items=20)
    assert told["counter_items"] > 0.99 and told["counter_order"] > 0.3
    nothing = information(
        build(data, variants(256)["recent"], SMALL), variants(256)["recent"], data, asked, items=20
    )
    assert abs(nothing["items"]) < 0.3 and abs(nothing["order"]) < 0.3
