"""Law 8: expected users = written + dead-lettered, or nothing is published.

Also: whom a job dead-letters and why, tests/beam_jobs/generation/test_summarize.py and test_refresh.py; who falls
silent between refreshes, tests/beam_jobs/generation/test_expiry.py.
"""

from __future__ import annotations

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from known_stores import KnownStore
from small_worlds import NOW, START, World, broken_model, histories, save_bundle

from beam_jobs.generation import refresh, summarize
from beam_jobs.run.engines import HERE
from cache_store.errors import Incomplete
from vista.data.events import Events

LOST = 10**9
"""An item without an embedding."""


@settings(max_examples=8)
@given(
    versions=st.dictionaries(st.integers(0, 9), st.integers(1, 9) | st.none(), min_size=1),
    dead=st.integers(0, 3), off=st.integers(-3, 3),
)  # fmt: skip
@example(versions={0: None, 1: 2, 9: 2}, dead=1, off=0)
def test_law_8_what_does_not_add_up_is_not_published(tmp_path_factory, versions, dead, off):
    known = KnownStore(tmp_path_factory.mktemp("home") / "store")
    known.publish({0: 1, 5: 1})
    try:
        known.publish(versions, "delta", expected=len(versions) + dead + off, dead_letters=dead)
    except Incomplete:
        assert off and known.open().manifest.generation == "00000001"
        return
    assert not off
    now = known.open().manifest
    assert now.expected == now.records + now.tombstones + now.dead_letters == len(versions) + dead
    assert now.tombstones == sum(v is None for v in versions.values()) and now.dead_letters == dead


@settings(max_examples=2)
@given(seed=st.integers(0, 2**16), users=st.integers(1, 9))
def test_law_8_every_user_of_the_tables_is_served_or_dead_or_silent(tmp_path_factory, seed, users):
    rng, path = np.random.default_rng(seed), tmp_path_factory.mktemp("home")
    world = World(path, save_bundle(path / "model", broken_model(LOST))).create(2)
    events, last, ill = np.zeros(users, int), np.zeros(users, int), np.zeros(users, bool)
    for job, wanted in ((summarize, world.summarize), (refresh, world.refresh)):
        for at, item in ((START, None), (NOW - 10**8, None), (NOW - 10**7, LOST)):
            who = np.flatnonzero(rng.random(users) < (0.2 if item else 0.5))
            who = np.setdiff1d(who, [0]) if item else np.union1d(who, [0])  # somebody must be well
            new = histories(rng, rng.integers(1, 9, len(who)), at, 10**6)
            if item:
                new = Events.of([1] * len(who), item=np.full(len(who), item), time=np.full(len(who), at))
                ill[who] = True
            if len(who):
                world.add(who, new)
            events[who] += new.lengths
            last[who] = np.maximum(last[who], new.time[new.offsets[1:] - 1])
        counts = job.run(wanted(expire_after_ms=NOW - START - 10**8), [HERE]).counts
        assert counts["users"] == counts["written"] + counts.get("expired", 0) + counts["dead_letters"]
        with world.store() as store:
            now, found = store.manifest, store.lookup(np.arange(users))
        assert now.expected == now.records + now.tombstones + now.dead_letters
        silent, well = last < START + 10**8, ~ill  # whoever is ill had a late event
        assert (found.status[well] == np.where(silent, 2, 0)[well]).all()
        assert (found.event_count[well & ~silent] == events[well & ~silent]).all()
        assert now.dead_letters == ill.sum() and (found.event_count[ill] != events[ill]).all()
