from __future__ import annotations

import dataclasses
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vista.config import EmbeddingConfig, ModelConfig, SlotConfig, SummarizerConfig, TokenConfig
from vista.data.events import Events
from vista.embedding.encoders import EventEncoder, ItemEncoder
from vista.stage1.state import UserState
from vista.stage1.stream import summarize_stream
from vista.stage1.summarizer import Summarizer

CONFIG = ModelConfig(
    width=8,
    embedding=EmbeddingConfig(rows=64),
    tokens=TokenConfig(items=0),
    slots=SlotConfig(rows=1, buckets=20, clusters=4),
    summarizer=SummarizerConfig(layers=2, heads=2, chunk=8, seeds=2),
)


@dataclass
class Batch:
    users: np.ndarray | list[str]
    events: Events
    continues: bool


def built(**changes) -> Summarizer:
    config = dataclasses.replace(CONFIG, summarizer=dataclasses.replace(CONFIG.summarizer, **changes))
    torch.manual_seed(0)
    return Summarizer(config, EventEncoder(config, ItemEncoder(config)))


def histories(lengths, seed: int = 0) -> Events:
    random = np.random.default_rng(seed)
    n = int(np.sum(lengths))
    time = 1_600_000_000_000 + np.arange(n) * 60_000
    return Events.of(lengths, item=random.integers(0, 90, n), action=random.integers(1, 8, n), time=time)


def cut_into(events: Events, users, rows: int):
    """Batches of exactly ``rows`` events but the last, cutting users wherever that falls; no empty histories."""
    for start in range(0, len(events), rows):
        stop = min(start + rows, len(events))
        a = int(np.searchsorted(events.offsets, start, side="right")) - 1
        b = int(np.searchsorted(events.offsets, stop, side="left"))
        offsets = np.clip(events.offsets[a : b + 1], start, stop) - start
        columns = {name: column[start:stop] for name, column in events.columns.items()}
        yield Batch(users[a:b], Events(offsets, **columns), bool(stop < events.offsets[b]))


def gathered(stream):
    parts = list(stream)
    tokens = {name: np.concatenate([p.tokens[name] for p in parts]) for name in parts[0].tokens}
    users = [user for p in parts for user in p.users]
    states = [state for p in parts for state in p.states]
    counts, last, late = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("event_count", "last_event_ms", "late")
    )
    return users, tokens, states, counts, last, late


def assert_same_tokens(found, wanted) -> None:
    for name in wanted:
        scale = max(np.abs(wanted[name]).max(initial=0), 1e-3)
        np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=1e-5 * scale)


MODEL = built()
LENGTHS = st.lists(st.integers(1, 70), min_size=1, max_size=8)


@given(LENGTHS, st.integers(1, 100), st.integers(1, 200), st.booleans())
def test_any_batches_and_windows_give_the_summaries_in_key_order(lengths, rows, window, named):
    events = histories(lengths)
    ids = [f"u{i}" for i in range(len(lengths))] if named else np.arange(len(lengths)) * 7
    users, tokens, states, counts, last, late = gathered(
        summarize_stream(MODEL, cut_into(events, ids, rows), None, window)
    )
    whole = MODEL.summarize(events)
    assert list(users) == list(ids)
    assert counts.tolist() == lengths
    assert last.tolist() == events.time[events.offsets[1:] - 1].tolist()
    assert not late.any()
    assert_same_tokens(tokens, whole.tokens)
    assert [s.last_key for s in states] == [s.last_key for s in whole.states]


def test_the_same_batches_give_the_same_bytes():
    events, ids = histories([5, 90, 3, 31]), np.arange(4)

    def run(model):
        _, tokens, states, *_ = gathered(summarize_stream(model, cut_into(events, ids, 20), None, 40))
        return [t.tobytes() for t in tokens.values()] + [s.to_bytes() for s in states]

    assert run(built()) == run(built())


@given(LENGTHS, st.integers(1, 60), st.floats(0, 1))
def test_a_refresh_from_states_equals_a_full_run(lengths, rows, share):
    events, ids = histories(lengths), np.arange(len(lengths))
    cut = events.offsets[:-1] + np.maximum((events.lengths * share).astype(np.int64), 1)
    old = MODEL.summarize(events.slices(events.offsets[:-1], cut))
    stored = {i: state.to_bytes() for i, state in enumerate(old.states)}
    changed = np.flatnonzero(cut < events.offsets[1:])
    if not len(changed):
        return
    news = events.slices(cut[changed], events.offsets[1:][changed])

    def states(users):
        return [UserState.from_bytes(stored[int(u)]) for u in users]

    _, tokens, _, counts, _, late = gathered(
        summarize_stream(MODEL, cut_into(news, ids[changed], rows), states, 50)
    )
    whole = MODEL.summarize(events)
    assert counts.tolist() == events.lengths[changed].tolist()
    assert not late.any()
    assert_same_tokens(tokens, {name: x[changed] for name, x in whole.tokens.items()})


def test_lateness_is_told_for_a_user_that_spans_batches():
    events = histories([60])
    old = MODEL.summarize(events.rows(20, 60))
    news = Events.concat([events.rows(0, 20)])
    *_, late = gathered(summarize_stream(MODEL, cut_into(news, np.arange(1), 6), lambda users: old.states, 6))
    assert late.tolist() == [True]


@pytest.mark.parametrize("chunk", [8, 0])
def test_a_cap_keeps_the_newest_events_wherever_batches_end(chunk):
    model, events = built(max_events=20, chunk=chunk), histories([50, 7, 21, 70])
    newest = events.slices(np.maximum(events.offsets[1:] - 20, events.offsets[:-1]), events.offsets[1:])
    whole = built(chunk=chunk).summarize(newest)
    for rows in (1000, 11):
        stream = summarize_stream(model, cut_into(events, np.arange(4), rows), None, rows)
        _, tokens, _, counts, _, late = gathered(stream)
        assert counts.tolist() == [20, 7, 20, 20]
        assert not late.any()
        if chunk == 0 or rows == 1000:
            assert_same_tokens(tokens, whole.tokens)


def test_a_capped_user_is_late_once_its_state_covers_twice_the_cap():
    model, events = built(max_events=20), histories([45])
    first = model.summarize(events.rows(0, 20))
    second = model.summarize(events.rows(20, 40), first.states)
    third = model.summarize(events.rows(40, 41), second.states)
    assert (second.late.tolist(), third.late.tolist()) == ([False], [True])


def test_a_million_events_resume_exactly_and_stream_in_the_memory_of_a_window():
    n = 1_000_000
    model = built(chunk=1024, layers=1)
    events = histories([n])
    whole = model.summarize(events)
    half = model.summarize(events.rows(0, 700_001))
    resumed = model.summarize(events.rows(700_001, n), [UserState.from_bytes(half.states[0].to_bytes())])
    assert_same_tokens(resumed.tokens, whole.tokens)
    assert resumed.states[0].total == n

    tracemalloc.start()
    _, tokens, *_ = gathered(summarize_stream(model, cut_into(events, np.arange(1), 20_000), None, 20_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert_same_tokens(tokens, whole.tokens)
    assert peak < 20 << 20  # numpy's; a window of 20,000 events, not 40 MB of them
