"""Law 2: a state resumed with new events equals a recomputation from all events, to 1e-5.

Also: for every kind of seed and any split, tests/vista/stage1/test_summarizer.py; by the jobs,
tests/beam_jobs/generation/test_refresh.py.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_worlds import CONFIG, assert_close, histories, stacked

from vista.config import SummarizerConfig
from vista.data.events import Events
from vista.model import VistaModel
from vista.stage1.state import UserState

PLACES = dataclasses.replace(CONFIG, summarizer=SummarizerConfig(kind="places", seeds=4, chunk=16))
MODELS = {"seeds": VistaModel(CONFIG).eval(), "places": VistaModel(PLACES).eval()}


@pytest.mark.parametrize("kind", MODELS)
@given(seed=st.integers(0, 2**16), cuts=st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_law_2_resume_equals_recompute(kind: str, seed: int, cuts: list[float]):
    rng = np.random.default_rng(seed)
    events = histories(rng, rng.integers(0, 90, 3))
    summarizer = MODELS[kind].summarizer
    with torch.no_grad():
        wanted = stacked(summarizer.summarize(events, None).tokens)
        states: list[UserState | None] | None = None
        begin = np.zeros(3, np.int64)
        for share in [*sorted(cuts), 1.0]:
            end = np.maximum(begin, (events.lengths * share).astype(np.int64))
            parts = [events.user(u).rows(int(begin[u]), int(end[u])) for u in range(3)]
            found = summarizer.summarize(Events.concat(parts), states)
            # A state goes to disk and back between two refreshes.
            states = [None if s is None else UserState.from_bytes(s.to_bytes()) for s in found.states]
            begin = end
    assert not found.late.any()
    assert_close(stacked(found.tokens), wanted)
