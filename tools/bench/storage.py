"""Bytes of the same training examples: plain rows with the history inlined, the same rows sorted, and the tables.

An example is one impression with the user's newest 2,000 events before it.

- *plain* rows stand in no order, as the impressions of a busy site do, and as a join of impressions with labels by
  impression id leaves them: neighbours are of different users;
- *slates* is the plain form at its best: the impressions of one request are neighbours, requests are in time order;
- *sorted* rows go by (user, request);
- the *tables* hold every history once, whole, and every impression once; the trainer joins them by bucket.

zstd of the same level in all; rows with the columns and pages that PyArrow writes by default, tables as ``ingest``
writes them. Compared are the user-heavy columns: the five history columns of the rows against all bytes of the
history table. The ratio grows with the impressions per user, so their number is a parameter. The row forms are
measured on a sample of rows and scaled by inlined events; the tables are measured whole.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_jobs.ingest.job import run as run_ingest
from beam_jobs.ingest.options import IngestOptions
from beam_jobs.run.runner import local_args
from tools.bench.harness import Figure, Result, sized
from vista.data.events import COLUMNS, Events
from vista.data.generator import GeneratorOptions, generate
from vista.data.tables.reading import read_bucket, read_impressions
from vista.data.tables.rows import IMPRESSIONS, ZSTD_LEVEL
from vista.data.tables.warehouse import Warehouse

ROWS_AT_A_TIME = 1_000
"""Rows per row group of the plain files: about 50 MB of history before compression."""


@sized(users=200, sample=4_000)
def run(
    quick: bool,
    users: int = 1_000,
    slates: int = 16,
    slate: int = 20,
    length: int = 2_000,
    sample: int = 20_000,
    buckets: int = 4,
    folder: str | None = None,
) -> Result:
    """Measure.

    Args:
        slates: requests per user that become examples.
        slate: impressions per request.
        length: events inlined per example.
        sample: rows written of each row form.
    """
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        root = Path(scratch)
        lives = GeneratorOptions(
            users=users, min_events=length, max_events=10 * length, slate=slate, slates_per_user=slates
        )
        made = generate(lives, root / "logs")
        asked = IngestOptions(
            tuple(made.events), str(root / "tables"), str(root / "run"), impressions=tuple(made.impressions),
            num_buckets=buckets,
        )  # fmt: skip
        run_ingest(asked, local_args(), progress=False)
        warehouse = Warehouse(root / "tables").open()
        examples = _Examples(warehouse, length)
        inlined = examples.inlined(np.arange(len(examples.time)))
        per_event, per_row = {}, {}
        in_a_request = examples.columns["position"], examples.columns["request"], examples.time
        orders = {
            "plain": np.random.default_rng(0).permutation(len(examples.time)),
            "slates": np.lexsort(in_a_request),
            "sorted": np.lexsort((*in_a_request, examples.user)),
        }
        for name, order in orders.items():
            rows = order[:sample]
            path = _write(root / "rows.parquet", examples, rows)
            history = _history_bytes(path)
            per_event[name] = history / examples.inlined(rows)
            per_row[name] = (path.stat().st_size - history) / len(rows)
        files = [f for fs in warehouse.bucket_files().values() for f in fs]
        table, events = sum(f.bytes for f in files), sum(f.rows for f in files)
        shown = sum(f.bytes for fs in warehouse.bucket_files(kind=IMPRESSIONS).values() for f in fs)
    heavy = {name: value * inlined for name, value in per_event.items()}
    whole = {name: heavy[name] + per_row[name] * len(examples.time) for name in heavy}
    result = Result({"examples": len(examples.time), "events": events})
    result.figures = {
        "compression": Figure(heavy["plain"] / table, target=50.0),
        "compression_sorted": Figure(heavy["plain"] / heavy["sorted"]),
        "compression_of_slates": Figure(heavy["slates"] / table),
        "compression_all_columns": Figure(whole["plain"] / (table + shown)),
        **{f"{name}_bytes_per_inlined_event": Figure(v, "bytes") for name, v in per_event.items()},
        "table_bytes_per_event": Figure(table / events, "bytes"),
    }
    result.notes.append(
        f"every event is inlined {inlined / events:.0f} times on average; the tables hold it once"
    )
    return result


class _Examples:
    """Impressions of all users, and the rows of their histories that come before each."""

    def __init__(self, warehouse: Warehouse, length: int) -> None:
        histories, ids, owner, shown, users = [], [], [], [], 0
        impressions = warehouse.bucket_files(kind=IMPRESSIONS)
        for bucket, found in warehouse.bucket_files().items():
            batch = next(read_bucket(found, max_rows=1 << 30))
            rows = next(read_impressions(impressions[bucket], max_rows=1 << 30))
            histories.append(batch.events)
            ids.append(batch.users)
            owner.append(users + np.repeat(np.searchsorted(batch.users, rows.users), np.diff(rows.offsets)))
            shown.append({n: getattr(rows, n) for n in IMPRESSIONS.order})
            users += len(batch.users)
        self.events, self.user_ids, self.user = (
            Events.concat(histories),
            np.concatenate(ids),
            np.concatenate(owner),
        )
        self.columns = {n: np.concatenate([s[n] for s in shown]) for n in IMPRESSIONS.order}
        self.time = self.columns["time"]
        offsets = self.events.offsets
        self.stops = np.empty(len(self.user), np.int64)
        for u in range(users):
            mine, history = self.user == u, self.events.time[offsets[u] : offsets[u + 1]]
            self.stops[mine] = offsets[u] + np.searchsorted(history, self.time[mine])
        self.starts = np.maximum(self.stops - length, offsets[self.user])

    def inlined(self, rows: np.ndarray) -> int:
        """Events inlined in these rows."""
        return int((self.stops[rows] - self.starts[rows]).sum())


def _write(path: Path, examples: _Examples, order: np.ndarray) -> Path:
    writer = None
    for start in range(0, len(order), ROWS_AT_A_TIME):
        rows = order[start : start + ROWS_AT_A_TIME]
        history = examples.events.slices(examples.starts[rows], examples.stops[rows])
        offsets = pa.array(history.offsets.astype(np.int32))
        columns = {"user_id": pa.array(examples.user_ids[examples.user[rows]])}
        columns |= {name: pa.array(c[rows]) for name, c in examples.columns.items()}
        columns |= {
            f"history_{n}": pa.ListArray.from_arrays(offsets, pa.array(getattr(history, n))) for n in COLUMNS
        }
        table = pa.table(columns)
        if writer is None:
            writer = pq.ParquetWriter(path, table.schema, compression="zstd", compression_level=ZSTD_LEVEL)
        writer.write_table(table)
    assert writer is not None
    writer.close()
    return path


def _history_bytes(path: Path) -> int:
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
    columns = [group.column(c) for group in groups for c in range(group.num_columns)]
    return sum(c.total_compressed_size for c in columns if c.path_in_schema.startswith("history_"))
