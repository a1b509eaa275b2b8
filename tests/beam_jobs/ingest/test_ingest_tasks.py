"""Memory of the sorting task follows its knob; a chunk file is by bucket and whole."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from beam_jobs.ingest.build import build_bucket
from beam_jobs.ingest.spill import groups_of, read_pieces, write_chunk
from beam_jobs.ingest.units import Bucket, IngestSettings
from beam_jobs.run.record import RunDirectory
from vista.data.logs.values import Rules
from vista.data.tables.reading import read_bucket
from vista.data.tables.rows import ROW_GROUP

KNOB = 30_000


def settings(folder: Path, max_rows: int = KNOB) -> IngestSettings:
    return IngestSettings(
        run_dir=str(folder / "run"),
        run="r",
        commit=1,
        user_kind="int64",
        num_buckets=1,
        item_shards=1,
        roots={name: str(folder / name) for name in ("history", "impressions", "items")},
        rules=Rules(0, 2**62, ("a",), ()),
        chunk_rows=max_rows,
        max_rows=max_rows,
        skip_bad_files=False,
    )


def spilled(folder: Path, rows: int, users: int) -> list:
    rng = np.random.default_rng(0)
    pieces = []
    for i in range(rows // (KNOB // 2)):
        n = KNOB // 2
        columns = {
            "user": rng.integers(0, users, n),
            "item": rng.integers(0, 500, n),
            "time": rng.integers(0, 10**9, n),
            "request": rng.integers(0, 10**6, n),
            "action": np.ones(n, np.int32),
            "surface": np.zeros(n, np.int32),
            "file": np.zeros(n, np.int32),
        }
        pieces += write_chunk(folder / f"{i}.arrow", "events", np.zeros(n, np.int32), columns).values()
    return pieces


@pytest.mark.parametrize("users", [1, 2_000])
def test_a_bucket_or_a_user_many_times_larger_than_the_knob_is_sorted_within_it(tmp_path, users):
    def peak(times: int) -> int:
        folder = tmp_path / str(times)
        pieces = spilled(folder, times * KNOB, users)
        pool, old = pa.proxy_memory_pool(pa.system_memory_pool()), pa.default_memory_pool()
        pa.set_memory_pool(pool)
        tracemalloc.start()
        try:
            build_bucket(Bucket(0, tuple(pieces)), settings(folder))
            found = tracemalloc.get_traced_memory()[1] + pool.max_memory()
        finally:
            tracemalloc.stop()
            pa.set_memory_pool(old)
        files = RunDirectory(folder / "run").receipt("bucket-00000")["table_files"]
        times_of = [b.events.time for b in read_bucket(files, max_rows=10**9)]
        assert sum(map(len, times_of)) == times * KNOB
        return found

    # 600 bytes per row of the knob, and the row groups of the file that is written and of those that are merged.
    constant = 3 * ROW_GROUP * 48
    assert peak(8) < 600 * KNOB + constant
    assert peak(16) < 600 * KNOB + constant


def test_a_chunk_holds_every_row_in_the_piece_of_its_bucket(tmp_path):
    rng = np.random.default_rng(1)
    part = rng.integers(0, 70_000, 500).astype(np.int32)
    part[:300] %= 5
    value, name = np.arange(500), pa.array([f"n{i}" for i in range(500)])
    pieces = write_chunk(tmp_path / "c.arrow", "t", part, {"value": value, "name": name})
    assert sorted(pieces) == sorted(set(part.tolist()))
    for bucket, piece in pieces.items():
        (batch,) = read_pieces([piece])
        assert batch["value"].to_pylist() == value[part == bucket].tolist() and piece.rows == batch.num_rows
        assert batch["name"].to_pylist() == [f"n{i}" for i in value[part == bucket]]
    assert sum(p.rows for p in pieces.values()) == 500
    groups = groups_of(pieces.values(), 60)
    assert sum(len(g) for g in groups) == len(pieces)
    assert all(sum(p.rows for p in g) <= 60 or len(g) == 1 for g in groups)
    assert write_chunk(tmp_path / "none.arrow", "t", part[:0], {"value": value[:0]}) == {}
