"""Law 11: what is forgotten is nowhere below the home: tables, generations, states, dead letters; and stays away.

Also: while runs, compactions and pulls are under way, tests/cache_store/change/test_forgetting.py and
tests/cache_store/remote/test_remote.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_worlds import START, World, all_events, broken_model, histories, save_bundle

from beam_jobs.errors import OptionsError
from beam_jobs.generation import refresh, summarize
from beam_jobs.tables import forget
from beam_jobs.tables.forget import ForgetOptions
from vista.data.events import Events


def files_holding(folder: Path, needle: bytes) -> list[str]:
    """Files under a folder with these bytes in them."""
    return [str(p) for p in folder.rglob("*") if p.is_file() and needle in p.read_bytes()]


def test_law_11_a_forgotten_user_is_in_no_table_generation_state_or_dead_letter(tmp_path):
    name, other = "wanda-who-leaves", "otto-who-stays"
    path = save_bundle(tmp_path / "model", broken_model(10**9), user_kind="string")
    world = World(tmp_path / "world", path, kind="string").create(2)
    rng = np.random.default_rng(0)
    users = np.array([name, other, "third"], object)
    world.add(users, histories(rng, np.array([40, 30, 20])))
    summarize.run(world.summarize(run="runs/1"))
    late = histories(rng, np.array([5]), start=START + 10**8)
    world.add(users[:1], late)
    refresh.run(world.refresh(run="runs/2"))
    # In a third round the user is a dead letter.
    bad = Events.of([1], item=np.array([10**9]), time=np.array([START + 2 * 10**8]))
    world.add(users[:1], bad)
    assert refresh.run(world.refresh(run="runs/3")).exit_code == 3
    assert files_holding(world.path, name.encode())
    options = ForgetOptions(
        [name], str(world.path / "tables"), [str(world.path / "store")], [str(world.path / "runs")]
    )
    record = forget.run(options)
    assert record.tables["history"].rows == 46
    assert sum(record.letters.values()) >= 1
    assert files_holding(world.path, name.encode()) == []
    with world.store() as store:
        assert store.lookup([name, other, "third"]).status.tolist() == [2, 0, 0]
        assert store.states([name]) == [None]
    # It does not come back, and the others go on.
    world.add(users[1:2], histories(rng, np.array([3]), start=START + 3 * 10**8))
    record = refresh.run(world.refresh(run="runs/4"))
    assert (record.counts["users"], record.counts["resumed"]) == (1, 1)
    assert sorted(all_events(world)[0].tolist()) == [other, "third"]
    again = forget.run(options)
    assert again.tables["history"].rows == 0 and not again.letters


def test_there_must_be_someone_to_forget_and_somewhere_to_look(home):
    with pytest.raises(OptionsError):
        forget.run(ForgetOptions([], str(home.path / "tables")))
    with pytest.raises(OptionsError):
        forget.run(ForgetOptions([1]))
