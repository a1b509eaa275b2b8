"""Peak memory of ``summarize`` where a bucket, or one user, is far larger than the knob ``max_events_in_memory``.

Each case is a process of its own that runs the job in memory and samples its anonymous resident memory every 5 ms
(pages of mapped files, which the kernel takes back when it likes, are told apart as ``mapped_mib``): tables without
rows (what a worker costs before its first event), a bucket that the knob just holds, buckets of half and of all
``times`` as many events, and one user of ``times`` as many. ``within_stated`` compares the largest with what
``vista plan`` says: a constant per worker, and bytes per event of the knob. ``bucket_growth`` is the bucket of
``times`` against the half as large: 1 where memory does not depend on the bucket.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from beam_jobs.generation.bucket_task import BYTES_PER_EVENT, WORKER_BYTES
from tools.bench.harness import Figure, Result, sized
from tools.bench.job import histories, make_bundle
from vista.data.tables.appending import append
from vista.data.tables.warehouse import Warehouse

RUN = """
import json, sys, threading
peak, done = {"RssAnon": 0, "RssFile": 0}, threading.Event()
def sample():
    while not done.wait(0.005):
        with open("/proc/self/status") as status:
            for row in status:
                name, _, value = row.partition(":")
                if name in peak:
                    peak[name] = max(peak[name], int(value.split()[0]) * 1024)
threading.Thread(target=sample).start()
from beam_jobs.generation import summarize
try:
    record = summarize.run(summarize.SummarizeOptions(**json.loads(sys.argv[1])))
finally:
    done.set()
print(json.dumps({**peak, "events": record.counts["events"]}))
"""


def peak_bytes(root: Path, name: str, bundle: Path, lengths: np.ndarray, knob: int) -> tuple[int, int]:
    """Most anonymous and most mapped bytes of a process that summarises these histories, all in one bucket."""
    folder = root / name
    tables = Warehouse(folder / "tables").create(num_buckets=1)
    # Appended in several commits, so that the reader has files to merge.
    parts = 4 if len(lengths) else 0
    for part in range(parts):
        share = lengths // parts + (part < lengths % parts)
        mine = np.flatnonzero(share)
        events = histories(share[mine], seed=part, start_ms=1_600_000_000_000 + part * 10**11)
        append(tables, mine.astype(np.int64), events, np.zeros(len(mine), np.int32))
    options = {
        "warehouse": str(folder / "tables"), "bundle": str(bundle), "store": str(folder / "store"),
        "run_dir": str(folder / "run"), "max_events_in_memory": knob, "progress": False,
    }  # fmt: skip
    words = [sys.executable, "-c", RUN, json.dumps(options)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    if found["events"] != lengths.sum():
        raise RuntimeError(f"{name}: expected {lengths.sum()} events, the run counted {found['events']}")
    return found["RssAnon"], found["RssFile"]


@sized(knob=50_000)
def run(
    quick: bool, knob: int = 262_144, times: int = 8, mean: int = 200, width: int = 64, layers: int = 2
) -> Result:
    """Measure every case once; memory does not vary as time does.

    Args:
        knob: events held at a time.
        times: how much larger bucket and user are.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bundle = make_bundle(root / "bundle", width, layers)
        weights = sum(p.stat().st_size for p in bundle.glob("*.safetensors"))
        cases = {
            "empty": np.zeros(0, np.int64),
            "knob": np.full(knob // mean, mean, np.int64),
            "half": np.full(times * knob // mean // 2, mean, np.int64),
            "bucket": np.full(times * knob // mean, mean, np.int64),
            "user": np.array([times * knob], np.int64),
        }
        both = {name: peak_bytes(root, name, bundle, lengths, knob) for name, lengths in cases.items()}
    peak = {name: anonymous for name, (anonymous, _) in both.items()}
    largest = max(peak.values())
    stated = WORKER_BYTES + 2 * weights + BYTES_PER_EVENT * knob
    sizes = {**peak, "mapped": max(mapped for _, mapped in both.values()), "stated": stated}
    figures = {
        "within_stated": Figure(largest / stated, target=1.0, at_least=False),
        "bucket_growth": Figure(peak["bucket"] / peak["half"], target=1.1, at_least=False),
        "user_over_bucket": Figure(peak["user"] / peak["bucket"], at_least=False),
        **{f"{name}_mib": Figure(size / 2**20, "MiB", at_least=False) for name, size in sizes.items()},
    }
    return Result({"weights_bytes": weights}, figures)
