"""A small home, made once by the jobs themselves: tables, a model of a few steps, two generations, runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest


def make_home(root: Path, users: int = 60, users_are: str = "int64") -> SimpleNamespace:
    """A home with a full generation and a delta over it; ``later`` is a log that nothing has read yet."""
    from beam_jobs.generation import refresh, summarize
    from beam_jobs.ingest import job as ingest
    from beam_jobs.run.runner import local_args
    from tools.home import Home
    from vista.config import EmbeddingConfig, ModelConfig, RankerConfig, SlotConfig, SummarizerConfig
    from vista.data.generator import GeneratorOptions, generate
    from vista.data.tables.warehouse import Warehouse
    from vista.training.train import TrainingConfig, train

    home = Home(root / "home")
    made = generate(
        GeneratorOptions(users=users, min_events=20, max_events=400, clusters=16, niches=4, niche_items=8,
                         held_back_days=30, slate=10, user_ids=users_are), root / "logs",
    )  # fmt: skip

    def bring(events, impressions=()):
        options = ingest.IngestOptions(
            events=tuple(events), impressions=tuple(impressions), warehouse=str(home.warehouse),
            run_dir=str(home.new_run("ingest")), num_buckets=2, actions=("0", "1", "2"),
        )  # fmt: skip
        return ingest.run(options, local_args())

    bring(made.events, made.impressions)
    model = ModelConfig(
        width=16, actions=("0", "1", "2"), embedding=EmbeddingConfig(rows=509, surfaces=4),
        slots=SlotConfig(buckets=16, clusters=0), summarizer=SummarizerConfig(layers=1, heads=2, chunk=16, seeds=4),
        ranker=RankerConfig(layers=1, heads=2, recent=8),
    )  # fmt: skip
    config = dataclasses.replace(TrainingConfig(), model=model, max_steps=3, validation_slates=50)
    train(config, Warehouse(home.warehouse).open(), home.model)
    shared = {"warehouse": str(home.warehouse), "bundle": str(home.model), "store": str(home.store)}
    summarize.run(
        summarize.SummarizeOptions(**shared, run_dir=str(home.new_run("summarize")), progress=False),
        local_args(),
    )
    later = made.later[0]
    bring([later])
    refresh.run(
        refresh.RefreshOptions(**shared, run_dir=str(home.new_run("refresh")), progress=False), local_args()
    )
    return SimpleNamespace(path=home.root, home=home, logs=root / "logs", shared=shared)


@pytest.fixture(scope="session")
def small_home(tmp_path_factory) -> SimpleNamespace:
    """Read only: a test that changes something copies the store, which has no absolute paths, or makes its own."""
    return make_home(tmp_path_factory.mktemp("small"))
