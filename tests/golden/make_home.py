"""Makes a home that every later version must serve: ``home-2``, records of exact tokens as until version 0.2,
``home-3``, with each item's newest touch, and ``home-4``, with the heaviest clusters alone.

    python tests/golden/make_home.py tests/golden/home-3

Run once per format, never again for a released one; the logs are those of ``home-1``. ``expected.npz`` beside the home
holds what this version computed: tokens of all users as served and before quantising, and logits of four items each.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from test_home_made_before import histories, ranked

from beam_jobs.generation import refresh, summarize
from beam_jobs.ingest import job as ingest
from cache_store import Store
from vista import bundle as bundles
from vista.config import ModelConfig, from_before, from_dict
from vista.data.tables.warehouse import Warehouse
from vista.training.train import TrainingConfig, train

LOGS = Path(__file__).parent / "home-1" / "logs"
SHAPE = {
    "width": 16,
    "embedding": {"rows": 128},
    "tokens": {"items": 12, "clusters": 16, "sequence": 8, "places": 2},
    "summarizer": {"chunk": 8},
    "ranker": {"layers": 1, "recent": 8},
}


TOKENS = {"home-3": {"last": True}, "home-4": {"last": True, "clusters_told": 6}}


def main(home: Path) -> None:
    shape = from_before(SHAPE)
    shape["ranker"] = SHAPE["ranker"]
    if home.name in TOKENS:
        shape["tokens"] = SHAPE["tokens"] | TOKENS[home.name]
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch)
        where = {"warehouse": str(run / "warehouse")}
        made = {**where, "bundle": str(home / "model"), "store": str(home / "store")}
        for name in ("a", "b"):
            ingest.run(
                ingest.IngestOptions(
                    **where, events=(str(LOGS / f"{name}.parquet"),), run_dir=str(run / f"ingest-{name}"),
                    num_buckets=2, actions=("0", "1", "2"),
                ),
                [],
            )  # fmt: skip
            if name == "a":
                config = TrainingConfig(model=from_dict(ModelConfig, shape), max_steps=10)
                train(config, Warehouse(run / "warehouse").open(), home / "model", progress=False)
                summarize.run(summarize.SummarizeOptions(**made, run_dir=str(run / "summarize")), [])
        refresh.run(refresh.RefreshOptions(**made, run_dir=str(run / "refresh")), [])
    shutil.rmtree(home / "model.training", ignore_errors=True)
    bundle = bundles.load(home / "model")
    users = np.unique(np.concatenate([histories_users(n) for n in ("a", "b")]))
    events = histories("a", "b", users=users)
    with torch.inference_mode():
        tokens = bundle.model.summarizer.summarize(events).tokens
    with Store.open(home / "store") as store:
        served = store.lookup(users).tokens
    np.savez_compressed(
        home / "expected.npz", users=users, tokens=served, fingerprint=bundle.fingerprint,
        logits=ranked(bundle, tokens, histories("b", users=users)), **tokens,
    )  # fmt: skip


def histories_users(name: str) -> np.ndarray:
    import pyarrow.parquet as pq

    return pq.read_table(LOGS / f"{name}.parquet", columns=["user_id"])["user_id"].to_numpy()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
