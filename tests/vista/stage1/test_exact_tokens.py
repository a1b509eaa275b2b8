"""Laws 1 to 3 on the exact tokens, to the bit, and what they hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vista.config import (
    EmbeddingConfig,
    ModelConfig,
    SummarizerConfig,
    TokenConfig,
    as_written,
    from_before,
    from_dict,
    to_dict,
)
from vista.data.events import Events
from vista.errors import DataError
from vista.model import VistaModel
from vista.stage1.state import UserState
from vista.stage1.tables import Entries, Horizons, Tables
from vista.stage1.tokens import ExactTokens, action_of
from vista.stage2.readers import AGES, EntryReader

C, K = 8, 6
LIVES = (float("inf"), 20.0, 4.0)
CONFIG = ModelConfig(
    width=8,
    embedding=EmbeddingConfig(rows=64),
    tokens=TokenConfig(items=K, clusters=4, half_lives_events=LIVES, sequence=8, places=2),
    summarizer=SummarizerConfig(chunk=C),
)
MODEL = VistaModel(CONFIG).eval()
TOLD = VistaModel(
    dataclasses.replace(CONFIG, tokens=dataclasses.replace(CONFIG.tokens, clusters=9, clusters_told=3))
).eval()
WHOLE = VistaModel(dataclasses.replace(CONFIG, tokens=dataclasses.replace(CONFIG.tokens, clusters=9))).eval()
"""Records of the three heaviest of nine clusters, and of all nine."""
LENGTH = st.one_of(st.sampled_from([0, 1, C - 1, C, C + 1, 2 * C, 9 * C + 3]), st.integers(0, 60))
LENGTHS = st.lists(LENGTH, min_size=1, max_size=4)


def histories(lengths, seed: int, items: int = 20) -> Events:
    random = np.random.default_rng(seed)
    n = int(np.sum(lengths))
    ids = random.integers(0, items, n) * (2**61) - 2**62  # far beyond what a float tells apart
    steps = random.integers(0, 9_000_000, n)
    action = random.choice([0, 1, 2, 5, 1 << 30], n)
    return Events.of(lengths, item=ids, time=1_600_000_000_000 + np.cumsum(steps), action=action)


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> bool:
    return found.keys() == wanted.keys() and all(
        np.asarray(found[n]).tobytes() == np.asarray(wanted[n]).tobytes() for n in wanted
    )


def newest_of(events: Events, table: Iterable[int]) -> dict[int, list[float]]:
    """Of each item of a table its newest touch: events ago, hours before the newest event, code of the action."""
    found = {}
    for item in table:
        row = int(np.flatnonzero(events.item == item)[-1])
        hours = (int(events.time[-1]) // 1_000 - int(events.time[row]) // 1_000) / 3_600
        action = int(events.action[row])
        found[item] = [len(events) - row, hours, 2.0 ** (action.bit_length() - 1 - 11) if action else 0.0]
    return found


def table_of(events: Events) -> dict[int, np.ndarray]:
    """The definition, one event after the other, for one user: item to masses in fixed point."""
    h = Horizons(LIVES, C)
    held: dict[int, np.ndarray] = {}
    n = len(events)
    for start in range(0, n, C):
        rows = range(start, min(start + C, n))
        held = {k: (m * h.keep[:, len(rows)] + (1 << 29)) >> 30 for k, m in held.items()}
        for row in rows:
            item = int(events.item[row])
            held[item] = held.get(item, 0) + h.weight[:, rows[-1] - row]
        heaviest = sorted(held, key=lambda k: (-held[k][h.deciding], k))[:K]
        held = {k: held[k] for k in heaviest}
    return held


def read(tokens: dict[str, np.ndarray], u: int) -> dict[int, np.ndarray]:
    held = MODEL.tokens.unpack(torch.from_numpy(np.concatenate(list(tokens.values()), 1)))
    there = held.mass[u, :, 0] > 0
    return dict(zip(held.item[u][there].tolist(), held.mass[u][there].numpy(), strict=True))


@given(LENGTHS, st.integers(0, 99), st.sampled_from([3, 20]))
def test_the_record_is_what_one_event_after_the_other_gives(lengths, seed, items):
    events = histories(lengths, seed, items)
    tokens = MODEL.summarizer.summarize(events).tokens
    unit = Horizons(LIVES, C).unit
    for u in range(len(lengths)):
        found, wanted = read(tokens, u), table_of(events.user(u))
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[k], (wanted[k] / unit).astype(np.float32)) for k in wanted)
        held = MODEL.tokens.unpack(torch.from_numpy(np.concatenate(list(tokens.values()), 1)))
        newest = newest_of(events.user(u), wanted)
        touched = MODEL.tokens.cluster_numpy(events.user(u).item)
        of_clusters = newest_of(
            Events.of([len(touched)], item=touched, time=events.user(u).time), set(touched.tolist())
        )
        for cluster, last in enumerate(held.cluster_last[u].numpy()):
            assert last.tolist() == np.float32(of_clusters.get(cluster, [0, 0])[:2]).tolist()
        for item, last in zip(held.item[u].tolist(), held.last[u].numpy(), strict=True):
            assert last.tolist() == np.float32(newest.get(item, [0, 0, 0])).tolist()


@given(LENGTHS, st.integers(0, 99), st.data())
def test_resume_equals_recompute_to_the_bit_for_any_split(lengths, seed, data):
    events = histories(lengths, seed)
    whole = MODEL.summarizer.summarize(events)
    cuts = np.sort([[data.draw(st.integers(0, n)) for n in lengths] for _ in range(3)], axis=0)
    states, at = None, np.zeros(len(lengths), np.int64)
    for cut in [*cuts, events.lengths]:
        part = events.slices(events.offsets[:-1] + at, events.offsets[:-1] + cut)
        summary = MODEL.summarizer.summarize(part, states)
        states, at = [UserState.from_bytes(s.to_bytes()) for s in summary.states], cut
    assert same(summary.tokens, whole.tokens)
    assert [s.to_bytes() for s in states] == [s.to_bytes() for s in whole.states]


@given(LENGTHS, st.integers(0, 99))
def test_a_users_record_does_not_depend_on_the_others_to_the_bit(lengths, seed):
    events = histories(lengths, seed)
    whole = MODEL.summarizer.summarize(events).tokens
    for u in range(len(lengths)):
        alone = MODEL.summarizer.summarize(events.user(u)).tokens
        assert same(alone, {name: x[u : u + 1] for name, x in whole.items()})


def test_how_many_users_are_worked_on_at_once_changes_nothing(monkeypatch):
    events = histories([60, 0, 9, 33, 8], 3)
    whole = MODEL.summarizer.summarize(events)
    monkeypatch.setattr("vista.stage1.tables._PER_BLOCK", 10)
    assert same(MODEL.summarizer.summarize(events).tokens, whole.tokens)


@given(LENGTHS, st.integers(0, 99), st.data())
def test_a_prefix_is_the_record_of_the_events_before_the_cut(lengths, seed, data):
    events = histories(lengths, seed)
    user_of = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=6)))
    cuts = np.array([data.draw(st.integers(0, lengths[u])) for u in user_of])
    start = events.offsets[user_of]
    wanted = MODEL.summarizer.summarize(events.slices(start, start + cuts)).tokens
    assert same(MODEL.summarizer.prefixes(events, cuts, user_of), wanted)


@given(LENGTHS, st.integers(0, 99), st.data())
def test_records_of_the_heaviest_clusters_are_those_of_all_but_for_the_others_whatever_the_split(
    lengths, seed, data
):
    events = histories(lengths, seed)
    cut = np.array([data.draw(st.integers(0, n)) for n in lengths])
    start = events.offsets[:-1]
    first = TOLD.summarizer.summarize(events.slices(start, start + cut))
    states = [UserState.from_bytes(s.to_bytes()) for s in first.states]
    resumed = TOLD.summarizer.summarize(events.slices(start + cut, events.offsets[1:]), states)
    found, whole = TOLD.summarizer.summarize(events), WHOLE.summarizer.summarize(events)
    assert same(resumed.tokens, found.tokens)
    # a state counts every cluster: only the record leaves some out
    kept = [s.parts for s in found.states]
    assert all(same(mine, theirs.parts) for mine, theirs in zip(kept, whole.states, strict=True))
    told, every = (
        m.tokens.unpack(torch.from_numpy(np.concatenate(list(f.tokens.values()), 1)))
        for m, f in ((TOLD, found), (WHOLE, whole))
    )
    assert torch.equal(told.item, every.item) and torch.equal(told.mass, every.mass)
    for u in range(len(lengths)):
        weight = every.cluster[u, :, 1].tolist()
        heaviest = sorted(sorted(range(9), key=lambda c: (-weight[c], c))[:3])
        for mine, theirs in ((told.cluster, every.cluster), (told.cluster_last, every.cluster_last)):
            assert torch.equal(mine[u, heaviest], theirs[u, heaviest])
            assert not np.delete(mine[u].numpy(), heaviest, 0).any()


def test_cluster_numbers_that_no_job_wrote_reach_no_other_memory():
    rows = sum(TOLD.tokens.rows.values())
    held = TOLD.tokens.unpack(
        torch.full((2, rows, TOLD.config.width), -1, dtype=torch.int32).view(torch.float32)
    )
    assert held.cluster.shape == (2, 9, 3) and held.cluster[:, :8].count_nonzero() == 0


def test_among_equal_masses_the_smaller_id_stays():
    # so long a half-life does not tell four events from each other
    tables = Tables(3, (float("inf"), 2.0**24), 4)
    assert len(set(tables.horizons.weight[1].tolist())) == 1
    events = Events.of([4], item=np.array([9, -5, 2**62, 7]), time=np.arange(4))
    found = tables.fold(Entries.empty(1, 2), events, events.item)
    assert found.key.tolist() == [-5, 7, 9]


def test_what_is_dropped_from_the_items_stays_in_its_cluster():
    events = histories([200], 5)
    found = MODEL.summarizer.summarize(events).tokens
    held = MODEL.tokens.unpack(torch.from_numpy(np.concatenate(list(found.values()), 1)))
    assert float(held.cluster[0, :, 0].sum()) == 200
    assert float(held.mass[0, :, 0].sum()) < 200


def test_no_mass_outgrows_its_integer():
    for life in (1.0, 3.0, 256.0, 2_048.0, 2.0**20, 2.0**24):
        tables = Tables(2, (life,), C)
        entries = Entries.empty(1, 1)
        one = Events.of([C], item=np.zeros(C), time=np.arange(C))
        for _ in range(50):
            entries = tables.fold(entries, one, one.item)
        limit = 1 / -np.expm1(-np.log(2) / life)
        assert limit * tables.horizons.unit[0] < 2**31
        ages = np.arange(50 * C)
        assert entries.mass[0, 0] / tables.horizons.unit[0] == pytest.approx(
            np.exp2(-ages / life).sum(), rel=1e-5
        )


def test_the_sequence_has_the_heaviest_items_first_and_clusters_for_the_rest():
    model = VistaModel(CONFIG)
    ids = np.unique(histories([500], 6).item)
    model.set_clusters(ids, np.arange(len(ids)) % 4)
    events = histories([100, 0], 6)
    tokens = model.summarizer.summarize(events).tokens
    held = model.tokens.unpack(torch.from_numpy(np.concatenate(list(tokens.values()), 1)))
    found = model.tokens.sequence(held, model.items.vector)
    assert found.vector.shape == (2, 8, 8) and found.mass.shape == (2, 8, 3)
    weight = found.mass[0, :K, 1]
    assert (weight[1:] <= weight[:-1]).all() and weight[-1] > 0
    # nothing is told twice: what the sequence holds is what the clusters count, but for the smaller clusters
    assert float(found.mass[0, :, 0].sum()) <= 100
    assert not found.mass[1].any() and not found.vector[1, :K].any()


def test_a_candidate_finds_its_own_entry_whatever_its_id():
    ids = np.array([-(2**63), -1, 0, 5, 2**63 - 1])
    events = Events.of([5], item=ids, time=np.arange(5))
    tokens = {n: torch.from_numpy(x) for n, x in MODEL.summarizer.summarize(events).tokens.items()}
    now = np.array([10])
    with torch.no_grad():
        ctx = MODEL.ranker.context(tokens, None, Events.empty(1), now, now)
        reader = MODEL.ranker.readers[0]
        from vista.ops.crossing import Plan

        asked = torch.tensor([*ids.tolist(), 6])
        found = reader(ctx, asked, MODEL.items.vector(asked), Plan.of([0, 6]))
    assert (found[:5, 0] > 0).all() and found[5, 0] == 0


def test_the_newest_touch_reaches_a_candidate_through_the_codec():
    from cache_store.format.quantize import Codec
    from vista.ops.crossing import Plan

    hour = 3_600_000
    events = Events.of(
        [3], item=np.array([7, 9, 7]), time=np.array([0, 1, 4]) * hour, action=np.array([1, 4, 3])
    )
    tokens = MODEL.summarizer.summarize(events).tokens
    for g in MODEL.groups:
        codec = Codec(g.codec, g.tokens, g.width)
        record = np.zeros(1, np.dtype(codec.fields))
        codec.encode(tokens[g.name], record)
        codec.decode(record, tokens[g.name])
    held = MODEL.tokens.unpack(torch.from_numpy(np.concatenate(list(tokens.values()), 1)))
    assert action_of(held.last[0, :, 2]).tolist() == [1, 2, -1, -1, -1, -1]
    now = np.array([6 * hour])
    with torch.no_grad():
        ctx = MODEL.ranker.context(
            {n: torch.from_numpy(x) for n, x in tokens.items()},
            None,
            Events.empty(1),
            now,
            np.array([4 * hour]),
        )
        asked = torch.tensor([9, 7, 8])
        reader = MODEL.ranker.readers[0]
        args = ctx, asked, MODEL.items.vector(asked), Plan.of([0, 3])
        forms = {}
        for n in (4, 10, 20):
            config = dataclasses.replace(CONFIG, ranker=dataclasses.replace(CONFIG.ranker, cluster_ages=n))
            forms[n] = EntryReader(MODEL.tokens, reader.rows, config, reader.neighbours)(*args)
        whole = forms[20]
        assert torch.equal(reader(*args), forms[10])
    at = (2 * len(LIVES) - 1) * 2 + 2 * len(LIVES) + 1  # behind the two keys' masses and the shares
    told, cluster = whole[:, at : at + reader.last], at + reader.last
    place = torch.arange(whole.shape[1]) - cluster
    assert torch.equal(forms[4], whole[:, (place < 4) | (place >= AGES)])
    ago = np.array([1.0, 2.0])  # events and hours since item 7
    wanted = [*np.log1p(ago) / 8, *(1 / (1 + ago[:, None] / 20.0 ** np.arange(4))).flat]
    assert forms[10][1, cluster : cluster + 10].tolist() == pytest.approx(wanted, rel=0.05)
    assert torch.equal(whole[1, cluster : cluster + AGES], told[1, :AGES])  # the newest of its cluster too
    hours = torch.expm1(8 * told[:2, 1])
    assert hours.tolist() == pytest.approx([5, 2], rel=0.05)
    assert told[:, -3:].tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 0]] and not told[2].any()


def test_a_model_from_before_makes_records_without_newest_touches():
    text = to_dict(CONFIG)
    del text["tokens"]["last"]
    before = VistaModel(from_dict(ModelConfig, from_before(text)))
    assert [g.name for g in before.groups] == ["items", "masses", "clusters"]
    assert "last" not in as_written(before.config)["tokens"] and "last" in as_written(CONFIG)["tokens"]
    events = histories([40], 8)
    whole, now = before.summarizer.summarize(events).tokens, MODEL.summarizer.summarize(events).tokens
    assert same(whole, {name: now[name] for name in whole}) and now.keys() - whole.keys() == {
        "last",
        "clusters_last",
    }


def test_clusters_out_of_range_are_refused():
    tokens = ExactTokens(CONFIG)
    with pytest.raises(DataError, match="tokens.clusters"):
        tokens.set_clusters(np.array([1]), np.array([4]), MODEL.items)


def test_a_state_outlives_new_weights_but_not_new_clusters():
    # nothing of an exact state is a vector: training again does not cost the histories
    events = histories([40], 8)
    states = MODEL.summarizer.summarize(events).states
    other = VistaModel(CONFIG)
    with torch.no_grad():
        other.items.weight.add_(1)
    assert same(
        other.summarizer.summarize(Events.empty(1), states).tokens,
        MODEL.summarizer.summarize(events).tokens,
    )
    other.set_clusters(np.array([1]), np.array([1]))
    assert other.summarizer.signature() != MODEL.summarizer.signature()


def test_records_of_wide_and_narrow_models_unpack_to_what_was_packed():
    for width, items, clusters in ((4, 5, 3), (64, 1_824, 4_096), (12, 7, 0)):
        config = dataclasses.replace(
            CONFIG,
            width=width,
            tokens=TokenConfig(items=items, clusters=clusters, sequence=4, places=0),
            summarizer=SummarizerConfig(chunk=C, heads=1),
            ranker=dataclasses.replace(CONFIG.ranker, heads=1),
        )
        model = VistaModel(config)
        events = histories([50], 2, items=1_000)
        tokens = model.summarizer.summarize(events).tokens
        held = model.tokens.unpack(torch.from_numpy(np.concatenate(list(tokens.values()), 1)))
        assert held.item.shape == (1, items) and held.cluster.shape == (1, clusters, 3)
        kept = held.mass[0, :, 0] > 0
        assert set(held.item[0][kept].tolist()) <= set(events.item.tolist()) and kept.any()
