"""The log of a shop as somebody might have downloaded it: its own column names, texts for ids, times as text.

    python docs/examples/shop_log.py shop --customers 300

Writes ``shop/before.parquet`` and ``shop/after.parquet``, cut at a date: customer, sku, kind (view, cart, buy), at.
The lives are generated (vista/data/generator.py); a log of your own takes this file's place.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vista.data.generator import GeneratorOptions, generate

KINDS = np.array(["view", "cart", "buy"], object)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--customers", type=int, default=300)
    parser.add_argument("--events", type=int, default=1_000, help="Of the longest history.")
    given = parser.parse_args(arguments)
    options = GeneratorOptions(
        users=given.customers, min_events=60, max_events=given.events, tail=0.9, clusters=32, niches=6, niche_items=12,
        phase_events=60, sleep_events=200, held_back_days=60,
    )  # fmt: skip
    given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        found = generate(options, Path(made))
        for name, files in (("before", found.events), ("after", found.later)):
            pq.write_table(
                _foreign(pa.concat_tables(map(pq.read_table, files))), given.folder / f"{name}.parquet"
            )
    print(f"{given.folder}/before.parquet and {given.folder}/after.parquet")


def _foreign(events: pa.Table) -> pa.Table:
    users, items, kinds, times = (
        events[c].to_numpy() for c in ("user_id", "item_id", "action", "timestamp_ms")
    )
    return pa.table({
        "customer": [f"c{u % 10**10:010d}" for u in users], "sku": [f"SKU-{i}" for i in items],
        "kind": KINDS[kinds], "at": np.datetime_as_string(times.astype("M8[ms]"), unit="s").tolist(),
    })  # fmt: skip


if __name__ == "__main__":
    main()
