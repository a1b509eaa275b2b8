"""`compact store` as a run: what one process makes of the store, whoever does the shards and wherever it is stopped."""

from __future__ import annotations

import shutil
import sys
from typing import Any

import numpy as np
import pytest
from small_worlds import START, histories

from beam_jobs.generation import fold, refresh, summarize
from beam_jobs.run.engines import HERE


class Stopped(BaseException):
    """Ends a run at its n-th rename, where its state changes."""

    left = 0


def _stop(event: str, arguments: Any) -> None:
    if event == "os.rename" and Stopped.left:
        Stopped.left -= 1
        if not Stopped.left:
            raise Stopped


def test_a_store_that_a_run_folds_is_what_one_process_makes_of_it_also_when_it_is_stopped(small_world):
    world, rng = small_world, np.random.default_rng(3)
    summarize.run(world.summarize(), (HERE,))
    world.add(np.arange(4, dtype=np.int64), histories(rng, np.full(4, 3), start=START + 10**7))
    refresh.run(world.refresh(), (HERE,))
    shutil.copytree(world.path / "store", world.path / "alone")
    with world.store("alone") as store:
        store.compact()
        wanted = store.manifest

    options = fold.FoldOptions(str(world.path / "store"), str(world.path / "fold"), progress=False)
    sys.addaudithook(_stop)
    for at in (1, 4, 7, 10, 13, 16):  # each goes on from where the one before was stopped
        Stopped.left = at
        try:
            fold.run(options, (HERE,))
        except Stopped:
            continue
        break
    else:
        pytest.fail("it never came to its end")
    assert at > 4
    Stopped.left = 0
    record = fold.run(options)  # a finished run is not run again
    assert record.digests == {"content": wanted.digest}
    assert {"users": 12, "deltas": 1} == {name: record.counts[name] for name in ("users", "deltas")}
    with world.store() as store:
        assert store.manifest.kind == "full" and store.manifest.digest == wanted.digest and store.verify().ok
        assert [p.name for p in store.layout.staging.iterdir()] == []
