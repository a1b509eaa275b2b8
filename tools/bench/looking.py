"""How long `vista status` and `vista report` take on a store of many users, and how large the page is.

Records are tiny (one token of 8 bytes) and written by the store's own writer; three deltas of 2 % lie over the full
generation. Both verbs are run as processes, from the start of the interpreter to its end.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cache_store import Group, Publication, RecordSchema, ShardWriter, Store, bucket_of
from cache_store.format.keys import sortable
from tools.bench.harness import Figure, Result, median

SCHEMA = RecordSchema((Group("seeds", 1, 8, "int8"),))
SHARDS = 16
ROOT = Path(__file__).parents[2]


def run(quick: bool, users: int | None = None, repeats: int | None = None) -> Result:
    """Measure; see the module.

    Args:
        users: of the full generation.
    """
    users, repeats = users or (20_000 if quick else 1_000_000), repeats or (1 if quick else 5)
    seconds: dict[str, list[float]] = {"status": [], "report": []}
    with tempfile.TemporaryDirectory(prefix="bench-looking-") as folder:
        home = Path(folder)
        _build(home / "store", users)
        for _ in range(repeats):
            for verb, more in (("status", []), ("report", ["--out", str(home / "report.html")])):
                start = time.perf_counter()
                words = [sys.executable, "-m", "tools", verb, "--home", str(home), "--json", *more]
                done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
                seconds[verb].append(time.perf_counter() - start)
                if verb == "status":
                    counted = json.loads(done.stdout)["store"]["users"]
        size = (home / "report.html").stat().st_size
    figures = {
        "status": median(np.array(seconds["status"]), "s", target=1.0, at_least=False),
        "report": median(np.array(seconds["report"]), "s", target=5.0, at_least=False),
        "report_bytes": Figure(size, "bytes", target=1e6, at_least=False),
    }
    return Result({"users": users, "counted": counted, "shards": SHARDS, "repeats": repeats}, figures)


def _build(path: Path, users: int) -> None:
    store, rng, now = Store.create(path, num_shards=SHARDS), np.random.default_rng(0), int(time.time() * 1000)
    everybody = np.arange(users, dtype=np.int64) * 13
    name = _publish(store, rng, "full", everybody, None, now)
    for k in range(3):
        some = rng.choice(np.arange(users + users // 200, dtype=np.int64) * 13, users // 50, replace=False)
        name = _publish(store, rng, f"delta-{k}", some, name, now)


def _publish(
    store: Store, rng: np.random.Generator, run_id: str, ids: np.ndarray, parent: str | None, now: int
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
        kind="delta" if parent else "full",
    )  # fmt: skip
    return store.publish(staging, receipts, wanted).generation
