"""Law 3: any split, batch or number of workers gives the same tokens; the same job twice has the same digest.

Also: through Beam's job service and after killed workers, tests/beam_jobs/generation/test_summarize.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_worlds import CONFIG, World, all_events, assert_close, histories, stacked

from beam_jobs.generation import summarize
from beam_jobs.run.runner import local_args
from vista.data.events import Events
from vista.model import VistaModel

MODEL = VistaModel(CONFIG).eval()


@given(seed=st.integers(0, 2**16), cuts=st.sets(st.integers(1, 11), max_size=4))
def test_law_3_any_batch_gives_the_same_tokens(seed: int, cuts: set[int]):
    rng = np.random.default_rng(seed)
    events = histories(rng, rng.integers(0, 70, 12))
    with torch.no_grad():
        wanted = stacked(MODEL.summarizer.summarize(events, None).tokens)
        bounds = [0, *sorted(cuts), 12]
        parts = [
            Events.concat([events.user(u) for u in range(a, b)])
            for a, b in zip(bounds, bounds[1:], strict=False)
        ]
        found = np.concatenate([stacked(MODEL.summarizer.summarize(p, None).tokens) for p in parts])
    assert_close(found, wanted)


MODES = {
    "in_memory": local_args(),
    "four threads": local_args("multi_threading", 4),
    "two processes": local_args("multi_processing", 2),
    "every bundle twice": [*local_args(), "--direct_runner_bundle_repeat=1"],
}


@pytest.mark.parametrize("mode", MODES)
def test_law_3_any_mode_and_number_of_workers_gives_the_same_digest(home: World, mode: str):
    name = mode.replace(" ", "-")
    record = summarize.run(home.summarize(store=f"again-{name}", run=f"again-run-{name}"), MODES[mode])
    with home.store() as store:
        assert record.digests["content"] == store.manifest.digest


@pytest.mark.parametrize("window", [20, 333])
def test_law_3_any_split_into_windows_gives_the_same_tokens(home: World, window: int):
    summarize.run(
        home.summarize(store=f"window-{window}", run=f"window-run-{window}", max_events_in_memory=window)
    )
    users, _ = all_events(home)
    with home.store() as wanted, home.store(f"window-{window}") as found:
        assert_close(found.lookup(users).tokens, wanted.lookup(users).tokens)
