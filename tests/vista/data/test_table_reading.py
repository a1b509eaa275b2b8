"""Laws of reading sorted table files: whatever the files, the batches are the same total history."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vista.data.events import COLUMNS, ORDER, Events
from vista.data.tables.appending import append
from vista.data.tables.commits import Addition, commit
from vista.data.tables.reading import read_bucket
from vista.data.tables.rows import DTYPES, HISTORY, IMPRESSIONS, ROW_GROUP, Rows, SortedWriter
from vista.data.tables.warehouse import TableExists, TableMissing, Warehouse
from vista.errors import DataError
from vista.jagged import lengths_between, starts_of


def random_events(rng: np.random.Generator, n: int, span: int) -> dict[str, np.ndarray]:
    limits = {"item": 4, "action": 3, "surface": 2, "time": span, "request": 2}
    return {name: rng.integers(0, limits[name], n).astype(dtype) for name, dtype in COLUMNS.items()}


def expected(user: np.ndarray, columns: dict[str, np.ndarray]) -> list[tuple]:
    """Every distinct event in contract order, by Python's own sort."""
    rows = zip(user.tolist(), *(columns[n].tolist() for n in ORDER), strict=True)
    return sorted(set(rows))


def flat(batches) -> list[tuple]:
    rows = []
    for batch in batches:
        user = np.repeat(batch.users, batch.events.lengths)
        rows += zip(user.tolist(), *(getattr(batch.events, n).tolist() for n in ORDER), strict=True)
    return rows


def of_sorted(user: np.ndarray, columns: dict[str, np.ndarray]) -> Rows:
    """From one user per row, rows of a user together."""
    starts = starts_of(user)
    return Rows(user[starts], lengths_between(starts, len(user)), dict(columns))


def write_sorted(
    path, user: np.ndarray, columns: dict[str, np.ndarray], by: tuple[str, ...], kind: str
) -> str:
    index = np.array(sorted(range(len(user)), key=lambda i: (user[i], *(columns[n][i] for n in by))), int)
    rows = of_sorted(user[index], {n: c[index] for n, c in columns.items()})
    with SortedWriter(str(path), HISTORY, kind, 0) as writer:
        writer.write(rows)
    return str(path)


@given(seed=st.integers(0, 10_000), files=st.integers(1, 4), max_rows=st.integers(1, 40), text=st.booleans())
def test_any_split_into_files_and_any_batch_size_give_the_same_history(
    tmp_path_factory, seed, files, max_rows, text
):
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("split")
    n = int(rng.integers(0, 120))
    user = rng.integers(-3, 3, n)
    user = np.array([f"ü{u}" for u in user], object) if text else user
    columns = random_events(rng, n, span=6)
    part = rng.integers(0, files, n)
    # Sorted by (user, time) alone: ties stand in any order, as in another engine's table.
    paths = [
        write_sorted(
            folder / f"{i}.parquet",
            user[part == i],
            {c: v[part == i] for c, v in columns.items()},
            ("time",),
            "string" if text else "int64",
        )
        for i in range(files)
    ]
    batches = list(read_bucket(paths, max_rows=max_rows))
    assert flat(batches) == expected(user, columns)
    assert all(len(b.events) <= max_rows for b in batches)
    for before, after in zip(batches, batches[1:], strict=False):
        assert before.continues == (before.users[-1] == after.users[0])
        # A user is cut only where it does not fit a batch of its own.
        assert not before.continues or (len(before.users) == 1 and len(before.events) == max_rows)
    assert not batches or not batches[-1].continues


def test_only_the_wanted_users_are_read(tmp_path):
    rng = np.random.default_rng(0)
    n = 5_000
    user, columns = rng.integers(0, 200, n), random_events(rng, n, span=1_000)
    path = write_sorted(tmp_path / "a.parquet", user, columns, ORDER, "int64")
    wanted = np.array([150, 3, 999_999, 77])
    keep = np.isin(user, wanted)
    found = flat(read_bucket([path], max_rows=64, users=wanted))
    assert found == expected(user[keep], {c: v[keep] for c, v in columns.items()})


def test_a_file_out_of_order_is_refused_by_name(tmp_path):
    columns = random_events(np.random.default_rng(0), 3, span=5)
    path = str(tmp_path / "bad.parquet")
    with SortedWriter(path, HISTORY, "int64", 0) as writer:
        writer.write(Rows(np.array([2, 1]), np.array([1, 2]), columns))
    with pytest.raises(DataError, match=r"bad\.parquet.*order of user_id.*vista ingest"):
        list(read_bucket([path], max_rows=10))


def test_a_missing_file_is_a_typed_error(tmp_path):
    with pytest.raises(DataError, match="gone"):
        list(read_bucket([str(tmp_path / "gone.parquet")], max_rows=10))


