"""`compact store` as a run: what one process makes of the store, whoever does the shards and whenever it is killed."""

from __future__ import annotations

import shutil

import numpy as np
from small_worlds import START, histories

from beam_jobs.generation import fold, refresh, summarize
from beam_jobs.run.engines import HERE


def test_a_store_that_a_run_folds_is_what_one_process_makes_of_it_also_when_it_is_killed(
    small_world, killed_at
):
    world, rng = small_world, np.random.default_rng(3)
    summarize.run(world.summarize(), (HERE,))
    world.add(np.arange(4, dtype=np.int64), histories(rng, np.full(4, 3), start=START + 10**7))
    refresh.run(world.refresh(), (HERE,))
    shutil.copytree(world.path / "store", world.path / "alone")
    with world.store("alone") as store:
        store.compact()
        wanted = store.manifest

    options = fold.FoldOptions(str(world.path / "store"), str(world.path / "fold"), progress=False)
    outcomes = killed_at("fold", options, step=9)
    assert len(outcomes) > 2
    for outcome in outcomes:
        assert (outcome["digest"], outcome["leftovers"]) == (wanted.digest, []), outcome
    record = fold.run(options, (HERE,))
    assert record.digests == {"content": wanted.digest}
    assert {"users": 12, "deltas": 1} == {name: record.counts[name] for name in ("users", "deltas")}
    with world.store() as store:
        assert store.manifest.kind == "full" and store.verify().ok
    assert fold.run(options) == record  # a finished run is not run again
