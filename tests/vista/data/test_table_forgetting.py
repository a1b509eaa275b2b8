"""Law 11: what is forgotten is nowhere. And: another engine's table is used as it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cache_store.format.keys import bucket_of
from vista.data.events import Events
from vista.data.tables import ledger, pruning
from vista.data.tables.adopting import adopt
from vista.data.tables.appending import append
from vista.data.tables.commits import Addition, commit
from vista.data.tables.forgetting import forget_users
from vista.data.tables.pruning import prune
from vista.data.tables.reading import read_bucket, read_impressions
from vista.data.tables.rows import IMPRESSIONS, Rows, SortedWriter
from vista.data.tables.warehouse import Warehouse
from vista.errors import DataError

MARKED = 0x5EC2E7_0123456789 >> 8
"""A user id whose eight bytes occur nowhere else."""


def warehouse_of(folder: Path, text: bool = False, commits: int = 2) -> tuple[Warehouse, np.ndarray]:
    rng = np.random.default_rng(0)
    users = np.arange(1_000, 1_030)
    users[7] = MARKED
    users = np.sort(users)
    if text:
        users = np.array([f"user {u}" for u in users], object)
        users.sort()
    warehouse = Warehouse(folder).create(user_kind="string" if text else "int64", num_buckets=3)
    for c in range(commits):
        lengths = rng.integers(1, 20, len(users))
        n = int(lengths.sum())
        events = Events.of(lengths, item=rng.integers(0, 99, n), time=1_000 * c + rng.integers(0, 900, n))
        append(warehouse, users, events, bucket_of(users, 3), f"run{c}", actions=("x",))
    return warehouse, users


def all_users(warehouse: Warehouse) -> set:
    files = warehouse.bucket_files().values()
    return {u for fs in files for b in read_bucket(fs, max_rows=50) for u in b.users.tolist()}


def holders(folder: Path, needle: bytes) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and needle in p.read_bytes()]


@pytest.mark.parametrize("text", [False, True])
def test_what_is_forgotten_is_in_no_file_and_all_else_stays(tmp_path, text):
    warehouse, users = warehouse_of(tmp_path / "w", text)
    user = f"user {MARKED}" if text else MARKED
    needle = user.encode() if text else int(user).to_bytes(8, "little")
    before = warehouse.snapshot()
    total = sum(f.rows for fs in warehouse.bucket_files().values() for f in fs)
    assert holders(tmp_path / "w", needle)
    done = forget_users(warehouse, [user], bucket_of([user], 3))
    assert holders(tmp_path / "w", needle) == []
    assert all_users(warehouse) == set(users.tolist()) - {user}
    assert done["history"].files_rewritten == 2 and done["history"].rows > 0
    after = sum(f.rows for fs in warehouse.bucket_files().values() for f in fs)
    assert after == total - done["history"].rows
    # Nothing of what was there is taken for new, though its files are.
    assert warehouse.snapshot() != before and warehouse.bucket_files(since=before) == {}
    again = forget_users(warehouse, [user])
    assert again["history"].rows == 0 and again["history"].files_deleted == 0


def test_forgetting_reaches_impressions_and_every_bucket_without_a_hint(tmp_path):
    warehouse, users = warehouse_of(tmp_path / "w")
    uri = warehouse.data_uri(IMPRESSIONS, warehouse.commit_number + 1, "shown", 1)
    n = 4
    columns = {name: np.arange(n) for name in ("time", "request", "item")}
    columns |= {"position": np.zeros(n, np.int32), "action": np.zeros(n, np.int32)}
    mine = np.sort(np.array([users[0], MARKED]))
    with SortedWriter(uri, IMPRESSIONS, "int64", 1) as writer:
        writer.write(Rows(mine, np.array([1, 3]), {**columns, "time": np.array([5, 1, 2, 3])}))
    commit(warehouse, Addition("shown", impressions=[uri]))
    done = forget_users(warehouse, np.array([MARKED, users[3]]))
    assert done["impressions"].rows == (3 if mine[1] == MARKED else 1)
    assert MARKED not in all_users(warehouse) and users[3] not in all_users(warehouse)
    left = [
        b.users.tolist() for b in read_impressions(warehouse.bucket_files(kind=IMPRESSIONS)[1], max_rows=9)
    ]
    assert left == [[users[0]]]
    assert holders(tmp_path / "w", MARKED.to_bytes(8, "little")) == []


def test_a_bucket_whose_users_are_all_forgotten_is_gone(tmp_path):
    warehouse, users = warehouse_of(tmp_path / "w", commits=1)
    forget_users(warehouse, users)
    assert warehouse.bucket_files() == {} and all_users(warehouse) == set()
    append(warehouse, users[:1], Events.of([1], item=[1], time=[2**42]), bucket_of(users[:1], 3), "later")
    assert all_users(warehouse) == {users[0]}


def test_forgetting_is_refused_where_a_tag_would_keep_the_rows(tmp_path):
    warehouse, users = warehouse_of(tmp_path / "w", commits=1)
    warehouse.history.manage_snapshots().create_tag(warehouse.snapshot(), "audit").commit()
    with pytest.raises(DataError, match="audit.*vista forget"):
        forget_users(warehouse.refresh(), users[:1])
    with pytest.raises(DataError, match="int64 user ids"):
        forget_users(warehouse, ["someone"])


def test_pruning_deletes_what_no_snapshot_needs_and_leaves_runs_under_way(tmp_path):
    warehouse, _ = warehouse_of(tmp_path / "w")
    number, data = warehouse.commit_number, tmp_path / "w" / "vista" / "history" / "data" / "bucket=00000"
    orphan, under_way = (
        data / f"{number:08d}-dead-00000.parquet",
        data / f"{number + 1:08d}-live-00000.parquet",
    )
    orphan.write_bytes(b"x")
    under_way.write_bytes(b"x")
    before = all_users(warehouse)
    assert prune(warehouse, (), before_ms=0).files == []  # too young to tell from those of a job under way
    assert (
        prune(warehouse, (), before_ms=2**62, dry_run=True).files == [f"file://{orphan}"] and orphan.exists()
    )
    assert prune(warehouse, (), before_ms=2**62).files == [f"file://{orphan}"]
    assert under_way.exists() and not orphan.exists() and all_users(warehouse) == before


def test_what_pruning_remembers_of_gone_snapshots_is_bounded_and_of_history_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(pruning, "KEPT_SNAPSHOTS", 3)
    warehouse, users = warehouse_of(tmp_path / "w")
    with warehouse.history.transaction() as history, warehouse.sources.transaction() as sources:
        for table in (history, sources):  # as earlier versions left it in all tables
            table.set_properties({"vista.expired": '{"5": 1}'})
    seen = []
    for c in range(5):
        one = Events.of([1], item=[1], time=[10_000 + c])
        append(warehouse, users[:1], one, bucket_of(users[:1], 3), f"more{c}", actions=("x",))
        seen.append(warehouse.snapshot())
        row = ledger.LedgerRow(f"log{c}", 1, "d", 1, "events")
        commit(warehouse, Addition(f"log{c}", sources=[row]))
        prune(warehouse, (), before_ms=2**62)
        warehouse.refresh()
    assert len(json.loads(warehouse.history.properties["vista.expired"])) == 3
    assert "vista.expired" not in warehouse.sources.properties
    assert [f.commit for fs in warehouse.bucket_files(since=seen[-2]).values() for f in fs] == [
        warehouse.commit_number - 1
    ]
    with pytest.raises(DataError, match="vista summarize"):
        warehouse.bucket_files(since=seen[0])


def foreign(folder: Path, users: np.ndarray, buckets: np.ndarray) -> Warehouse:
    """A history table as another engine writes it: PyIceberg's own writer, sorted by (user, time) alone."""
    from pyiceberg.catalog import load_catalog

    from vista.data.tables.rows import HISTORY
    from vista.data.tables.schemas import bucket_spec, table_schema

    folder.mkdir(parents=True)
    catalog = load_catalog(
        "vista", type="sql", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}"
    )
    catalog.create_namespace("vista")
    schema = table_schema(HISTORY, "int64")
    table = catalog.create_table("vista.history", schema, partition_spec=bucket_spec(schema))
    n = len(users)
    columns = {
        "bucket": buckets.astype(np.int32),
        "user_id": users,
        "time": np.arange(n) // 3,
        "request": np.zeros(n, np.int64),
        "item": np.arange(n)[::-1] % 5,
        "action": np.ones(n, np.int32),
        "surface": np.zeros(n, np.int32),
    }
    data = pa.table(columns, schema=schema.as_arrow()).sort_by(
        [("user_id", "ascending"), ("time", "ascending")]
    )
    table.append(data)
    table.append(data.slice(0, n // 2))
    return Warehouse(folder)


def test_a_table_of_another_engine_is_used_as_it_is(tmp_path):
    users = np.repeat(np.arange(20), 6)
    buckets = bucket_of(users, 4)
    warehouse = foreign(tmp_path / "w", users, buckets)
    with pytest.raises(DataError, match="vista ingest --adopt"):
        warehouse.open()
    adopt(warehouse, num_buckets=4, bucket_of=bucket_of, actions=("x",))
    assert Warehouse(tmp_path / "w").open().num_buckets == 4
    rows = []
    for files in warehouse.bucket_files().values():
        assert len(files) >= 1
        for batch in read_bucket(files, max_rows=7):
            user = np.repeat(batch.users, batch.events.lengths)
            rows += zip(user.tolist(), batch.events.time.tolist(), batch.events.item.tolist(), strict=True)
    n = len(users)
    wanted = set(
        zip(users.tolist(), (np.arange(n) // 3).tolist(), (np.arange(n)[::-1] % 5).tolist(), strict=True)
    )
    assert len(rows) == len(wanted) and set(rows) == wanted
    before = warehouse.snapshot()
    append(warehouse, np.array([3]), Events.of([1], item=[9], time=[999]), bucket_of(np.array([3]), 4))
    assert sum(f.rows for fs in warehouse.bucket_files(since=before).values() for f in fs) == 1


def test_a_table_with_other_buckets_is_not_adopted(tmp_path):
    users = np.repeat(np.arange(20), 6)
    warehouse = foreign(tmp_path / "w", users, (users % 4).astype(np.int32))
    with pytest.raises(DataError, match="users of bucket.*vista ingest"):
        adopt(warehouse, num_buckets=4, bucket_of=bucket_of, actions=("x",))
