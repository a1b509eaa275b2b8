"""Serving: the cascade's answer is what its parts say one by one, for every kind of user."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vista.config import EmbeddingConfig, ModelConfig, RankerConfig, SlotConfig, SummarizerConfig, TokenConfig
from vista.data.events import Events
from vista.embedding.encoders import EventEncoder, ItemEncoder
from vista.errors import ConfigError, DataError, FingerprintMismatch
from vista.serving.index import ItemIndex
from vista.serving.recommender import Recommender
from vista.stage1.slots import SlotMemory
from vista.stage2.ranker import Ranker

NOW = 20_000 * 86_400_000
ITEMS = np.arange(200, dtype=np.int64) * 7
CONFIG = ModelConfig(
    width=16,
    actions=("view", "save"),
    embedding=EmbeddingConfig(rows=97),
    tokens=TokenConfig(items=0),
    slots=SlotConfig(rows=2, buckets=24, clusters=8),
    summarizer=SummarizerConfig(seeds=5),
    ranker=RankerConfig(recent=6, queries=2),
)


class Stage2(torch.nn.Module):
    """The parts of VistaModel that serving touches, real ones."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.config = CONFIG
        self.items = ItemEncoder(CONFIG)
        self.slots = SlotMemory(CONFIG)
        self.events = EventEncoder(CONFIG, self.items)
        self.ranker = Ranker(CONFIG, self.items, self.events, self.slots)
        slot_tokens = self.slots.tokens
        self.summarizer = SimpleNamespace(
            groups=lambda: [("seeds", 5, 16, "float16"), ("slots", slot_tokens, 16, "log8")]
        )


MODEL = Stage2().eval()
INDEX = ItemIndex.build(MODEL, ITEMS, fingerprint="m1")


def summaries(users, known=lambda user: True, whole=False):
    """A lookup: tokens of a user depend on its id alone; unknown users are MISSING."""
    seeds, slots = [], []
    for user in users:
        rng = np.random.default_rng(int(user))
        seeds.append(rng.normal(size=(5, 16)))
        old = Events.of([40], item=rng.choice(ITEMS, 40), time=NOW - np.arange(40)[::-1] * 3_600_000)
        slots.append(MODEL.slots.serve(MODEL.slots.update(MODEL.slots.empty(1), old))[0])
    there = np.array([known(user) for user in users], bool)
    tokens = {
        "seeds": (np.stack(seeds) * there[:, None, None]).astype(np.float32),
        "slots": (np.stack(slots) * there[:, None, None]).astype(np.float32),
    }
    return SimpleNamespace(
        tokens=np.concatenate(list(tokens.values()), 1) if whole else tokens,
        status=np.where(there, 0, 2).astype(np.uint8),
        last_event_ms=np.full(len(users), NOW),
        generation="00000003",
    )


def recent_of(users, length=9):
    rngs = [np.random.default_rng(1000 + int(u)) for u in users]
    return Events.of(
        [length] * len(users),
        item=np.concatenate([r.choice(ITEMS, length) for r in rngs]),
        time=np.tile(NOW - np.arange(length)[::-1] * 60_000, len(users)),
    )


def test_ranked_items_are_those_of_retrieval_ordered_by_the_rankers_probabilities():
    users = np.array([5, 9, 2])
    service = Recommender(
        summaries, MODEL, INDEX, fingerprint="m1", action_weights={"save": 2.0, "view": 0.5}
    )
    result = service.recommend(users, recent_of(users), NOW, k=12, candidates=40)
    ctx, _ = service.context(users, recent_of(users), NOW)
    found = INDEX.search(MODEL.ranker.query(ctx), 40)
    for u in range(3):
        with torch.no_grad():
            p = torch.sigmoid(MODEL.ranker.rank(ctx[u], found.ids[u], [0, 40])).numpy()
        score = p @ np.array([0.5, 2.0], np.float32)
        best = np.argsort(-score, kind="stable")[:12]
        items, scores, probabilities = result.of(u)
        np.testing.assert_allclose(scores, score[best], rtol=1e-4)
        np.testing.assert_allclose(probabilities, p[best], rtol=1e-4)
        assert set(items) == set(found.ids[u][best])
    assert result.summarized.all() and result.generation == "00000003" and result.actions == ("view", "save")


@given(st.lists(st.integers(0, 50), min_size=1, max_size=5), st.integers(0, 4))
def test_a_users_recommendations_do_not_depend_on_who_asks_beside(users, at):
    users, u = np.array(users), at % len(users)
    service = Recommender(lambda who: summaries(who, lambda user: user % 3 > 0), MODEL, INDEX)
    whole = service.recommend(users, recent_of(users), NOW, k=8, candidates=30)
    alone = service.recommend(users[u : u + 1], recent_of(users[u : u + 1]), NOW, k=8, candidates=30)
    np.testing.assert_allclose(whole.of(u)[1], alone.of(0)[1], rtol=1e-4)
    np.testing.assert_array_equal(whole.of(u)[0], alone.of(0)[0])
    assert whole.summarized[u] == (users[u] % 3 > 0) == (whole.status[u] == 0)


def test_one_tensor_of_tokens_means_the_same_as_named_groups():
    users = np.array([1, 2])
    answers = []
    for whole in (False, True):
        service = Recommender(lambda who, w=whole: summaries(who, whole=w), MODEL, INDEX)
        answers.append(service.recommend(users, recent_of(users), NOW, k=5, candidates=20))
    np.testing.assert_array_equal(answers[0].item, answers[1].item)
    np.testing.assert_array_equal(answers[0].score, answers[1].score)


