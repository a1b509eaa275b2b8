"""A home of messy logs, and what came of them."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_jobs.ingest import job as ingest
from beam_jobs.ingest.options import IngestOptions
from beam_jobs.run.engines import HERE
from vista.data.tables.reading import read_bucket
from vista.data.tables.warehouse import Warehouse

T0 = 1_700_000_000_000
HEAD = "user_id,item_id,action,timestamp_ms\n"
JSON = '{"user_id":%s,"item_id":%s,"action":"c","timestamp_ms":%d}\n'


def run(folder: Path, *files: str, **more):
    runs = len(list(folder.glob("run-*")))
    return ingest.run(
        IngestOptions(
            tuple(str(folder / f) for f in files), str(folder / "home"), str(folder / f"run-{runs}"),
            **{"num_buckets": 2, "max_time_ms": 2 * T0, **more},
        ),
        (HERE,),
    )  # fmt: skip


def tables(folder: Path) -> Warehouse:
    return Warehouse(folder / "home").open()


def users(folder: Path) -> list:
    found = []
    for files in tables(folder).bucket_files().values():
        for batch in read_bucket(files, max_rows=1 << 20):
            found += np.repeat(batch.users, batch.events.lengths).tolist()
    return sorted(found)


def letters(record) -> dict[int, str]:
    rows = pq.read_table(Path(record.path) / "dead-letters.parquet").to_pylist()
    return {row["row"]: row["reason"] for row in rows}


def log(n: int = 4, **over) -> pa.Table:
    columns = {
        "user_id": pa.array(range(n)),
        "item_id": pa.array([7] * n),
        "action": pa.array(["c"] * n),
        "timestamp_ms": pa.array([T0 + i for i in range(n)]),
    }
    return pa.table({**columns, **over})


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
