"""Tables in torch against the same by NumPy, to the bit; and that a step asks nothing of the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.vista.asking import AskingNothing
from tests.vista.stage1.test_exact_tokens import CONFIG, LENGTHS, LIVES, TOLD, C, K, histories, same
from vista.data.events import Events
from vista.model import VistaModel
from vista.ops.upload import laid_out, taken_apart
from vista.stage1.exact_tokens import ExactTokenGroup
from vista.stage1.state import UserState
from vista.stage1.tables import Entries, Tables
from vista.stage1.tables_torch import TorchTables

CPU = torch.device("cpu")
PLAIN, TORCH = VistaModel(CONFIG).eval(), VistaModel(CONFIG).eval()
for model in (PLAIN, TORCH):
    ids = np.unique(histories([300], 0).item)[::2]
    model.set_clusters(ids, np.arange(len(ids)) % 4)
TORCH_TOLD = VistaModel(TOLD.config).eval()
for model in (TORCH, TORCH_TOLD):
    (GROUP,) = (g for g in model.summarizer.token_groups if isinstance(g, ExactTokenGroup))
    GROUP.in_torch = True


@given(LENGTHS, st.integers(0, 99), st.sampled_from([1, 3, 20, 1_000]), st.data())
def test_records_and_states_folded_in_torch_are_numpys_to_the_bit_for_any_split(lengths, seed, items, data):
    events = histories(lengths, seed, items)
    wanted = PLAIN.summarizer.summarize(events)
    states, at = None, np.zeros(len(lengths), np.int64)
    cut = np.array([data.draw(st.integers(0, n)) for n in lengths])
    for to in (cut, events.lengths):
        part = events.slices(events.offsets[:-1] + at, events.offsets[:-1] + to)
        found = TORCH.summarizer.summarize(part, states)
        states, at = [UserState.from_bytes(s.to_bytes()) for s in found.states], to
    assert same(found.tokens, wanted.tokens)
    assert [s.to_bytes() for s in states] == [s.to_bytes() for s in wanted.states]
    # and where a record tells only some clusters
    assert same(TORCH_TOLD.summarizer.summarize(events).tokens, TOLD.summarizer.summarize(events).tokens)


@given(LENGTHS, st.integers(0, 99), st.data())
def test_prefixes_folded_in_torch_are_numpys_to_the_bit(lengths, seed, data):
    events = histories(lengths, seed)
    user_of = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=6)), np.int64)
    cuts = np.array([data.draw(st.integers(0, lengths[u])) for u in user_of], np.int64)
    found = TORCH.summarizer.prefixes(events, cuts, user_of)
    assert same(found, PLAIN.summarizer.prefixes(events, cuts, user_of))


@pytest.mark.parametrize("counters", [False, True])
@given(LENGTHS, st.integers(0, 99), st.sampled_from([2.0, 2.0**24]))
def test_ties_extreme_keys_and_every_capacity_fold_alike(counters, lengths, seed, life):
    # so long a half-life tells no two events apart, so only ties decide; so short a one leaves masses of 0
    random = np.random.default_rng(seed)
    whole = [n // C * C for n in lengths]
    ends = np.array([-(2**63), -1, 0, 7, 2**63 - 2, 2**63 - 1])
    for capacity in (1, 3, 6, 40):
        plain = Tables(capacity, (float("inf"), life), C)
        table = TorchTables(plain, CPU, counters)
        keys = random.integers(0, capacity, sum(whole)) if counters else random.choice(ends, sum(whole))
        events = Events.of(whole, item=keys, time=np.arange(len(keys)))
        none = Entries.empty(len(whole), 2)
        wanted = plain.fold(none, events, keys)
        found = table.fold(table.given(none), events, torch.from_numpy(keys)).host()
        for name in ("offsets", "key", "mass"):
            assert np.array_equal(getattr(found, name), getattr(wanted, name)), name
        back = table.given(wanted).host()
        assert np.array_equal(back.key, wanted.key) and np.array_equal(back.mass, wanted.mass)


def test_how_many_users_are_merged_at_once_changes_nothing(monkeypatch):
    events = histories([60, 0, 9, 33, 8], 3)
    whole = TORCH.summarizer.summarize(events)
    monkeypatch.setattr("vista.stage1.tables_torch._CELLS", 100)
    assert same(TORCH.summarizer.summarize(events).tokens, whole.tokens)


def test_arrays_laid_end_to_end_come_apart_as_they_were():
    random = np.random.default_rng(1)
    arrays = [
        random.integers(0, 9, (3, 5)), random.random(7), np.zeros((0, 4), np.int32), random.random(3) > 0.5,
        random.integers(0, 9, 5).astype(np.int32), random.random((4, 2))[:, :1].astype(np.float32),
    ]  # fmt: skip
    flat, starts = laid_out(arrays, pinned=False)
    for found, wanted in zip(taken_apart(flat, arrays, starts), arrays, strict=True):
        assert found.numpy().dtype == wanted.dtype and np.array_equal(found.numpy(), wanted)


def test_folding_asks_nothing_of_the_device_before_the_tables_are_read():
    events = histories([9 * C, 2 * C, 3 * C], 4)
    tails = histories([3, 0, C - 1], 5)
    for counters in (False, True):
        table = TorchTables(Tables(K, LIVES, C), CPU, counters)
        keys, more = (torch.from_numpy(e.item % K if counters else e.item) for e in (events, tails))
        held = table.given(Entries.empty(3, len(LIVES)))
        with AskingNothing():
            found = table.after(table.fold(held, events, keys).select(np.arange(3)), tails, more)
        assert len(found.host().key)
