"""Small logs for the tests of ingest: made, written, and what the tables must hold of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_jobs.ingest.options import IngestOptions
from beam_jobs.run import runner as pipeline
from cache_store.format.keys import bucket_of
from vista.data.tables.reading import read_bucket
from vista.data.tables.warehouse import Warehouse

T0 = 1_700_000_000_000
LOCAL = pipeline.local_args()


def log(rng: np.random.Generator, n: int, text: bool = False, users: int = 40) -> pa.Table:
    """A log with repeated rows, in no order."""
    index = rng.integers(0, max(n * 4 // 5, 1), n)
    base = np.random.default_rng(7)
    columns = {
        "user_id": base.integers(-users, users, n),
        "item_id": base.integers(0, 50, n),
        "action": base.integers(0, 3, n).astype(np.int8),
        "surface": base.integers(0, 4, n).astype(np.int16),
        "timestamp_ms": T0 + base.integers(0, 1_000, n),
        "request_id": base.integers(0, 200, n),
    }
    table = pa.table({name: c[index] for name, c in columns.items()})
    if text:
        for i, name in enumerate(table.column_names):
            if name != "timestamp_ms":
                values = [f"{name}ß{v}" for v in table[name].to_pylist()]
                table = table.set_column(i, name, pa.array(values).dictionary_encode())
    return table


def write(folder: Path, *tables: pa.Table, name: str = "log", group: int = 100) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for i, table in enumerate(tables):
        pq.write_table(table, folder / f"{name}-{i}.parquet", row_group_size=group)
    return str(folder / f"{name}-*.parquet")


def options(tmp_path: Path, events: str | tuple[str, ...], run: str = "run", **more) -> IngestOptions:
    files = (events,) if isinstance(events, str) else events
    more.setdefault("num_buckets", 4)
    return IngestOptions(files, warehouse=str(tmp_path / "table"), run_dir=str(tmp_path / run), **more)


def content(tmp_path: Path, max_rows: int = 1_000) -> list[tuple]:
    warehouse = Warehouse(tmp_path / "table").open()
    rows = []
    for bucket, files in warehouse.bucket_files().items():
        for batch in read_bucket(files, max_rows=max_rows):
            assert (bucket_of(batch.users, warehouse.num_buckets) == bucket).all()
            user = np.repeat(batch.users, batch.events.lengths)
            names = ("item", "action", "surface", "time", "request")
            rows += zip(user.tolist(), *(getattr(batch.events, n).tolist() for n in names), strict=True)
    return sorted(rows)


def expected(*tables: pa.Table) -> list[tuple]:
    rows = pa.concat_tables(tables).to_pylist()
    names = ("user_id", "item_id", "action", "surface", "timestamp_ms", "request_id")
    return sorted({tuple(1 << r[n] if n == "action" else r[n] for n in names) for r in rows})
