"""``ingest`` against PyArrow's own sort and write of the same generated log, on the same cores.

PyArrow's side reads the files, sorts by (user, time, request, item, action, surface) and writes one zstd Parquet
file: no checks, no buckets, no duplicates dropped, no table, no items. ``ingest`` does all of that.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from beam_jobs.ingest.job import run as run_ingest
from beam_jobs.ingest.plan import IngestOptions
from beam_jobs.run import runner as pipeline
from tools.bench.harness import Result, in_turn, median, ratio
from vista.data.generator import GeneratorOptions, generate
from vista.data.tables.rows import ZSTD_LEVEL

KEYS = ("user_id", "timestamp_ms", "request_id", "item_id", "action", "surface")


def run(
    quick: bool,
    events: int | None = None,
    workers: int = 1,
    buckets: int = 16,
    repeats: int | None = None,
    folder: str | None = None,
) -> Result:
    """Measure both sides in turn.

    Args:
        events: rows of the log; 1M or 10M.
        workers: 1 runs in this process and PyArrow on one thread; more are worker processes and as many threads.
        folder: where to work; a temporary one by default.
    """
    events = events or (1_000_000 if quick else 10_000_000)
    repeats = repeats or (1 if quick else 3)
    result = Result({"events": events, "workers": workers, "buckets": buckets, "repeats": repeats})
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        root = Path(scratch)
        made = generate(
            GeneratorOptions(users=max(events // 2_000, 1), events=events, slate=0), root / "logs"
        )
        args = pipeline.local_args("multi_processing", workers) if workers > 1 else pipeline.local_args()

        def ours() -> None:
            shutil.rmtree(root / "ours", ignore_errors=True)
            options = IngestOptions(
                tuple(made.events),
                str(root / "ours" / "table"),
                str(root / "ours" / "run"),
                num_buckets=buckets,
            )
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
        stored = sum(f.stat().st_size for f in (root / "ours" / "table").rglob("*.parquet"))
        result.figures["table_bytes_per_event"] = median([stored / events], "bytes")
        result.figures["pyarrow_bytes_per_event"] = median(
            [(root / "theirs.parquet").stat().st_size / events], "bytes"
        )
    return result
