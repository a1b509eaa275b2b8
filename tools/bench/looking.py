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

from cache_store import Group, RecordSchema, Store, bucket_of
from tools.bench.harness import Figure, Result, cpu_seconds, median, sized
from tools.bench.lookup import fill
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
                start = cpu_seconds(resource.RUSAGE_CHILDREN)
                words = [sys.executable, "-m", "tools", verb, "--home", str(home), "--json", *more]
                done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
                seconds[name].append(cpu_seconds(resource.RUSAGE_CHILDREN) - start)
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


def _build(home: Path, users: int) -> None:
    store, rng = Store.create(home / "store", num_shards=SHARDS), np.random.default_rng(0)
    now = int(time.time() * 1000)
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
        name = fill(
            store, ids, SCHEMA, lambda n: {"seeds": rng.standard_normal((n, 1, 8), "f4")},
            (10, now - 3_600_000, now), 20_000, parent=name, kind="delta" if name else "full", table_snapshot=snapshot,
        )  # fmt: skip
