"""Text logs come to the same tables as Parquet with the same rows; a broken line costs itself alone."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs.ingest import job as ingest
from beam_jobs.run.engines import HERE
from vista.data.logs.reading import Reading
from vista.data.logs.schema import MissingColumn, UnreadableFile, WrongType
from vista.data.tables.reading import read_bucket
from vista.data.tables.warehouse import Warehouse

T0 = 1_700_000_000_000
NAMES = ("user_id", "item_id", "action", "timestamp_ms")


def rows(n: int = 300, text: bool = False) -> list[tuple]:
    rng = np.random.default_rng(3)
    users = [f'Ω "{u}",\n{u}' if text else int(u) for u in rng.integers(0, 40, n)]
    items = [f"商品 {i}" if text else int(i) for i in rng.integers(0, 50, n)]
    actions = [("view", "buy")[a] if text else int(a) for a in rng.integers(0, 2, n)]
    return list(zip(users, items, actions, (T0 + rng.integers(0, 10**9, n)).tolist(), strict=True))


def csv_text(found: list[tuple], separator: str = ",") -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator)
    writer.writerows([NAMES, *found])
    return out.getvalue()


def jsonl_text(found: list[tuple]) -> str:
    return "".join(json.dumps(dict(zip(NAMES, row, strict=True)), ensure_ascii=False) + "\n" for row in found)


def run(folder: Path, *files: str, name: str = "home", **more):
    where = {"warehouse": str(folder / name), "run_dir": str(folder / f"run-{len(list(folder.iterdir()))}")}
    options = ingest.IngestOptions(
        events=tuple(str(folder / f) for f in files), num_buckets=2, max_time_ms=2 * T0, **where, **more
    )
    return ingest.run(options, (HERE,))


def history(folder: Path, name: str = "home") -> list[tuple]:
    tables = Warehouse(folder / name).open()
    found = []
    for files in tables.bucket_files().values():
        for batch in read_bucket(files, max_rows=1 << 20):
            user = np.repeat(batch.users, batch.events.lengths)
            columns = (
                batch.events.columns[n].tolist() for n in ("time", "item", "action", "surface", "request")
            )
            found += zip(user.tolist(), *columns, strict=True)
    return found


def letters(record) -> list[dict]:
    return pq.read_table(Path(record.path) / "dead-letters.parquet").to_pylist()


@pytest.mark.parametrize("text", [False, True])
def test_every_kind_of_text_log_gives_the_tables_that_parquet_gives(tmp_path, text):
    found = rows(text=text)
    pq.write_table(
        pa.table({n: list(c) for n, c in zip(NAMES, zip(*found, strict=True), strict=True)}),
        tmp_path / "a.parquet",
    )
    (tmp_path / "a.csv").write_text(csv_text(found), encoding="utf-8-sig")
    (tmp_path / "a.tsv.bz2").write_bytes(bz2.compress(csv_text(found, "\t").encode()))
    (tmp_path / "a.jsonl").write_text(jsonl_text(found), encoding="utf-8")
    (tmp_path / "a.ndjson.gz").write_bytes(gzip.compress(jsonl_text(found).encode()))
    run(tmp_path, "a.parquet", name="parquet")
    wanted = history(tmp_path, "parquet")
    assert len(wanted) == len(set(found))
    for file in ("a.csv", "a.tsv.bz2", "a.jsonl", "a.ndjson.gz"):
        record = run(tmp_path, file, name=f"from {file}")
        assert history(tmp_path, f"from {file}") == wanted and record.exit_code == 0, file
        assert (
            Warehouse(tmp_path / f"from {file}").open().actions
            == Warehouse(tmp_path / "parquet").open().actions
        )
        again = run(tmp_path, file, name=f"from {file}")
        assert again.counts["known_files"] == 1 and again.counts["events_read"] == 0
        assert not (Path(again.path) / "spill").exists()


def test_a_broken_line_is_set_aside_with_its_number_and_why(tmp_path):
    good = rows(20)
    lines = csv_text(good).splitlines()
    lines[5] = "only,three,fields"
    lines[9] = "1,2,0,soon"
    lines[12] = "5,6,0,1700000000000,more"
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    record = run(tmp_path, "a.csv")
    assert record.exit_code == 3 and record.counts["events_read"] == 20
    assert {x["row"]: x["reason"] for x in letters(record)} == dict.fromkeys((5, 9, 12), "broken_line")
    said = {x["row"]: x["detail"] for x in letters(record)}
    assert "expected 4 fields, found 3: only,three,fields" in said[5] and "found 5" in said[12]
    assert "timestamp_ms: expected an integer, found 'soon'" in said[9]
    assert len(history(tmp_path)) == len({r for i, r in enumerate(good, 1) if i not in (5, 9, 12)})

    objects = jsonl_text(good).encode().splitlines()
    objects[2], objects[4], objects[6] = b'{"user_id": "cut', b"[1, 2]", b'{"user_id": "\xff"}'
    objects.insert(8, b"")
    (tmp_path / "b.jsonl").write_bytes(b"\n".join(objects))
    record = run(tmp_path, "b.jsonl", name="b")
    assert sorted(x["row"] for x in letters(record)) == [3, 5, 7]
    assert record.counts["events_read"] == 20 and record.counts["events_dead"] == 3


def test_a_value_that_is_no_text_and_a_stray_name_among_numbers_cost_their_rows_alone(tmp_path):
    (tmp_path / "a.csv").write_text(csv_text(rows(30)))
    run(tmp_path, "a.csv")
    before = len(history(tmp_path))
    (tmp_path / "b.csv").write_bytes(
        b"user_id,item_id,action,timestamp_ms\n7,8,1,1700000000001\nx7,8,1,1700000000002\n"
        b"99999999999999999999,1,1,1700000000003\n007,1,1,1700000000004\n,1,1,1700000000005\n"
        b"7,8,1,1700000000006\n7,8,1,1700000000007\n9223372036854775807,8,1,1700000000008\n"
    )
    record = run(tmp_path, "b.csv")
    assert [x["reason"] for x in letters(record)] == [*["broken_line"] * 3, "null_user"]
    assert len(history(tmp_path)) == before + 4

    (tmp_path / "names.csv").write_text("user_id,item_id,action,timestamp_ms\nu,8,1,1700000000001\n")
    with pytest.raises(WrongType, match="names.csv.*user_id.*expected int as in the table, found string"):
        run(tmp_path, "names.csv")

    (tmp_path / "c.csv").write_bytes(
        b"user_id,item_id,action,timestamp_ms\n\xff\xfe,a,view,1700000000001\nx,b,view,1700000000002\n"
    )
    record = run(tmp_path, "c.csv", name="c")
    assert [(x["reason"], x["row"]) for x in letters(record)] == [("not_utf8", 1)]


def test_ids_are_strings_in_all_files_where_they_are_in_one(tmp_path):
    (tmp_path / "a.csv").write_text("user_id,item_id,action,timestamp_ms,request_id\n1,2,0,1700000000001,5\n")
    (tmp_path / "b.jsonl").write_text(
        '{"user_id": "u", "item_id": 2, "action": [0, 1], "timestamp_ms": 1700000000002, "request_id": 5}\n'
    )
    run(tmp_path, "a.csv", "b.jsonl")
    found = history(tmp_path)
    assert {row[0] for row in found} == {"1", "u"} and {row[2] for row in found} == {2}
    assert {row[3] for row in found} == {1, 3} and {row[5] for row in found} == {5}
    pq.write_table(pa.table({n: [1] for n in NAMES[:3]} | {"timestamp_ms": [T0]}), tmp_path / "c.parquet")
    with pytest.raises(WrongType, match="user_id"):
        run(tmp_path, "c.parquet")


@pytest.mark.parametrize("spelled", ["iso", "iso with zone", "iso and UTC", "seconds", "mixed"])
def test_times_may_be_iso_or_numbers_of_a_unit(tmp_path, spelled):
    stamp = datetime.fromtimestamp(T0 / 1000, UTC)
    value = {
        "iso": stamp.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3],
        "iso with zone": stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "iso and UTC": stamp.strftime("%Y-%m-%d %H:%M:%S.%f UTC"),
        "seconds": f"{T0 / 1000:.3f}",
        "mixed": stamp.isoformat(timespec="milliseconds"),
    }[spelled]
    other = "2023-11-14T23:13:20+01:00" if spelled == "mixed" else value
    (tmp_path / "a.csv").write_text(f"user_id,item_id,action,timestamp_ms\n1,2,0,{value}\n2,2,0,{other}\n")
    record = run(tmp_path, "a.csv", log=Reading(time_unit="s" if spelled == "seconds" else "ms"))
    assert record.exit_code == 0 and {row[1] for row in history(tmp_path)} == {T0}


@pytest.mark.parametrize("separator", [";", "|", "\t"])
def test_a_csv_may_separate_its_fields_otherwise_and_have_columns_without_names(tmp_path, separator):
    found = rows(50)
    (tmp_path / "a.csv").write_text(csv_text(found))
    lines = csv_text(found, separator).splitlines()
    (tmp_path / "b.csv").write_text("".join(line + 2 * separator + "\r\n" for line in lines))
    for name in "ab":
        assert run(tmp_path, f"{name}.csv", name=name).exit_code == 0
    assert history(tmp_path, "a") == history(tmp_path, "b")


def test_ids_that_pandas_wrote_as_floats_are_integers_and_version_numbers_are_names(tmp_path):
    head = "user_id,item_id,action,timestamp_ms\n"
    (tmp_path / "a.csv").write_text(head + f"1.0,1.0,0,{T0}\n2,1.1,0,{T0}\n,1.0,0,{T0}\n")
    record = run(tmp_path, "a.csv")
    assert [x["reason"] for x in letters(record)] == ["null_user"]
    assert sorted(row[0] for row in history(tmp_path)) == [1, 2]
    assert sorted(Warehouse(tmp_path / "home").open().read_items().name) == ["1.0", "1.1"]


def test_a_text_log_that_was_mended_anywhere_is_read_again(tmp_path):
    found = rows(4_000)
    text = csv_text(found).replace("\r\n", "\n")
    assert len(text) > 1 << 16
    (tmp_path / "a.csv").write_text(text.replace(str(found[0][3]), "17000000000xx", 1))
    assert run(tmp_path, "a.csv").counts["events_dead"] == 1
    (tmp_path / "a.csv").write_text(text)
    record = run(tmp_path, "a.csv")
    assert record.counts["known_files"] == 0 and record.counts["events_written"] == 1


def test_bad_rows_of_item_files_cost_themselves_alone_and_do_not_decide_what_an_id_is(tmp_path):
    (tmp_path / "a.csv").write_text(f"user_id,item_id,action,timestamp_ms\n1,2,0,{T0}\n")
    (tmp_path / "items.csv").write_bytes(b"item_id,name\n2,two\nx,ten\n4\n5,\n,six\n7,\xff\n8,eight\n")
    record = run(tmp_path, "a.csv", items=(str(tmp_path / "items.csv"),))
    found = {(x["row"], x["reason"]) for x in letters(record)}
    assert found == {
        (2, "broken_line"),
        (3, "broken_line"),
        (4, "null_name"),
        (5, "null_item"),
        (6, "not_utf8"),
    }
    assert record.exit_code == 3 and record.counts["items_dead"] == record.counts["dead_letters"] == 5
    items = Warehouse(tmp_path / "home").open().read_items()
    assert items.item.tolist() == [2, 8] and items.name.tolist() == ["two", "eight"]


def test_impressions_and_items_may_be_text_too(tmp_path):
    (tmp_path / "a.csv").write_text("user_id,item_id,action,timestamp_ms,request_id\n1,2,0,1700000000001,5\n")
    (tmp_path / "shown.jsonl").write_text(
        '{"user_id": 1, "item_id": 2, "actions": [0], "position": 0, "request_id": 5}\n'
        '{"user_id": 1, "item_id": 3, "actions": [], "position": 1, "request_id": 5}\n'
    )
    (tmp_path / "items.csv").write_text("item_id,name,year\n2,12 Monkeys,1995\n3,1984,1984\n")
    record = run(
        tmp_path, "a.csv", impressions=(str(tmp_path / "shown.jsonl"),), items=(str(tmp_path / "items.csv"),)
    )
    assert record.counts["impressions_written"] == 2
    assert Warehouse(tmp_path / "home").open().read_items().name.tolist() == ["12 Monkeys", "1984"]


@pytest.mark.parametrize(
    "name, data, error, says",
    [
        ("empty.csv", b"", UnreadableFile, "nothing, not even a header"),
        ("twice.csv", b"user_id,item_id,item_id\n1,2,3\n", UnreadableFile, "'item_id' twice in the header"),
        ("open.csv", b'user_id,item_id,action\n1,2,3\n1,"2,3\n4,5,6\n', UnreadableFile, "end in record 2"),
        (
            "long.csv",
            b'user_id,item_id\n1,2\n1,"' + b"2,3\n" * 600_000,
            UnreadableFile,
            "record of more than 1 MB",
        ),
        ("cut.csv.gz", gzip.compress(b"user_id,item_id\n1,2\n" * 99)[:30], UnreadableFile, "Truncated"),
        ("plain.jsonl.gz", b'{"user_id": 1}\n', UnreadableFile, "header"),
        ("no.csv", b"user,item_id,action,timestamp_ms\n1,2,3,4\n", MissingColumn, "found .'user', 'item_id'"),
        ("no.jsonl", b'{"user": 1}\n', MissingColumn, "'user_id'"),
        ("log.odd", b"1,2,3\n", UnreadableFile, r"log by its name \(.csv"),
        ("log.xlsx", b"PK", UnreadableFile, "a spreadsheet; save it as CSV"),
        ("logs.tar.gz", b"PK", UnreadableFile, "an archive; unpack it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_faults_of_whole_text_logs_are_named_before_anything_is_written(tmp_path, name, data, error, says):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(error, match=f"(?s){name}.*{says}|{says}.*{name}") as told:
        run(tmp_path, name)
    assert "vista ingest" in str(told.value) and not (tmp_path / "home").exists()


def test_unreadable_text_logs_are_skipped_where_asked(tmp_path):
    (tmp_path / "bad.csv").write_bytes(b"")
    (tmp_path / "good.csv").write_text(csv_text(rows(10)))
    record = run(tmp_path, "*.csv", skip_bad_files=True)
    assert record.exit_code == 3 and record.counts["bad_files"] == 1 and len(history(tmp_path)) == 10
    assert letters(record)[0]["source"].endswith("bad.csv")


def test_a_header_without_rows_is_an_empty_file_and_a_folder_gives_all_its_logs(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.csv").write_text(csv_text(rows(10)))
    (tmp_path / "logs" / "b.csv").write_text(csv_text([]))
    (tmp_path / "logs" / "README").write_text("not a log")
    record = run(tmp_path, "logs")
    assert record.counts["files"] == 2 and record.counts["empty_files"] == 1 and record.exit_code == 0