def test_users_without_summary_and_without_events_are_served_and_marked():
    service = Recommender(None, MODEL, INDEX)
    result = service.recommend(["new", "newer"], Events.empty(2), NOW, k=4, candidates=10)
    assert np.diff(result.offsets).tolist() == [4, 4] and np.isfinite(result.score).all()
    assert not result.summarized.any() and (result.status == 2).all()


def test_excluded_items_are_absent_and_replaced_by_the_next_best():
    users = np.array([3, 4])
    service = Recommender(summaries, MODEL, INDEX)
    recent = recent_of(users, 30)
    plain = service.retrieve(users, recent, NOW, candidates=25)
    fresh = service.retrieve(users, recent, NOW, candidates=25, exclude_seen=True)
    assert np.diff(fresh.offsets).tolist() == [25, 25]
    for u in range(2):
        rows, more = (slice(f.offsets[u], f.offsets[u + 1]) for f in (plain, fresh))
        seen = set(recent.user(u).item)
        assert seen & set(plain.item[rows]) and not seen & set(fresh.item[more])
        assert set(plain.item[rows]) - seen <= set(fresh.item[more])


def test_recent_events_are_chosen_as_in_training():
    items = np.concatenate([[70], np.tile(ITEMS[:3], 5)])  # 70 is the sixteenth newest
    recent = Events.of([16], item=items, time=NOW - np.arange(16)[::-1])
    for pool, expected in ((16, [70, 7, 14, 0, 7, 14]), (15, [0, 7, 14] * 2), (0, [0, 7, 14] * 2)):
        ctx, _ = Recommender(None, MODEL, INDEX, recent_pool=pool).context(["u"], recent, NOW)
        assert sorted(ctx.recent_item[0].tolist()) == sorted(expected)


def test_more_candidates_than_items_serve_every_item_once():
    users = np.array([3])
    result = Recommender(summaries, MODEL, INDEX).recommend(
        users, recent_of(users), NOW, k=10**6, candidates=5_000
    )
    assert sorted(result.item) == ITEMS.tolist() and (np.diff(result.score) <= 0).all()


def test_a_context_handed_over_ranks_as_one_computed_here():
    users = np.array([5, 9])
    service = Recommender(summaries, MODEL, INDEX, fingerprint="m1")
    found = service.retrieve(users, recent_of(users), NOW, candidates=30)
    np.testing.assert_array_equal(
        service.rank(users, found, 7).item,
        service.recommend(users, recent_of(users), NOW, k=7, candidates=30).item,
    )
    with pytest.raises(FingerprintMismatch, match="m1"):
        Recommender(summaries, MODEL, ItemIndex.build(MODEL, ITEMS), fingerprint="m2").rank(users, found, 7)


def test_wrong_inputs_are_refused():
    with pytest.raises(FingerprintMismatch, match="m2"):
        Recommender(summaries, MODEL, INDEX, fingerprint="m2")
    with pytest.raises(ConfigError, match="like"):
        Recommender(summaries, MODEL, INDEX, action_weights={"like": 1.0})
    with pytest.raises(ConfigError, match="1024"):
        Recommender(summaries, MODEL, INDEX, recent=2_000)
    with pytest.raises(DataError, match="one history per user"):
        Recommender(summaries, MODEL, INDEX).recommend(np.array([1, 2]), Events.empty(1), NOW)
    short = SimpleNamespace(
        **{**vars(summaries([1], whole=True)), "tokens": np.zeros((1, 4, 16), np.float32)}
    )
    with pytest.raises(DataError, match="vista summarize"):
        Recommender(lambda users: short, MODEL, INDEX).recommend([1], Events.empty(1), NOW)


def test_negative_sizes_and_answers_of_other_users_are_refused():
    users, recent = np.array([1, 2]), Events.empty(2)
    service = Recommender(summaries, MODEL, INDEX)
    for wrong in ({"k": -1}, {"candidates": -1}, {"now_ms": np.array([NOW] * 3)}, {"now_ms": np.nan},
                  {"now_ms": np.datetime64("2026-01-01")}):  # fmt: skip
        with pytest.raises(DataError, match="expected"):
            service.recommend(**{"users": users, "recent": recent, "now_ms": NOW, **wrong})
    with pytest.raises(DataError, match="users"):
        service.rank(users[:1], service.retrieve(users, recent, NOW), 3)
    for name in ("status", "last_event_ms"):
        short = SimpleNamespace(**{**vars(summaries(users)), name: np.zeros(1, np.int64)})
        with pytest.raises(DataError, match="2 users"):
            Recommender(lambda _, answer=short: answer, MODEL, INDEX).recommend(users, recent, NOW)
    with pytest.raises(ConfigError, match="finite"):
        Recommender(summaries, MODEL, INDEX, action_weights={"view": float("nan")})


def test_a_summary_that_is_not_finite_serves_as_a_missing_one_and_spares_the_others():
    users = np.array([3, 4])

    def broken(who):
        found = summaries(who)
        found.tokens["seeds"][0, 0, 0] = np.nan
        return found

    service = Recommender(broken, MODEL, INDEX)
    result = service.recommend(users, recent_of(users), NOW, k=5)
    assert result.summarized.tolist() == [False, True] and np.diff(result.offsets).tolist() == [5, 5]
    without = Recommender(None, MODEL, INDEX).recommend(users[:1], recent_of(users[:1]), NOW, k=5)
    np.testing.assert_array_equal(result.of(0)[0], without.of(0)[0])


def test_excluding_a_long_history_asks_the_index_for_no_more_than_it_has():
    seen = Events.of([150], item=np.repeat(ITEMS[:75], 2), time=NOW - np.arange(150)[::-1])
    service = Recommender(None, MODEL, INDEX)
    found = service.retrieve(np.array([1]), seen, NOW, candidates=190, exclude_seen=True)
    assert sorted(found.item) == ITEMS[75:].tolist()
