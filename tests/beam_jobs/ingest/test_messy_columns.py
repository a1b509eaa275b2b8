"""Messy Parquet, Arrow and ORC: the same as of text (``test_messy_logs``), and folders as others write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.orc as orc
import pyarrow.parquet as pq
import pytest
from messy import HEAD, T0, letters, log, peak_mb, run, tables, users

from beam_jobs.ingest import job as ingest
from beam_jobs.ingest.options import IngestOptions
from vista.data.logs.reading import Reading
from vista.data.logs.schema import MissingColumn, UnreadableFile, WrongTime
from vista.data.tables import rows


@pytest.mark.parametrize("column", ["user_id", "timestamp_ms"])
def test_rows_that_a_footer_states_and_a_column_has_no_values_for_are_not_lost_in_silence(tmp_path, column):
    table = log()
    pq.write_table(
        table, tmp_path / "a.parquet", compression="none", use_dictionary=False, write_statistics=False
    )
    whole = bytearray((tmp_path / "a.parquet").read_bytes())
    group = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0)
    at = group.column(table.schema.names.index(column)).data_page_offset + 8  # the page's number of values
    assert whole[at] == 2 * table.num_rows
    whole[at] = 0
    (tmp_path / "a.parquet").write_bytes(whole)
    with pytest.raises(UnreadableFile, match="skip-bad-files"):
        run(tmp_path, "a.parquet")
    (tmp_path / "b.csv").write_text(HEAD + f"7,1,0,{T0}\n")
    record = run(tmp_path, "a.parquet", "b.csv", skip_bad_files=True)
    assert record.exit_code == 3 and users(tmp_path) == [7]


@pytest.mark.parametrize("column", ["user_id", "timestamp_ms"])
def test_a_footer_whose_statistics_contradict_its_schema_ends_no_process(tmp_path, column):
    pq.write_table(log(), tmp_path / "a.parquet")
    raw, name = (tmp_path / "a.parquet").read_bytes(), column.encode()
    nullable = b"\x15\x04\x25\x02\x18" + bytes([len(name)]) + name  # int64, optional; then required
    assert raw.count(nullable) == 1
    (tmp_path / "a.parquet").write_bytes(raw.replace(nullable, nullable.replace(b"\x25\x02", b"\x25\x00")))
    with pytest.raises(UnreadableFile, match="skip-bad-files"):
        run(tmp_path, "a.parquet")
    with rows.open_sorted(str(tmp_path / "a.parquet")) as file:
        assert rows.wanted_groups(file, np.array([1])) == [0]


def test_numbered_actions_of_refused_rows_make_no_names(tmp_path):
    odd = log(action=pa.array([0, 30, 1, 29]), user_id=pa.array([1, None, 2, None]))
    pq.write_table(odd, tmp_path / "a.parquet")
    run(tmp_path, "a.parquet")
    assert tables(tmp_path).actions == ("0", "1")


def test_a_parquet_file_of_refused_rows_alone_fixes_no_kind(tmp_path):
    pq.write_table(log(user_id=pa.array([None] * 4, pa.int64())), tmp_path / "0.parquet")
    pq.write_table(log(user_id=pa.array(list("abcd"))), tmp_path / "1.parquet")
    assert run(tmp_path, "0.parquet").exit_code == 3
    assert run(tmp_path, "1.parquet").exit_code == 0 and users(tmp_path) == list("abcd")


def test_folders_are_read_as_spark_hive_and_delta_write_them(tmp_path):
    for name in ("day1.parquet", "day [2].parquet/part-0.parquet", "day3/surface=home/p.parquet",
                 "day3/surface=a%20b/p.parquet", "day3/_temporary/0/x.parquet", "day3/_delta_log/c.parquet",
                 "day3/.hidden.parquet"):  # fmt: skip
        (tmp_path / "l" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(log(1, user_id=pa.array([len(name)])), tmp_path / "l" / name)
    (tmp_path / "l" / "day3" / "notes.docx").write_text("no log")
    record = run(tmp_path, "l/*")
    assert record.counts["files"] == 4 and tables(tmp_path).surfaces == ("a b", "home")
    assert any("1 files below folders were left out" in note for note in record.notes)
    assert run(tmp_path, "l/day [2].parquet").counts["known_files"] == 1


def test_a_time_beyond_any_calendar_costs_its_row_alone(tmp_path):
    pq.write_table(log(timestamp_ms=pa.array([T0, 2**62, -(2**62), T0], pa.timestamp("us")).cast(pa.timestamp("us"))),
                   tmp_path / "a.parquet")  # fmt: skip
    odd = pa.array([T0 * 1000, 2**62, -(2**62), T0 * 1000], pa.timestamp("us"))
    pq.write_table(log(timestamp_ms=odd), tmp_path / "a.parquet")
    record = run(tmp_path, "a.parquet")
    assert users(tmp_path) == [0, 3] and letters(record) == {1: "time_too_late", 2: "negative_time"}


def test_a_column_that_is_there_twice_is_refused_optional_or_not(tmp_path):
    twice = pa.Table.from_arrays([*log().columns, log()["item_id"], log()["item_id"]],
                                 names=[*log().column_names, "surface", "surface"])  # fmt: skip
    pq.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(MissingColumn, match="'surface'.*found it twice"):
        run(tmp_path, "a.parquet")


@pytest.mark.parametrize("form", ["feather", "arrow", "stream.arrow", "orc"])
def test_other_columnar_files_give_the_events_that_parquet_gives(tmp_path, form):
    table = log(
        user_id=pa.array(list("abca")), timestamp_ms=pa.array([T0 + i for i in range(4)], pa.timestamp("ms"))
    )
    path = str(tmp_path / f"a.{form}")
    if form == "orc":
        orc.write_table(table, path)
    elif form == "feather":
        feather.write_feather(table, path)
    else:
        make = pa.ipc.new_stream if form.startswith("stream") else pa.ipc.new_file
        with pa.OSFile(path, "wb") as sink, make(sink, table.schema) as writer:
            writer.write_table(table)
    record = run(tmp_path, f"a.{form}")
    assert record.exit_code == 0 and users(tmp_path) == ["a", "a", "b", "c"]


def test_equal_rows_of_one_file_are_copies_with_a_word_or_events_where_asked(tmp_path):
    equal = log(user_id=pa.array([1] * 4), timestamp_ms=pa.array([T0] * 4))
    pq.write_table(equal, tmp_path / "a.parquet")
    pq.write_table(equal.slice(0, 2).append_column("surface", pa.array([0, 0])), tmp_path / "b.parquet")
    record = run(tmp_path, "a.parquet", "b.parquet")
    assert record.counts["events"] == 1 and record.counts["copies"] == 4
    assert any("3 of" in note and "--keep-repeats" in note for note in record.notes)
    (tmp_path / "other").mkdir()
    for name in "ab":
        (tmp_path / "other" / f"{name}.parquet").write_bytes((tmp_path / f"{name}.parquet").read_bytes())
    record = run(tmp_path / "other", "a.parquet", "b.parquet", log=Reading(keep_repeats=True))
    assert record.counts["events"] == 4 and record.counts["events_repeated"] == 2
    assert users(tmp_path / "other") == [1] * 4


def test_lists_of_different_lengths_cost_their_row_alone(tmp_path):
    lists = pa.table(
        {"user_id": [1, 2, 3], "item_id": [[1, 2], [3], []], "timestamp_ms": [[T0, T0], [T0, T0], []]}
    )
    pq.write_table(lists, tmp_path / "a.parquet")
    record = run(tmp_path, "a.parquet", log=Reading(explode=("item_id", "timestamp_ms"), action_is="view"))
    assert users(tmp_path) == [1, 1] and list(letters(record).values()) == ["broken_line"]


def test_a_text_of_a_megabyte_in_thousands_of_rows_is_held_once(tmp_path):
    n, wide = 1_500, "x" * 2**20  # as a dictionary, and one by one; neither is made in memory here
    coded = pa.DictionaryArray.from_arrays(pa.array([0] * (n - 1) + [1], pa.int32()), [wide, "fine"])
    pq.write_table(log(n, user_id=coded), tmp_path / "a.parquet", store_schema=False)
    few = log(user_id=pa.array([wide] * 4))
    with pq.ParquetWriter(tmp_path / "b.parquet", few.schema, use_dictionary=False) as writer:
        for _ in range(50):
            writer.write_table(few)
    before = peak_mb()
    record = run(tmp_path, "a.parquet", "b.parquet")
    assert record.counts["events_dead"] == n - 1 + 200 and users(tmp_path) == ["fine"]
    assert peak_mb() - before < 300
    assert (Path(record.path) / "dead-letters.parquet").stat().st_size < 2**20


@pytest.mark.parametrize("named", [".", "logs", "*"])
def test_a_home_among_the_logs_is_no_log(tmp_path, monkeypatch, named):
    (tmp_path / "logs").mkdir()
    pq.write_table(log(4), tmp_path / "logs" / "a.parquet")
    home = {".": tmp_path / "home", "logs": tmp_path / "logs" / "home", "*": tmp_path}[named]
    monkeypatch.chdir(tmp_path)

    def ingest_all(n: int):
        return ingest.run(
            IngestOptions(
                (named,), str(home / "warehouse"), str(home / "runs" / f"ingest-{n}"), num_buckets=2
            )
        )

    assert ingest_all(1).counts["events_written"] == 4
    (home / "runs" / "follow").mkdir()
    (home / "runs" / "follow" / "run.lock").touch()
    for spared in ("runs/follow/ingest-00000001.jsonl", "store/notes.csv", "model.training/log.jsonl"):
        (home / spared).parent.mkdir(exist_ok=True)
        (home / spared).write_text("{}\n")
    (home / "store" / "FORMAT").write_text("vista-store 1\n{}\n")
    (home / "model").mkdir()
    (home / "model" / "bundle.json").write_text('{"format": "vista-bundle 1"}')
    record = ingest_all(2)
    assert record.counts["files"] == 0 and record.counts["known_files"] == 1


def test_a_column_in_which_nobody_wrote_anything_is_as_good_as_missing(tmp_path):
    pq.write_table(
        log(request_id=pa.array([1, 1, 2, 2]), surface=pa.array(["a"] * 4)), tmp_path / "a.parquet"
    )
    pq.write_table(log(request_id=pa.nulls(4), surface=pa.nulls(4)), tmp_path / "b.parquet")
    assert run(tmp_path, "a.parquet", "b.parquet").exit_code == 0
    assert len(users(tmp_path)) == 8 and tables(tmp_path).surfaces == ("a",)


def test_a_bound_of_time_beyond_any_calendar_is_a_bound(tmp_path):
    pq.write_table(log(timestamp_ms=pa.array([5] * 4)), tmp_path / "a.parquet")
    with pytest.raises(WrongTime, match="beyond the year 9999"):
        run(tmp_path, "a.parquet", max_time_ms=10**16)
