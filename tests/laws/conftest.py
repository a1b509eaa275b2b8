"""One small world that most laws are checked in: tables, a bundle, and a generation made by the job itself."""

from __future__ import annotations

import numpy as np
import pytest
from small_worlds import CONFIG, World, histories, save_bundle

from beam_jobs.generation import summarize
from vista.model import VistaModel


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> World:
    """40 users in 3 buckets, one of them longer than a window; summarised into ``store``. Tests add nothing to it."""
    path = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(3)
    lengths = rng.geometric(1 / 25, 40)
    lengths[7] = 800
    world = World(path, save_bundle(path / "model", VistaModel(CONFIG))).create()
    world.add(np.arange(40, dtype=np.int64) * 101 - 900, histories(rng, lengths))
    summarize.run(world.summarize())
    return world