def test_a_commit_is_one_snapshot_and_since_names_only_what_it_added(tmp_path):
    warehouse = Warehouse(tmp_path / "w").create(num_buckets=2, actions=("a", "b"))
    users = np.array([5, -7, 8])
    buckets = np.array([1, 1, 0])
    events = Events.of([2, 1, 3], item=np.arange(6), time=np.array([3, 1, 2, 9, 8, 7]))
    first = append(warehouse, users, events, buckets, "one")
    assert Warehouse(tmp_path / "w").open().snapshot() == first
    second = append(
        warehouse, np.array([8]), Events.of([1], item=np.array([60]), time=np.array([10])), np.array([0])
    )
    assert first != second
    added = warehouse.bucket_files(since=first)
    assert sorted(added) == [0] and [f.rows for f in added[0]] == [1]
    assert warehouse.bucket_files(snapshot=first)[0][0].max_time == 9
    batch = next(read_bucket(warehouse.bucket_files()[0], max_rows=100))
    assert batch.users.tolist() == [8] and batch.events.time.tolist() == [7, 8, 9, 10]
    items = warehouse.read_items()
    assert items.item.tolist() == [0, 1, 2, 3, 4, 5, 60] and items.events.sum() == 7


def test_creating_twice_and_opening_nothing_are_typed_errors(tmp_path):
    with pytest.raises(TableMissing, match="vista ingest"):
        Warehouse(tmp_path / "none").open()
    warehouse = Warehouse(tmp_path / "w").create(num_buckets=2)
    with pytest.raises(TableExists, match="vista ingest"):
        warehouse.create(num_buckets=2)
    with pytest.raises(DataError, match="num_buckets"):
        Warehouse(tmp_path / "x").create(num_buckets=0)


@pytest.mark.parametrize(("users", "files"), [(1, 1), (1, 3), (400, 3)])
def test_memory_follows_the_knob_and_not_the_user_or_the_bucket(tmp_path, users, files):
    rng = np.random.default_rng(0)
    knob = 20_000

    def peak(rows: int) -> int:
        paths = []
        for i in range(files):
            n = rows // files
            user, time = np.sort(rng.integers(0, users, n)), rng.integers(0, 10**9, n)
            order = np.lexsort((time, user))
            columns = random_events(rng, n, span=5)
            columns = {**columns, "time": time[order], "item": rng.integers(0, 2**40, n)}
            path = str(tmp_path / f"{rows}-{i}.parquet")
            with SortedWriter(path, HISTORY, "int64", 0) as writer:
                writer.write(of_sorted(user, columns))
            paths.append(path)
        pool, old = pa.proxy_memory_pool(pa.system_memory_pool()), pa.default_memory_pool()
        pa.set_memory_pool(pool)
        tracemalloc.start()
        try:
            total = sum(len(batch.events) for batch in read_bucket(paths, max_rows=knob))
            assert total == rows // files * files
            return tracemalloc.get_traced_memory()[1] + pool.max_memory()
        finally:
            tracemalloc.stop()
            pa.set_memory_pool(old)

    # 400 bytes per row of the knob, and a row group per file; see read_sorted.
    constant = files * ROW_GROUP * 48
    assert peak(8 * knob) < 400 * knob + constant
    assert peak(32 * knob) < 400 * knob + constant


def test_a_warehouse_is_found_again_by_path_by_catalog_properties_and_by_pickle(tmp_path):
    (tmp_path / "shared").mkdir()
    properties = {
        "name": "prod",
        "namespace": "recsys",
        "type": "sql",
        "uri": f"sqlite:///{tmp_path}/shared/my.db",
        "warehouse": f"file://{tmp_path}/shared",
    }
    made = Warehouse(properties).create(user_kind="string", num_buckets=2, actions=("a",), surfaces=("home",))
    users = np.array(["zoë", "adam"], object)
    append(made, users, Events.of([1, 1], item=[1, 2], time=[5, 6]), np.array([0, 0]))
    for again in (Warehouse(properties), pickle.loads(pickle.dumps(made))):
        assert again.open().snapshot() == made.snapshot() and again.surfaces == ("home",)
        batch = next(read_bucket(again.bucket_files()[0], max_rows=10, users=["zoë", "nobody"]))
        assert batch.users.tolist() == ["zoë"] and batch.events.item.tolist() == [1]


def test_impressions_are_read_as_they_were_at_a_history_snapshot(tmp_path):
    warehouse = Warehouse(tmp_path / "w").create(num_buckets=1)
    seen = []
    for run in ("one", "two"):
        shown = warehouse.data_uri(IMPRESSIONS, warehouse.commit_number + 1, run, 0)
        columns = {n: np.array([7], DTYPES[n]) for n in IMPRESSIONS.order}
        with SortedWriter(shown, IMPRESSIONS, "int64", 0) as writer:
            writer.write(Rows(np.array([1]), np.array([1]), columns))
        events = warehouse.data_uri(HISTORY, warehouse.commit_number + 1, run, 0)
        with SortedWriter(events, HISTORY, "int64", 0) as writer:
            columns = {n: np.array([7], DTYPES[n]) for n in ORDER}
            writer.write(Rows(np.array([1]), np.array([1]), columns))
        seen.append(commit(warehouse, Addition(run, history=[events], impressions=[shown])))

    def files(**which) -> list[str]:
        found = warehouse.bucket_files(kind=IMPRESSIONS, **which)
        return [f.path.split("-")[-2] for fs in found.values() for f in fs]

    assert (
        files() == ["one", "two"] and files(snapshot=seen[0]) == ["one"] and files(since=seen[0]) == ["two"]
    )
    assert files(since=seen[1]) == []
