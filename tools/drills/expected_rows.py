"""What the tables and the store of a home must hold after a history: rows counted beside, in plain Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vista.data.tables.commits import recover
from vista.data.tables.reading import read_bucket
from vista.data.tables.undoing import run_of
from vista.data.tables.warehouse import Warehouse

Row = tuple[int, int, int, str]
"""(user, time, item, action)"""


@dataclass
class ExpectedRows:
    """What must be there.

    Attributes:
        until: user to the last moment of forgetting.
        brought: run to the rows that it added.
    """

    rows: set[Row] = field(default_factory=set)
    until: dict[int, int] = field(default_factory=dict)
    brought: dict[str, set[Row]] = field(default_factory=dict)

    def ingest(self, run: str, rows: set[Row]) -> None:
        new = {row for row in rows if row[1] > self.until.get(row[0], -1)} - self.rows
        self.brought[run] = new
        self.rows |= new

    def forget(self, user: int, now: int) -> None:
        newest = max((row[1] for row in self.rows if row[0] == user), default=0)
        self.until[user] = max(now, newest, self.until.get(user, 0))
        self.rows = {row for row in self.rows if row[0] != user}
        for rows in self.brought.values():
            rows -= {row for row in rows if row[0] == user}

    def undo(self, run: str) -> None:
        self.rows -= self.brought.pop(run)


def write_log(path: Path, rows: set[Row]) -> None:
    """A log of these rows, as Parquet."""
    users, times, items, actions = zip(*sorted(rows), strict=True)
    columns = {"user_id": users, "timestamp_ms": times, "item_id": items, "action": actions}
    pq.write_table(pa.table(columns), path)


def rows_of(folder: Path) -> list[Row]:
    """Every row of the history table, with the names of its actions."""
    warehouse = Warehouse(folder)
    if not warehouse.exists():
        return []
    warehouse.open()
    rows = []
    for files in warehouse.bucket_files().values():
        for batch in read_bucket(files, max_rows=1_000):
            e = batch.events
            user = np.repeat(batch.users, e.lengths).tolist()
            for u, t, i, mask in zip(user, e.time.tolist(), e.item.tolist(), e.action.tolist(), strict=True):
                names = [n for a, n in enumerate(warehouse.actions) if mask >> a & 1]
                rows.append((u, t, i, "+".join(names)))
    return rows


def row_files(root: Path) -> list[Path]:
    """Files below a home that hold rows of users."""
    tables = root / "tables/vista"
    found = [*tables.rglob("history/data/**/*"), *tables.rglob("impressions/data/**/*")]
    return [p for p in [*found, *(root / "runs").rglob("spill/**/*")] if p.is_file()]


def users_in(path: Path) -> set[int]:
    """Users whose rows a file has."""
    if path.suffix == ".arrow":
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        return set(table["user"].to_pylist()) if "user" in table.column_names else set()
    try:
        return set(pq.read_table(path, columns=["user_id"], partitioning=None)["user_id"].to_pylist())
    except (pa.ArrowInvalid, OSError):
        return set()  # half of a file, as a killed writer left it


def mixed(root: Path, run: str) -> bool:
    """Whether the rows of a run were merged with others', or none are left, so that it cannot be taken back."""
    warehouse = Warehouse(root / "tables").open()
    recover(warehouse)
    lines = warehouse.read_sources().to_pylist()
    commits = {line["commit"] for line in lines if line["run"].rsplit("-", 1)[0] == run}
    files = [f for some in warehouse.bucket_files().values() for f in some]
    if not commits:  # it left the ledger when a run that it shared rows with was taken back
        return not any(f.first_commit == f.commit and run_of(f.path).rsplit("-", 1)[0] == run for f in files)
    return any(f.first_commit < f.commit and f.first_commit <= c <= f.commit for f in files for c in commits)


def differ(found: set[Row], wanted: set[Row]) -> str:
    return f"lost {sorted(wanted - found)[:5]}, too many {sorted(found - wanted)[:5]} of {len(wanted)}"
