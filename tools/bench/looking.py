"""How long `vista status` (once something has changed, and again) and `vista report` take on a home of many users, and
how large the page is.

Tables with five events a user, a small model, and a store of tiny records (one token of 8 bytes) by its own writer:
three deltas of 2 % lie over the full generation, and the tables have events that the last lacks. Both verbs are run as
processes, from the start of the interpreter to its end, and measured by processor time, which other work on the
machine changes least.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cache_store import Group, Publication, RecordSchema, ShardWriter, Store, bucket_of
from cache_store.format.keys import sortable
from tools.bench.harness import Figure, Result, median, sized
from tools.report.tables_seen import KEPT
from vista import bundle
from vista.config import EmbeddingConfig, ModelConfig
from vista.data.events import Events
from vista.data.tables.appending import append
from vista.data.tables.warehouse import Warehouse
from vista.model import VistaModel

SCHEMA = RecordSchema((Group("seeds", 1, 8, "int8"),))
SHARDS = 16
ROOT = Path(__file__).parents[2]


@sized(users=20_000, repeats=1)
def run(quick: bool, users: int = 1_000_000, repeats: int = 5) -> Result:
    """Measure; see the module.

    Args:
        users: of the full generation.
    """
    seconds: dict[str, list[float]] = {"status_anew": [], "status": [], "report": []}
    with tempfile.TemporaryDirectory(prefix="bench-looking-") as folder:
        home = Path(folder)
        _build(home, users)
        for _ in range(repeats):
            (home / KEPT).unlink(missing_ok=True)
            for name in seconds:
                verb = name.partition("_")[0]
                more = ["--out", str(home / "report.html")] if name == "report" else []
                start = _children()
                words = [sys.executable, "-m", "tools", verb, "--home", str(home), "--json", *more]
                done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
                seconds[name].append(_children() - start)
                if verb == "status":
                    counted = json.loads(done.stdout)["store"]["users"]
        size = (home / "report.html").stat().st_size
    figures = {
        "status_anew": median(np.array(seconds["status_anew"]), "s"),
        "status": median(np.array(seconds["status"]), "s", target=1.0, at_least=False),
        "report": median(np.array(seconds["report"]), "s", target=5.0, at_least=False),
        "report_bytes": Figure(size, "bytes", target=1e6, at_least=False),
    }
    return Result({"counted": counted, "shards": SHARDS}, figures)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _build(home: Path, users: int) -> None:
    store, rng, now = (
        Store.create(home / "store", num_shards=SHARDS),
        np.random.default_rng(0),
        int(time.time() * 1000),
    )
    tables = Warehouse(home / "warehouse").create(num_buckets=SHARDS, actions=("view", "like"))
    model = VistaModel(ModelConfig(width=16, embedding=EmbeddingConfig(rows=512), actions=("view", "like")))
    items = bundle.items_table(np.array([1]), np.array([0]), np.array([1]))
    bundle.save(home / "model", model, bundle.Meta(actions=("view", "like")), items)
    name = snapshot = None
    for k in range(4):
        ids = np.arange(users + users // 200 * (k > 0), dtype=np.int64) * 13
        ids = ids if k == 0 else rng.choice(ids, users // 50, replace=False)
        lengths = np.full(len(ids), 5)
        n = int(lengths.sum())
        events = Events.of(
            lengths,
            item=rng.integers(0, users // 2, n),
            action=rng.integers(1, 4, n),
            surface=np.zeros(n, np.int64),
            time=now - 86_400_000 + rng.integers(0, 10**7, n),
        )
        newest = append(tables, ids, events.sorted(), bucket_of(ids, SHARDS), run=f"append-{k}")
        snapshot = newest if k < 3 else snapshot  # what came last is not in the store
        name = _publish(store, rng, f"run-{k}", ids, name, now, snapshot)


def _publish(
    store: Store,
    rng: np.random.Generator,
    run_id: str,
    ids: np.ndarray,
    parent: str | None,
    now: int,
    snapshot: int | None,
) -> str:
    staging, bucket, receipts = store.stage(run_id), bucket_of(ids, SHARDS), []
    for shard in range(SHARDS):
        mine = ids[bucket == shard]
        mine = mine[np.argsort(sortable(mine))]
        with ShardWriter(staging, shard, SHARDS, SCHEMA, fingerprint="bench") as writer:
            for i in range(0, len(mine), 20_000):
                part = mine[i : i + 20_000]
                tokens = rng.standard_normal((len(part), 1, 8), dtype=np.float32)
                times = np.full(len(part), now - 3_600_000)
                writer.add(part, {"seeds": tokens}, np.full(len(part), 10), times, np.full(len(part), now))
            receipts.append(writer.finish())
    wanted = Publication(
        fingerprint="bench", watermark_ms=now - 3_600_000, expected=len(ids), parent=parent,
        kind="delta" if parent else "full", table_snapshot=snapshot,
    )  # fmt: skip
    return store.publish(staging, receipts, wanted).generation
