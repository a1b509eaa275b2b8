"""Cut logs at dates, as they would have arrived: ``part-0`` before the first date, ``part-1`` before the second, ...

    python docs/examples/split_logs.py my-logs --at 2024-06-15 --at 2024-07-15 --at 2024-08-15

Every ``events-*.parquet`` and ``impressions-*.parquet`` in the folder is cut by its ``timestamp_ms`` (UTC).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def split(folder: Path, cuts_ms: Sequence[int]) -> list[Path]:
    """The parts, one folder more than there are cuts; files keep their names."""
    parts = [folder / f"part-{i}" for i in range(len(cuts_ms) + 1)]
    for part in parts:
        part.mkdir(exist_ok=True)
    for file in [*folder.glob("events-*.parquet"), *folder.glob("impressions-*.parquet")]:
        table = pq.read_table(file)
        number = np.searchsorted(sorted(cuts_ms), table["timestamp_ms"].to_numpy(), side="right")
        for i, part in enumerate(parts):
            pq.write_table(table.filter(pa.array(number == i)), part / file.name)
    return parts


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--at", action="append", required=True, metavar="YYYY-MM-DD")
    options = parser.parse_args(arguments)
    cuts = [int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1000) for day in options.at]
    for part in split(options.folder, cuts):
        rows = sum(pq.read_metadata(f).num_rows for f in part.glob("events-*.parquet"))
        print(f"{part}: {rows:,} events")


if __name__ == "__main__":
    main()
