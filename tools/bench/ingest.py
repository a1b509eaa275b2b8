"""``ingest`` against PyArrow's own sort and write of the same generated log, on the same cores.

PyArrow's side reads the files, sorts by (user, time, request, item, action, surface) and writes one zstd Parquet
file: no checks, no buckets, no duplicates dropped, no table, no items. ``ingest`` does all of that.

Beside it the same rows as CSV, TSV and JSON lines: what a row of each costs in seconds of the processor, the whole
command with its start (``--forms``); with ``--against FOLDER`` those of another checkout, in turn.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from beam_jobs.ingest.job import run as run_ingest
from beam_jobs.ingest.options import IngestOptions
from tools.bench.harness import Result, cpu_seconds, in_turn, median, ratio, sized, turns
from tools.options import Runner
from vista.data.generator import GeneratorOptions, generate
from vista.data.tables.rows import ZSTD_LEVEL

HERE = Path(__file__).parents[2]
KEYS = ("user_id", "timestamp_ms", "request_id", "item_id", "action", "surface")


@sized(events=1_000_000, repeats=1, rows=100_000)
def run(
    quick: bool,
    events: int = 10_000_000,
    workers: int = 1,
    buckets: int = 16,
    repeats: int = 3,
    folder: str | None = None,
    forms: str = "csv,tsv,jsonl,parquet",
    rows: int = 1_000_000,
    against: str | None = None,
) -> Result:
    """Measure both sides in turn.

    Args:
        events: rows of the log.
        workers: 1 runs in this process and PyArrow on one thread; more are worker processes and as many threads.
        folder: where to work; a temporary one by default.
        forms: of the log whose cost is told, with commas between.
        rows: of those.
        against: another checkout, whose command is measured beside this one's.
    """
    result = Result()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        root = Path(scratch)
        lives = GeneratorOptions(users=max(events // 2_000, 1), events=events, slate=0)
        made, args = generate(lives, root / "logs"), Runner(workers=workers).arguments()
        table, run_dir = str(root / "ours/table"), str(root / "ours/run")

        def ours() -> None:
            shutil.rmtree(root / "ours", ignore_errors=True)
            options = IngestOptions(tuple(made.events), table, run_dir, num_buckets=buckets)
            record = run_ingest(options, args, progress=False)
            assert record.counts["events_read"] == events

        def theirs() -> None:
            pa.set_cpu_count(workers)
            threads = workers > 1
            tables = [pq.read_table(path, use_threads=threads) for path in made.events]
            table = pa.concat_tables(tables).sort_by([(key, "ascending") for key in KEYS])
            pq.write_table(table, root / "theirs.parquet", compression="zstd", compression_level=ZSTD_LEVEL)

        seconds = in_turn({"ingest": ours, "pyarrow": theirs}, repeats, warmup=0 if quick else 1)
        rate = {name: events / values for name, values in seconds.items()}
        result.figures["ingest_of_pyarrow"] = ratio(rate["ingest"], rate["pyarrow"], target=0.5)
        for name, values in rate.items():
            result.figures[f"{name}_events_per_second"] = median(values, "events/s")
        stored = sum(f.stat().st_size for f in Path(table).rglob("*.parquet"))
        theirs_bytes = (root / "theirs.parquet").stat().st_size
        result.figures["table_bytes_per_event"] = median([stored / events], "bytes")
        result.figures["pyarrow_bytes_per_event"] = median([theirs_bytes / events], "bytes")
        _forms(result, root, [f for f in forms.split(",") if f], rows, repeats, against)
    return result


def _forms(
    result: Result, root: Path, forms: Sequence[str], rows: int, repeats: int, against: str | None
) -> None:
    """Add rows per second of the processor, by form, and their ratio to the other checkout's."""
    sides = {"ingest": HERE, **({"against": Path(against).resolve()} if against else {})}
    log = _log(rows)
    for form in forms:
        file = _written(log, root / f"rows.{form}")
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _, name in turns(sides, repeats):
            seconds[name].append(_cpu_seconds(sides[name], file, root / "home"))
        rate = {name: rows / np.array(values) for name, values in seconds.items()}
        for name, values in rate.items():
            result.figures[f"{form}_{name}_rows_per_cpu_second"] = median(values, "rows/s")
        if against:
            result.figures[f"{form}_of_against"] = ratio(rate["ingest"], rate["against"], target=1.0)


def _log(rows: int) -> pa.Table:
    rng = np.random.default_rng(0)
    columns = {
        "user_id": rng.integers(0, max(rows // 500, 1), rows),
        "item_id": np.minimum(rng.zipf(1.3, rows), 50_000),
        "action": np.array(["view", "like", "buy"])[rng.integers(0, 3, rows)],
        "surface": np.array(["home", "feed"])[rng.integers(0, 2, rows)],
        "timestamp_ms": 1_700_000_000_000 + rng.integers(0, 10**9, rows),
        "request_id": rng.integers(1, 10**12, rows),
    }
    return pa.table(columns)


def _written(log: pa.Table, path: Path) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(log, path)
    elif path.suffix == ".jsonl":
        with open(path, "w") as file:
            for batch in log.to_batches(65_536):
                file.writelines(json.dumps(row) + "\n" for row in batch.to_pylist())
    else:
        between = "\t" if path.suffix == ".tsv" else ","
        csv.write_csv(log, path, csv.WriteOptions(quoting_style="none", delimiter=between))
    return path


def _cpu_seconds(checkout: Path, file: Path, home: Path) -> float:
    """Of the command and its children, in user and system."""
    shutil.rmtree(home, ignore_errors=True)
    before = cpu_seconds(resource.RUSAGE_CHILDREN)
    start = "from tools.cli import main; main()"  # which every checkout has
    words = [sys.executable, "-c", start, "ingest", str(file), "--home", str(home)]
    env = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    subprocess.run(words, check=True, capture_output=True, cwd=checkout, env=env)
    return cpu_seconds(resource.RUSAGE_CHILDREN) - before
