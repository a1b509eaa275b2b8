"""Laws of ingest: what comes in is in the tables once, or in the dead letters, whatever the order and the chunks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_logs import LOCAL, T0, content, expected, log, options, write

from beam_jobs.errors import OptionsError
from beam_jobs.ingest import job as ingest
from vista.data.logs.reading import Reading
from vista.data.logs.values import hash_strings
from vista.data.tables.reading import read_impressions
from vista.data.tables.rows import IMPRESSIONS
from vista.data.tables.warehouse import Warehouse
from vista.errors import DataError


@pytest.mark.parametrize("max_rows", [4_000_000, 60])
def test_every_event_is_in_the_table_once_whatever_the_files_and_chunks(tmp_path, max_rows):
    rng = np.random.default_rng(1)
    tables = [log(rng, 500), log(rng, 300), log(rng, 0)]
    record = ingest.run(options(tmp_path, write(tmp_path / "in", *tables), max_rows=max_rows), LOCAL)
    assert content(tmp_path) == expected(*tables)
    counts = record.counts
    assert record.exit_code == 0 and counts["events_read"] == 800 and counts["empty_files"] == 1
    assert counts["events_written"] + counts["events_repeated"] == 800
    assert counts["events"] == len(content(tmp_path)) and counts["users"] == len(
        {r[0] for r in content(tmp_path)}
    )
    warehouse = Warehouse(tmp_path / "table").open()
    assert warehouse.actions == ("0", "1", "2") and warehouse.surfaces == ()
    items = warehouse.read_items()
    assert items.events.sum() == counts["events"] and len(items) == counts["items"]
    assert not (tmp_path / "run" / "spill").exists()
    assert len(warehouse.history.snapshots()) == 1


def test_strings_become_hashes_names_and_vocabularies(tmp_path):
    table = log(np.random.default_rng(2), 400, text=True)
    record = ingest.run(options(tmp_path, write(tmp_path / "in", table), chunk_rows=90, max_rows=100), LOCAL)
    warehouse = Warehouse(tmp_path / "table").open()
    assert warehouse.user_kind == "string"
    assert warehouse.actions == tuple(f"actionß{i}" for i in range(3))
    assert warehouse.surfaces == tuple(f"surfaceß{i}" for i in range(4))
    items = warehouse.read_items()
    assert set(items.name) == set(table["item_id"].to_pylist())
    assert np.array_equal(hash_strings(items.name.tolist()), items.item)
    rows = {(r[0], r[1], r[4]) for r in content(tmp_path)}
    item = hash_strings(table["item_id"].to_pylist())
    assert rows == set(
        zip(table["user_id"].to_pylist(), item.tolist(), table["timestamp_ms"].to_pylist(), strict=True)
    )
    assert record.counts["events"] == len(content(tmp_path))


def test_the_same_files_again_add_nothing_and_late_events_are_taken(tmp_path):
    rng = np.random.default_rng(3)
    first = log(rng, 400)
    late = pa.table({**{n: first[n] for n in first.column_names}, "timestamp_ms": first["timestamp_ms"]})
    shifted = late.set_column(4, "timestamp_ms", pa.compute.subtract(late["timestamp_ms"], 500)).slice(0, 150)
    ingest.run(options(tmp_path, write(tmp_path / "in", first)), LOCAL)
    before = Warehouse(tmp_path / "table").open().snapshot()

    again = ingest.run(options(tmp_path, write(tmp_path / "in", first), "again"), LOCAL)
    assert again.counts["known_files"] == 1 and again.counts["events_read"] == 0 and again.exit_code == 0
    forced = ingest.run(options(tmp_path, write(tmp_path / "in", first), "forced", again=True), LOCAL)
    assert forced.counts["events_written"] == 0 and forced.counts["events_in_table"] > 0
    assert Warehouse(tmp_path / "table").open().snapshot() == before

    both = pa.concat_tables([shifted, first.slice(0, 100)])
    second = ingest.run(options(tmp_path, write(tmp_path / "in", both, name="late"), "late"), LOCAL)
    assert content(tmp_path) == expected(first, both)
    assert second.counts["events_in_table"] > 0 and second.counts["events_late"] > 0
    warehouse = Warehouse(tmp_path / "table").open()
    added = [f for files in warehouse.bucket_files(since=before).values() for f in files]
    assert sum(f.rows for f in added) == second.counts["events_written"]
    assert warehouse.read_items().events.sum() == len(content(tmp_path))


BAD = {
    "null_user": {"user_id": None},
    "null_item": {"item_id": None},
    "null_action": {"action": None},
    "unknown_action": {"action": -1},
    "null_time": {"timestamp_ms": None},
    "negative_time": {"timestamp_ms": -5},
    "time_too_early": {"timestamp_ms": T0 // 1_000},
    "time_too_late": {"timestamp_ms": T0 * 1_000},
    "null_surface": {"surface": None},
    "surface_out_of_range": {"surface": -2},
}


def test_bad_rows_are_dead_letters_with_file_row_reason_and_values(tmp_path):
    good = log(np.random.default_rng(4), 50).to_pylist()
    rows = list(good)
    for i, change in enumerate(BAD.values()):
        rows.insert(3 * i, {**good[0], **change})
    table = pa.Table.from_pylist(rows)
    record = ingest.run(options(tmp_path, write(tmp_path / "in", table, group=17), chunk_rows=16), LOCAL)
    letters = pq.read_table(tmp_path / "run" / "dead-letters.parquet").to_pylist()
    assert record.exit_code == 3 and record.counts["dead_letters"] == len(BAD) == record.counts["events_dead"]
    assert {x["row"]: x["reason"] for x in letters} == {3 * i: reason for i, reason in enumerate(BAD)}
    for x in letters:
        assert x["source"].endswith("log-0.parquet")
        wanted = {"surface": None, **BAD[x["reason"]]}
        values = json.loads(x["detail"])
        assert all(values[k] == v for k, v in BAD[x["reason"]].items()) and wanted
    counts = record.counts
    assert counts["events_read"] == counts["events_written"] + counts["events_repeated"] + len(BAD)
    assert content(tmp_path) == expected(pa.Table.from_pylist(good))


def test_users_that_no_store_can_hold_are_dead_letters(tmp_path):
    table = log(np.random.default_rng(4), 20, text=True)
    users = ["", "x" * 512, *table["user_id"].to_pylist()[2:]]
    table = table.set_column(0, "user_id", pa.array(users))
    record = ingest.run(options(tmp_path, write(tmp_path / "in", table)), LOCAL)
    assert record.counts["dead_letters"] == 2 and record.exit_code == 3


def broken(folder: Path, how: str) -> str:
    """One input file with a fault of the whole file; its glob."""
    good = log(np.random.default_rng(5), 30)
    path = folder / "log-0.parquet"
    pattern = write(folder, good)
    if how == "missing column":
        pq.write_table(good.drop_columns(["action"]), path)
    elif how == "wrong type":
        pq.write_table(good.set_column(1, "item_id", pa.array([True] * 30)), path)
    elif how == "seconds":
        seconds = pa.array(good["timestamp_ms"].to_numpy() // 1_000)
        pq.write_table(good.set_column(4, "timestamp_ms", seconds), path)
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "not parquet":
        path.write_text("user_id,item_id\n1,2\n")
    elif how == "no file":
        path.unlink()
    elif how == "two kinds":
        write(folder, good, log(np.random.default_rng(5), 30, text=True))
    return pattern


FAULTS = {
    "missing column": ("MissingColumn", ["log-0.parquet", "'action'", "user_id", "--column"]),
    "wrong type": ("WrongType", ["log-0.parquet", "'item_id'", "int64 or string", "bool"]),
    "seconds": ("WrongTime", ["log-0.parquet", "'timestamp_ms'", "--time-unit s", "--min-time"]),
    "empty": ("UnreadableFile", ["log-0.parquet", "--skip-bad-files"]),
    "not parquet": ("UnreadableFile", ["log-0.parquet", "--skip-bad-files"]),
    "no file": ("DataError", ["log-*.parquet", "at least one log"]),
    "two kinds": ("WrongType", ["log-1.parquet", "'user_id'", "int", "string"]),
}


@pytest.mark.parametrize("how", FAULTS)
def test_faults_of_whole_files_are_typed_errors_before_anything_is_written(tmp_path, how):
    name, parts = FAULTS[how]
    with pytest.raises(DataError) as caught:
        ingest.run(options(tmp_path, broken(tmp_path / "in", how)), LOCAL)
    assert type(caught.value).__name__ == name and caught.value.exit_code == 2
    for part in [*parts, "vista ingest"]:
        assert part in str(caught.value)
    assert not (tmp_path / "table").exists()


def test_all_unreadable_files_are_listed_and_can_be_skipped_with_a_count(tmp_path):
    good = log(np.random.default_rng(6), 60)
    pattern = write(tmp_path / "in", good, good.slice(0, 10), good.slice(0, 10))
    for i in (1, 2):
        (tmp_path / "in" / f"log-{i}.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match=r"(?s)2 of 3 files.*log-1.*log-2"):
        ingest.run(options(tmp_path, pattern), LOCAL)
    record = ingest.run(options(tmp_path, pattern, "skip", skip_bad_files=True), LOCAL)
    assert record.exit_code == 3 and record.counts["bad_files"] == 2
    letters = pq.read_table(tmp_path / "skip" / "dead-letters.parquet").to_pylist()
    assert [x["reason"] for x in letters] == ["unreadable_file"] * 2
    assert content(tmp_path) == expected(good)


def test_pages_that_cannot_be_read_are_an_error_or_counted_rows(tmp_path):
    good = log(np.random.default_rng(6), 400)
    path = tmp_path / "in" / "log-0.parquet"
    pattern = write(tmp_path / "in", good, group=200)
    start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"log-0\.parquet.*readable rows.*--skip-bad-files"):
        ingest.run(options(tmp_path, pattern), LOCAL)
    assert not Warehouse(tmp_path / "table").exists()
    record = ingest.run(options(tmp_path, pattern, "skip", skip_bad_files=True), LOCAL)
    assert record.exit_code == 3 and record.counts["dead_letters"] == 200
    assert content(tmp_path) == expected(good.slice(0, 200))


def test_column_names_are_mapped_and_optional_columns_may_be_missing(tmp_path):
    table = log(np.random.default_rng(8), 100)
    renamed = table.select(["user_id", "item_id", "action", "timestamp_ms"])
    renamed = renamed.rename_columns(["who", "what", "did", "when"])
    when = renamed["when"].cast(pa.timestamp("ms")).cast(pa.timestamp("us"))
    renamed = renamed.set_column(3, "when", when)
    names = {"user_id": "who", "item_id": "what", "action": "did", "timestamp_ms": "when"}
    ingest.run(options(tmp_path, write(tmp_path / "in", renamed), log=Reading(columns=names)), LOCAL)
    wanted = {
        (r["user_id"], r["item_id"], 1 << r["action"], 0, r["timestamp_ms"], 0) for r in table.to_pylist()
    }
    assert content(tmp_path) == sorted(wanted)
    with pytest.raises(DataError, match="expected names among.*found person"):
        ingest.run(
            options(tmp_path, write(tmp_path / "in", table), "x", log=Reading(columns={"person": "who"})),
            LOCAL,
        )


def test_vocabularies_grow_at_the_end_and_a_given_one_is_the_whole(tmp_path):
    def table(actions: list) -> pa.Table:
        n = len(actions)
        columns = {"user_id": [1] * n, "item_id": range(n), "timestamp_ms": [T0] * n}
        return pa.table({**{k: pa.array(v) for k, v in columns.items()}, "action": pa.array(actions)})

    one = write(tmp_path / "in", table([["view", "save"], ["view"], []]), name="one")
    two = write(tmp_path / "in", table([["buy"], ["save"], ["view", "buy"]]), name="two")
    three = write(tmp_path / "in", table(["like", "buy"]), name="three")
    ingest.run(options(tmp_path, one), LOCAL)
    assert Warehouse(tmp_path / "table").open().actions == ("save", "view")
    assert [r[2] for r in content(tmp_path)] == [0b11, 0b10, 0]
    ingest.run(options(tmp_path, two, "two"), LOCAL)
    assert Warehouse(tmp_path / "table").open().actions == ("save", "view", "buy")
    record = ingest.run(options(tmp_path, three, "three", actions=("save", "view", "buy")), LOCAL)
    assert record.exit_code == 3 and record.counts["dead_letters"] == 1
    with pytest.raises(DataError, match="continuation of save, view, buy"):
        ingest.run(options(tmp_path, three, "four", actions=("buy",)), LOCAL)
    many = write(tmp_path / "in", table([f"a{i}" for i in range(40)]), name="many")
    with pytest.raises(DataError, match="at most 31.*found 43"):
        ingest.run(options(tmp_path, many, "five"), LOCAL)


def impressions(rows: list[tuple], times: bool) -> pa.Table:
    names = ["request_id", "user_id", "item_id", "position", "actions", "timestamp_ms"]
    table = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])
    return table if times else table.drop_columns(["timestamp_ms"])


@pytest.mark.parametrize("times", [True, False])
def test_impressions_are_sorted_by_request_and_take_their_time_from_events_where_they_have_none(
    tmp_path, times
):
    events = pa.Table.from_pylist(
        [
            {"user_id": 1, "item_id": 5, "action": 0, "timestamp_ms": T0 + 9, "request_id": 70},
            {"user_id": 1, "item_id": 6, "action": 1, "timestamp_ms": T0 + 3, "request_id": 70},
            {"user_id": 2, "item_id": 5, "action": 1, "timestamp_ms": T0 + 1, "request_id": 71},
        ]
    )
    rows = [
        (70, 1, 9, 2, [], T0 + 3),
        (70, 1, 5, 1, [0, 1], T0 + 3),
        (71, 2, 5, 0, [1], T0 + 1),
        (71, 2, 5, 0, [1], T0 + 1),
        (70, 1, 6, 0, None, T0 + 3),
        (99, 2, 4, 0, [], T0 + 2),
    ]
    shown = write(tmp_path / "in", impressions(rows, times), name="shown")
    record = ingest.run(
        options(tmp_path, write(tmp_path / "in", events), impressions=(shown,), actions=("click", "save")),
        LOCAL,
    )
    warehouse = Warehouse(tmp_path / "table").open()
    found = []
    for files in warehouse.bucket_files(kind=IMPRESSIONS).values():
        for b in read_impressions(files, max_rows=100):
            user = np.repeat(b.users, np.diff(b.offsets))
            columns = (user, b.time, b.request, b.item, b.position, b.action)
            found += zip(*(c.tolist() for c in columns), strict=True)
    wanted = [
        (1, T0 + 3, 70, 6, 0, 0),
        (1, T0 + 3, 70, 5, 1, 3),
        (1, T0 + 3, 70, 9, 2, 0),
        (2, T0 + 1, 71, 5, 0, 2),
    ]
    if times:
        wanted.append((2, T0 + 2, 99, 4, 0, 0))
    assert sorted(found, key=lambda r: (r[0], r[1], r[4])) == wanted
    assert record.counts["impressions_repeated"] == 1
    assert record.counts["impressions_dead"] == (0 if times else 1) and record.exit_code == (
        0 if times else 3
    )


def test_item_files_name_numbered_items_and_list_the_untouched(tmp_path):
    table = log(np.random.default_rng(9), 50)
    events, (known, other) = write(tmp_path / "in", table), table["item_id"].unique().to_pylist()[:2]
    names = pa.table(
        {"item_id": pa.array([known, 998, 999]), "name": pa.array(["three", "four", "never touched"])}
    )
    path = write(tmp_path / "in", names, name="items")
    ingest.run(options(tmp_path, events, items=(path,)), LOCAL)
    items = Warehouse(tmp_path / "table").open().read_items()
    by_id = dict(zip(items.item.tolist(), zip(items.name, items.events.tolist(), strict=True), strict=True))
    assert by_id[999] == ("never touched", 0) and by_id[known][0] == "three" and by_id[known][1] > 0
    assert by_id[other][0] is None


def test_options_out_of_range_and_another_number_of_buckets_are_refused(tmp_path):
    with pytest.raises(OptionsError, match="--memory-rows"):
        options(tmp_path, "x", max_rows=0)
    ingest.run(options(tmp_path, write(tmp_path / "in", log(np.random.default_rng(1), 30))), LOCAL)
    more = write(tmp_path / "in", log(np.random.default_rng(2), 30), name="more")
    with pytest.raises(OptionsError, match="--buckets 4"):
        ingest.run(options(tmp_path, more, "two", num_buckets=8), LOCAL)
