"""Small real tables and a small real model for the tests of the jobs."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from beam_jobs.generation.refresh import RefreshOptions
from beam_jobs.generation.summarize import SummarizeOptions
from cache_store.format.keys import bucket_of
from cache_store.store import Store
from vista import bundle
from vista.config import EmbeddingConfig, ModelConfig, RankerConfig, SlotConfig, SummarizerConfig, TokenConfig
from vista.data.events import Events
from vista.data.tables.appending import append
from vista.data.tables.reading import read_bucket
from vista.data.tables.warehouse import Warehouse
from vista.model import VistaModel

NOW = 1_700_000_000_000
START = 1_600_000_000_000
BUCKETS = 3
FLOAT32 = {"seeds": "float32", "slots": "float32"}

LOST_STREAMS = (
    "ignore:Exception in thread (beam_control_read|read_grpc_client_inputs)"
    ":pytest.PytestUnhandledThreadExceptionWarning"
)
"""For tests that kill a worker process: in Beam's driver two threads then end with the broken streams' errors."""

CONFIG = ModelConfig(
    width=16,
    embedding=EmbeddingConfig(rows=509, surfaces=4),
    tokens=TokenConfig(items=0),
    slots=SlotConfig(buckets=16, clusters=0),
    summarizer=SummarizerConfig(layers=1, heads=2, chunk=16, seeds=4),
    ranker=RankerConfig(layers=1, heads=2, recent=4),
)


def save_bundle(path: Path, model: VistaModel, user_kind: str = "int64") -> Path:
    items = bundle.items_table(np.array([1]), np.array([0]), np.array([1]))
    return bundle.save(path, model, bundle.Meta(user_kind=user_kind, actions=model.config.actions), items)


def histories(rng: np.random.Generator, lengths: np.ndarray, start: int = START, span: int = 10**7) -> Events:
    """Random histories; times repeat now and then."""
    n = int(np.sum(lengths))
    return Events.of(
        lengths,
        item=rng.integers(0, 400, n),
        action=rng.integers(1, 8, n),
        surface=rng.integers(0, 4, n),
        time=start + rng.integers(0, span // 1000, n) * 1000,
    ).sorted()


@dataclass
class World:
    """A folder with tables, a bundle, stores and runs."""

    path: Path
    bundle: Path
    kind: str = "int64"

    @property
    def tables(self) -> Warehouse:
        return Warehouse(self.path / "tables").open()

    def create(self, buckets: int = BUCKETS) -> World:
        Warehouse(self.path / "tables").create(user_kind=self.kind, num_buckets=buckets)
        return self

    def add(self, users: Any, events: Events) -> World:
        tables = self.tables
        append(tables, users, events, bucket_of(users, tables.num_buckets))
        return self

    def _shared(self, more: dict[str, Any]) -> dict[str, Any]:
        shared = {"warehouse": str(self.path / "tables"), "bundle": str(self.bundle), "now_ms": NOW}
        return {**shared, "max_events_in_memory": 600, "codecs": FLOAT32, "progress": False, **more}

    def summarize(self, store: str = "store", run: str = "run", **more: Any) -> SummarizeOptions:
        return SummarizeOptions(
            store=str(self.path / store), run_dir=str(self.path / run), **self._shared(more)
        )

    def refresh(self, store: str = "store", run: str = "refresh", **more: Any) -> RefreshOptions:
        return RefreshOptions(
            store=str(self.path / store), run_dir=str(self.path / run), **self._shared(more)
        )

    def store(self, name: str = "store") -> Store:
        return Store.open(self.path / name)


def all_events(world: World) -> tuple[np.ndarray, Events]:
    """Every user of the tables with all its events, one batch."""
    parts = [
        batch
        for files in world.tables.bucket_files().values()
        for batch in read_bucket(files, max_rows=1 << 30)
    ]
    return np.concatenate([b.users for b in parts]), Events.concat([b.events for b in parts])


def stacked(tokens: dict[str, np.ndarray]) -> np.ndarray:
    """Groups of tokens as one [U, S, D]."""
    return np.concatenate([np.asarray(block) for block in tokens.values()], axis=1)


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    """To 1e-5, relative to the largest value of each user's tokens."""
    scale = np.abs(wanted).reshape(len(wanted), -1).max(axis=1, initial=1e-6)[:, None, None]
    np.testing.assert_array_less(np.abs(found - wanted) / scale, 1e-5)


def until(true: Callable[[], bool]) -> bool:
    """Whether it comes true within a minute."""
    end, pause = time.monotonic() + 60, threading.Event()
    while not true():
        if time.monotonic() > end:
            return False
        pause.wait(0.05)
    return True


def broken_model(item: int) -> VistaModel:
    """A model that lost the embedding rows of one item."""
    model = VistaModel(dataclasses.replace(CONFIG, embedding=EmbeddingConfig(rows=65_521))).eval()
    with torch.no_grad():
        weight = model.items.weight
        weight[torch.isin(weight, model.items(torch.tensor([item]))).all(dim=1)] = float("nan")
    return model
