"""Messy text logs: a bad row is a dead letter, a bad file a typed error; neither decides anything, nor costs the
machine."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from messy import HEAD, JSON, T0, letters, peak_mb, run, tables, users

from vista.data.logs import csv_rows
from vista.data.logs.reading import ActionColumn, Reading
from vista.data.logs.schema import UnreadableFile, WrongTime
from vista.data.tables.reading import read_bucket


@pytest.mark.parametrize(
    "marker", ["\\N", "NULL", "NA", "nan", "None", "#N/A", "undefined", "(null)", "-", "<NA>"]
)
def test_a_marker_of_nothing_is_a_null_and_makes_no_numbers_names(tmp_path, marker):
    (tmp_path / "a.csv").write_text(
        HEAD + f"1,10,c,{T0}\n{marker},11,c,{T0}\n2,{marker},c,{T0}\n3,4,c,{T0}\n"
    )
    record = run(tmp_path, "a.csv")
    assert tables(tmp_path).user_kind == "int64" and users(tmp_path) == [1, 3]
    assert letters(record) == {2: "null_user", 3: "null_item"}


def test_rows_that_are_refused_decide_neither_kinds_nor_vocabularies(tmp_path):
    text = (
        HEAD
        + f"1,10,click,{T0}\n"
        + HEAD
        + f"odd,10,scan,soon\n,nothing,probe,{T0}\n2,11,view,{T0}\nx,y,z,17\n"
    )
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    record = run(tmp_path, "a.csv.gz")
    assert tables(tmp_path).user_kind == "int64" and tables(tmp_path).actions == ("click", "view")
    assert users(tmp_path) == [1, 2] and len(letters(record)) == 4
    assert tables(tmp_path).read_items().item.tolist() == [10, 11]


@pytest.mark.parametrize("first", ["", HEAD, HEAD + f"\\N,1,c,{T0}\n", HEAD + "a,b,c,7\n"])
def test_a_file_without_a_good_row_fixes_nothing(tmp_path, first):
    (tmp_path / "0.csv").write_text(first)
    (tmp_path / "1.csv").write_text(HEAD + f"alice,book,c,{T0}\n")
    try:
        run(tmp_path, "0.csv", skip_bad_files=True)
    except (UnreadableFile, WrongTime):
        pass
    assert run(tmp_path, "1.csv").exit_code == 0 and users(tmp_path) == ["alice"]


def test_odd_json_lines_cost_themselves_alone(tmp_path):
    deep = '{"user_id":2,"x":' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}\n"
    odd = [deep, JSON % (3, '"cut \\ud83d"', T0), "[" * 50_000 + "\n", '{"user_id": NaN}\n', "\x00\n"]
    (tmp_path / "a.jsonl").write_text(
        "\ufeff" + JSON % (1, '"ok"', T0) + "".join(odd) + JSON % (9, '"fine"', T0)
    )
    record = run(tmp_path, "a.jsonl")
    assert users(tmp_path) == [1, 9] and sorted(letters(record)) == [2, 3, 4, 5, 6]


def test_ids_of_64_bits_without_sign_are_the_same_names_from_json_and_csv(tmp_path):
    ids = [18446744073709551615, 9999999999999999999, 2]
    (tmp_path / "a.jsonl").write_text("".join(JSON % (u, 1, T0) for u in ids))
    run(tmp_path, "a.jsonl")
    assert users(tmp_path) == sorted(map(str, ids))


@pytest.mark.parametrize("text", ["\n\n" + HEAD, "sep=,\r\n" + HEAD, "\ufeff" + HEAD])
def test_what_stands_before_a_header_is_passed_over(tmp_path, text):
    (tmp_path / "a.csv").write_text(text + f"1,10,c,{T0}\n", newline="")
    run(tmp_path, "a.csv")
    assert users(tmp_path) == [1]


@pytest.mark.parametrize("when", ["01/31/2024 12:00:00", "31.01.2024 12:00:00", "31/Jan/2024:12:00:00 +0000"])
def test_dates_of_another_country_are_refused_with_the_format_that_reads_them(tmp_path, when):
    (tmp_path / "a.csv").write_text(HEAD + f"1,10,c,{when}\n2,11,c,{when}\n")
    with pytest.raises(WrongTime, match="--time-format") as told:
        run(tmp_path, "a.csv")
    form = str(told.value).partition("--time-format '")[2].partition("'")[0]
    assert not (tmp_path / "home").exists()
    run(tmp_path, "a.csv", log=Reading(time_format=form))
    assert users(tmp_path) == [1, 2]


def test_times_that_a_spreadsheet_cut_are_no_times(tmp_path):
    rows = "".join(f"{u},10,c,1.70E+12\n" for u in range(3))
    (tmp_path / "a.csv").write_text(HEAD + rows + "".join(f"{u},10,c,{T0}\n" for u in range(4, 9)))
    record = run(tmp_path, "a.csv")
    assert users(tmp_path) == [4, 5, 6, 7, 8] and set(letters(record)) == {1, 2, 3}


def test_quotes_in_a_tsv_are_text_where_they_enclose_nothing(tmp_path):
    rows = [f'{u}\t"Song {u}\tc\t{T0}\n' for u in range(3)] + [f"3\tplain\tc\t{T0}\n"]
    (tmp_path / "a.tsv").write_text(HEAD.replace(",", "\t") + "".join(rows))
    run(tmp_path, "a.tsv")
    assert users(tmp_path) == [0, 1, 2, 3] and '"Song 0' in tables(tmp_path).read_items().name.tolist()


def test_a_quote_without_end_at_the_start_of_a_long_tsv_is_text(tmp_path):
    rows = [
        f'0\t"Song\tc\t{T0}\n',
        "1\tbroken\n",
        *(f"{u}\t{'x' * 1_000}\tc\t{T0}\n" for u in range(2, 3_500)),
    ]
    (tmp_path / "a.tsv").write_text(HEAD.replace(",", "\t") + "".join(rows))
    record = run(tmp_path, "a.tsv")
    assert users(tmp_path) == [0, *range(2, 3_500)] and letters(record) == {2: "broken_line"}


def test_an_object_of_a_json_document_without_the_list_to_take_apart_costs_itself_alone(tmp_path):
    events = [{"item_id": 7, "action": "c", "timestamp_ms": T0}]
    whole = [{"user_id": 1, "events": events}, {"user_id": 2}, {"user_id": 3, "events": events}]
    (tmp_path / "a.json").write_text(json.dumps(whole))
    record = run(tmp_path, "a.json", log=Reading(explode=("events",)))
    assert users(tmp_path) == [1, 3] and letters(record) == {2: "broken_line"}


def test_date_and_time_may_stand_in_two_columns(tmp_path):
    (tmp_path / "a.csv").write_text(
        "user_id,item_id,action,day,clock\n1,2,c,20220422,0905\n2,2,c,20220422,2200\n"
    )
    reading = Reading(columns={"timestamp_ms": "day+clock"}, time_format="%Y%m%d %H%M")
    assert run(tmp_path, "a.csv", log=reading).exit_code == 0 and users(tmp_path) == [1, 2]


def test_an_action_column_that_cannot_be_read_costs_its_row_alone(tmp_path):
    (tmp_path / "a.csv").write_text(
        f"user_id,item_id,like,timestamp_ms\n1,2,1,{T0}\n2,2,maybe,{T0}\n3,2,true,{T0}\n"
    )
    record = run(tmp_path, "a.csv", log=Reading(actions=(ActionColumn("like", "like"),)))
    assert users(tmp_path) == [1, 3] and letters(record) == {2: "unreadable_action"}


def test_a_line_of_gigabytes_is_not_held(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wb", compresslevel=1) as file:
        file.write((JSON % (1, 1, T0)).encode() + b'{"user_id": "')
        for _ in range(300):
            file.write(b"x" * 2**20)
        file.write(b'"}\n' + (JSON % (2, 1, T0)).encode())
    before = peak_mb()
    record = run(tmp_path, "a.jsonl.gz")
    assert users(tmp_path) == [1, 2] and letters(record) == {2: "broken_line"} and peak_mb() - before < 300


def test_a_header_of_a_hundred_thousand_columns_is_refused_at_once(tmp_path):
    (tmp_path / "a.csv").write_text(",".join(f"c{i}" for i in range(100_000)) + "\n")
    with pytest.raises(UnreadableFile, match="columns; at most 10000 are read|first line of more than"):
        run(tmp_path, "a.csv")


@pytest.mark.parametrize("cut", [0, 1, 10, 40])
def test_a_cut_file_is_a_typed_error_or_left_out(tmp_path, cut):
    text = (HEAD + "".join(f"{u},10,c,{T0}\n" for u in range(500))).encode()
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(text)[: -cut or None] if cut else b"")
    (tmp_path / "good.csv").write_bytes(text)
    with pytest.raises(UnreadableFile, match=r"cut\.csv\.gz"):
        run(tmp_path, "cut.csv.gz", "good.csv")
    record = run(tmp_path, "cut.csv.gz", "good.csv", skip_bad_files=True)
    assert record.exit_code == 3 and record.counts["bad_files"] == 1 and len(users(tmp_path)) == 500


def test_a_json_log_keeps_wide_rows_within_bounds(tmp_path):
    row = {"user_id": 1, "item_id": 2, "action": "c", "timestamp_ms": T0, "blob": "y" * 2**20}
    with open(tmp_path / "a.jsonl", "w") as file:
        for k in range(200):
            file.write(json.dumps({**row, "timestamp_ms": T0 + k}) + "\n")
    before = peak_mb()
    run(tmp_path, "a.jsonl")
    assert len(users(tmp_path)) == 200 and peak_mb() - before < 300


def test_bytes_that_are_no_utf8_cost_the_rows_that_have_them_and_no_file(tmp_path, capfd):
    rows = [
        f"1,10,c,{T0}",
        f"2,caf\xe9,c,{T0}",
        f"3,30,c,{T0},Montr\xe9al",
        "\xe9t\xe9",
        f"4,\U0010ff41,c,{T0}",
        f"5,50,c,{T0}",
    ]
    latin = [r.encode("latin-1" if r.isprintable() and "\U0010ff41" not in r else "utf-8") for r in rows]
    (tmp_path / "a.csv").write_bytes(HEAD.encode() + b"\n".join(latin) + b"\n")
    record = run(tmp_path, "a.csv")
    assert users(tmp_path) == [1, 4, 5] and record.counts["events_dead"] == 3
    assert letters(record) == {2: "not_utf8", 3: "broken_line", 4: "broken_line"}
    dead = pq.read_table(Path(record.path) / "dead-letters.parquet").to_pylist()
    assert "Montr\ufffdal" in str(next(row for row in dead if row["row"] == 3))
    assert "UnicodeDecodeError" not in capfd.readouterr().err


def test_a_header_with_bytes_that_are_no_utf8_is_read_by_the_columns_that_are_named(tmp_path):
    (tmp_path / "a.csv").write_bytes(
        b"user_id,item_id,action,timestamp_ms,cat\xe9gorie\n1,10,c,%d,\xe9\n" % T0
    )
    run(tmp_path, "a.csv")
    assert users(tmp_path) == [1]


@pytest.mark.parametrize(
    ("encoding", "ending"),
    [
        ("utf-8-sig", ".gz"),
        ("utf-16", ".xz"),
        ("utf-32", ".bz2"),
        ("latin-1", ".zip"),
        ("gb18030", ".zst"),
        ("shift_jis", ""),
    ],
)
def test_text_in_any_encoding_and_packing_is_the_same_log(tmp_path, encoding, ending):
    user = {"latin-1": "Zoë", "shift_jis": "ゆき"}.get(encoding, "雪")
    told = "" if encoding.startswith("utf") else encoding
    rows = HEAD + "".join(f"{user},{n},c,{T0}\n" for n in range(9))
    line = json.dumps({"user_id": user, "item_id": 9, "action": "c", "timestamp_ms": T0}, ensure_ascii=False)
    for name, text in (("a.csv", rows), ("b.jsonl", line + "\n")):
        data = text.encode(encoding)
        if ending == ".zip":
            with zipfile.ZipFile(tmp_path / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(f"folder/{name}", data)
                archive.writestr(f"__MACOSX/._{name}", b"of a Mac")
        elif ending == ".zst":
            (tmp_path / f"{name}.zst").write_bytes(pa.compress(data, "zstd", asbytes=True))
        else:
            pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[ending]
            (tmp_path / f"{name}{ending}").write_bytes(pack(data))
    record = run(tmp_path, f"a.csv{ending}", f"b.jsonl{ending}", log=Reading(encoding=told))
    assert users(tmp_path) == [user] * 10 and not record.counts["events_dead"]


def test_what_an_encoding_does_not_have_costs_its_row(tmp_path):
    (tmp_path / "a.csv").write_bytes(HEAD.encode() + b"\x81,1,c,%d\n\x80,2,c,%d\n" % (T0, T0))
    record = run(tmp_path, "a.csv", log=Reading(encoding="cp1252"))
    assert users(tmp_path) == ["€"] and letters(record) == {1: "not_utf8"}


@pytest.mark.parametrize("name", ["two.csv.zip", "no.csv.zip", "cut.csv.zip", "cut.csv.xz"])
def test_an_archive_that_is_no_log_is_named(tmp_path, name):
    data = (HEAD + "".join(f"{n},10,c,{T0}\n" for n in range(999))).encode()
    with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for k in range(2 if name == "two.csv.zip" else 1):
            archive.writestr(f"{k}.csv", data)
    whole = (tmp_path / name).read_bytes() if name.endswith(".zip") else lzma.compress(data)
    if name.startswith("cut"):
        (tmp_path / name).write_bytes(whole[:-90])
    if name == "no.csv.zip":
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UnreadableFile, match=name):
        run(tmp_path, name)


def test_a_list_to_explode_that_no_object_has_is_told_and_costs_no_letters(tmp_path):
    (tmp_path / "a.jsonl").write_text(JSON % (1, 2, T0) + JSON % (2, 2, T0))
    with pytest.raises(UnreadableFile, match="--explode evnts: expected a field .*user_id.*item_id"):
        run(tmp_path, "a.jsonl", log=Reading(explode=("evnts",)))


def test_a_list_or_an_object_among_plain_values_costs_its_row_and_one_action_is_a_list_of_one(tmp_path):
    rows = [JSON % (n, 5, T0 + n) for n in range(8)]
    for user, item, action in (([1], 5, "c"), (1, {"a": 5}, "c"), (9, 5, ["c", "d"])):
        rows.append(
            json.dumps({"user_id": user, "item_id": item, "action": action, "timestamp_ms": T0}) + "\n"
        )
    (tmp_path / "a.jsonl").write_text("".join(rows))
    record = run(tmp_path, "a.jsonl")
    assert users(tmp_path) == [*range(8), 9] and tables(tmp_path).actions == ("c", "d")
    assert sorted(letters(record)) == [9, 10]


def test_a_list_of_liked_items_may_hold_what_is_no_item(tmp_path):
    rows = [JSON.strip() % (u, 7, T0 + u) for u in range(3)]
    rows += [
        row[:-1] + f', "like": {liked}}}'
        for row, liked in zip(rows, ("[7]", "[false, 7]", "[{}, 1.5]"), strict=True)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(rows[3:]) + "\n")
    record = run(tmp_path, "a.jsonl", log=Reading(actions=(ActionColumn("like", "like"),)))
    assert record.counts["events_dead"] == 0 and users(tmp_path) == [0, 1, 2]
    found = {}
    for files in tables(tmp_path).bucket_files().values():
        for batch in read_bucket(files, max_rows=1 << 20):
            masks = zip(
                np.repeat(batch.users, batch.events.lengths).tolist(),
                batch.events.action.tolist(),
                strict=True,
            )
            found |= dict(masks)
    like = 1 << tables(tmp_path).actions.index("like")
    assert {u: bool(m & like) for u, m in found.items()} == {0: True, 1: True, 2: False}


def test_a_file_of_no_bytes_is_named_and_can_be_left_out(tmp_path):
    (tmp_path / "hour.jsonl").write_bytes(b"")
    (tmp_path / "good.jsonl").write_text(JSON % (1, 2, T0))
    with pytest.raises(UnreadableFile, match="hour.jsonl"):
        run(tmp_path, "good.jsonl", "hour.jsonl")
    assert run(tmp_path, "good.jsonl", "hour.jsonl", skip_bad_files=True).counts["bad_files"] == 1
    assert users(tmp_path) == [1]


@pytest.mark.parametrize(
    "text", [b"1,2,click,1699000000000\r3,4,click,1699000000001", b'1,2,"' + b"x" * 200_000 + b"\n3,4,c,5"]
)
def test_lines_of_an_old_mac_and_fields_without_end_are_no_internal_error_under_a_header(text):
    reading = Reading(header=("user_id", "item_id", "action", "timestamp_ms"))
    csv_rows._check_fields(text, ",", reading)
