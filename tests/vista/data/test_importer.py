"""Columns of any fitting Arrow type become the same rows; what does not fit is refused or set aside."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vista.data.logs import schema
from vista.data.logs.importer import check
from vista.data.logs.inspecting import inspect
from vista.data.logs.reading import Reading
from vista.data.logs.schema import EVENTS, IMPRESSIONS, MIN_TIME_MS, WrongTime, WrongType
from vista.data.logs.values import Rules, hash_strings

T0 = 1_700_000_000_000
RULES = Rules(schema.MIN_TIME_MS, T0 + 10**9, ("a", "b", "c"), ("home", "shop"))
BASE = {
    "user_id": pa.array([1, 2, 3]),
    "item_id": pa.array([7, 8, 9]),
    "action": pa.array([0, 1, 2]),
    "surface": pa.array([0, 1, 0]),
    "timestamp_ms": pa.array([T0, T0 + 1, T0 + 2]),
    "request_id": pa.array([5, 5, 6]),
}


def checked(tmp_path, **columns):
    path = str(tmp_path / "log.parquet")
    pq.write_table(pa.table({**BASE, **columns}), path)
    source = inspect(path, EVENTS)
    return check(pq.read_table(path).combine_chunks().to_batches()[0], source, RULES, 100)


@pytest.mark.parametrize("type_", [pa.int8(), pa.int32(), pa.uint8(), pa.uint32(), None])
def test_narrow_and_dictionary_integers_are_widened(tmp_path, type_):
    names = ("user_id", "item_id", "action", "surface", "request_id")
    columns = {n: BASE[n].dictionary_encode() if type_ is None else BASE[n].cast(type_) for n in names}
    found = checked(tmp_path, **columns)
    assert found.user.to_pylist() == [1, 2, 3] and found.user.type == pa.int64()
    assert found.columns["item"].tolist() == [7, 8, 9] and found.columns["action"].tolist() == [1, 2, 4]
    assert found.columns["request"].tolist() == [5, 5, 6] and found.letters == []


@pytest.mark.parametrize(
    "type_", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.large_string())]
)
def test_strings_of_any_kind_are_hashed_and_named(tmp_path, type_):
    items = pa.array(["x", "ü", "x"]).cast(type_)
    found = checked(
        tmp_path,
        user_id=pa.array(["u1", "u2", "u3"]).cast(type_),
        item_id=items,
        action=pa.array(["c", "a", "b"]).cast(type_),
        surface=pa.array(["shop", "home", "shop"]).cast(type_),
    )
    assert found.user.to_pylist() == ["u1", "u2", "u3"]
    assert found.columns["item"].tolist() == hash_strings(["x", "ü", "x"]).tolist()
    assert found.columns["action"].tolist() == [4, 1, 2] and found.columns["surface"].tolist() == [1, 0, 1]
    assert dict(zip(found.names[0].tolist(), found.names[1].to_pylist(), strict=True)) == dict(
        zip(hash_strings(["x", "ü"]).tolist(), ["x", "ü"], strict=True)
    )


@pytest.mark.parametrize(
    "type_", [pa.list_(pa.int8()), pa.large_list(pa.int64()), pa.list_(pa.string()), pa.list_(pa.int32(), 2)]
)
def test_lists_of_actions_become_masks(tmp_path, type_):
    lists = [[0, 2], [1, 1], [2, 0]]
    if pa.types.is_string(type_.value_type):
        lists = [["abc"[a] for a in some] for some in lists]
    found = checked(tmp_path, action=pa.array(lists, type_))
    assert found.columns["action"].tolist() == [0b101, 0b010, 0b101]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_timestamps_of_any_unit_become_milliseconds(tmp_path, unit):
    whole = pa.array([T0, T0 + 1_000, T0 + 2_000], pa.timestamp("ms", "UTC")).cast(pa.timestamp(unit, "UTC"))
    assert checked(tmp_path, timestamp_ms=whole).columns["time"].tolist() == [T0, T0 + 1_000, T0 + 2_000]


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("user_id", pa.array([True, False, True])),
        ("item_id", pa.array([[1], [2], [3]])),
        ("action", pa.array([1, 2, 3], pa.duration("s"))),
        ("timestamp_ms", pa.array([True, False, True])),
        ("request_id", pa.array([{"a": 1}, {"a": 2}, {"a": 3}])),
    ],
)
def test_types_that_do_not_fit_are_refused_by_file_column_and_type(tmp_path, name, column):
    with pytest.raises(
        WrongType, match=rf"log\.parquet: column '{name}': expected .*, found .*--column {name}=NAME"
    ):
        checked(tmp_path, **{name: column})


@pytest.mark.parametrize(
    ("name", "column", "becomes"),
    [
        ("user_id", pa.array([1, 2, 3], pa.uint64()), [1, 2, 3]),
        ("user_id", pa.array([1, 2, 2**64 - 1], pa.uint64()), ["1", "2", "18446744073709551615"]),
        ("user_id", pa.array([1.0, 2.0, 3.0]), [1, 2, 3]),
        ("user_id", pa.array([1, 2, 3], pa.decimal128(20, 2)), [1, 2, 3]),
        ("user_id", pa.array([10**30, 2, 3], pa.decimal128(38, 0)), [str(10**30), "2", "3"]),
        ("user_id", pa.array([b"a", b"b", b"c"]), ["a", "b", "c"]),
        ("user_id", pa.array(["a", "b", "c"], pa.large_string()), ["a", "b", "c"]),
        ("user_id", pa.array(["a", None, "a"]).dictionary_encode(), ["a", "a"]),
        ("item_id", pa.array([7.0, 8.5, float("nan")]), [7]),
        ("item_id", pa.array([7.0, float("inf"), 2.0**70]), [7]),
        ("action", pa.array([True, False, True]), [2, 1, 2]),
        ("action", pa.array([1.0, 0.0, 2.0]), [2, 1, 4]),
        ("surface", pa.array([True, False, True]), [1, 0, 1]),
        ("surface", pa.nulls(3), [0, 0, 0]),
        ("request_id", pa.nulls(3), [0, 0, 0]),
        ("timestamp_ms", pa.array(["2023-11-14T22:13:20Z"] * 3), [T0] * 3),
        ("timestamp_ms", pa.array([19_675] * 3, pa.date32()), [19_675 * 86_400_000] * 3),
        ("timestamp_ms", pa.array([T0, 2**62, -(2**62)], pa.timestamp("ms")), [T0]),
        ("timestamp_ms", pa.array([T0 * 1000, 2**62, None], pa.timestamp("us")), [T0]),
        ("timestamp_ms", pa.array([float(T0), float("inf"), float("nan")]), [T0]),
        ("timestamp_ms", pa.array([T0, 2**64 - 1, 0], pa.uint64()), [T0]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_types_that_surprise_are_read_and_their_odd_values_cost_their_rows_alone(
    tmp_path, name, column, becomes
):
    found = checked(tmp_path, **{name: column})
    column_of = {"item_id": "item", "action": "action", "surface": "surface", "request_id": "request"}
    values = (
        found.user.to_pylist() if name == "user_id" else found.columns[column_of.get(name, "time")].tolist()
    )
    assert values == becomes and len(found.letters) == 3 - len(becomes)


def test_times_whose_digits_float32_lost_are_refused_and_durations_ask_for_their_start(tmp_path):
    seconds = pa.array([float(T0 // 1000 + i) for i in range(3)], pa.float32())
    with pytest.raises(WrongTime, match="float, which holds whole numbers to 16777216 alone"):
        checked(tmp_path, timestamp_ms=seconds)
    with pytest.raises(WrongType, match="duration.*--time-from 2020-01-01"):
        checked(tmp_path, timestamp_ms=pa.array([1, 2, 3], pa.duration("s")))


@pytest.mark.parametrize("kind, most", [(pa.float64(), 2**53), (pa.float32(), 2**24)])
def test_an_id_whose_digits_a_float_lost_costs_its_row(tmp_path, kind, most):
    for name in ("user_id", "item_id"):
        found = checked(tmp_path, **{name: pa.array([1.0, float(most), float(2 * most)], kind)})
        assert [(x.row, x.reason) for x in found.letters] == [
            (102, f"{name.removesuffix('_id')}_digits_lost")
        ]


def test_one_text_of_a_megabyte_in_many_rows_is_held_once_and_cut_in_the_letters(tmp_path):
    users = pa.DictionaryArray.from_arrays(pa.array([0, 1, 1]), pa.array(["a", "x" * 2**20]))
    found = checked(tmp_path, user_id=users)
    assert found.user.to_pylist() == ["a"] and [x.reason for x in found.letters] == ["user_length"] * 2
    assert max(len(x.values) for x in found.letters) < 2_000


def test_a_row_with_several_faults_is_one_letter_with_the_first(tmp_path):
    found = checked(
        tmp_path, user_id=pa.array([1, None, 3]), item_id=pa.array([7, None, 9]), action=pa.array([0, 99, 99])
    )
    assert [(x.row, x.reason, x.user) for x in found.letters] == [
        (101, "null_user", ""),
        (102, "unknown_action", "3"),
    ]
    assert len(found) == 1 and found.columns["item"].tolist() == [7]


def test_strings_that_are_not_utf8_are_set_aside(tmp_path):
    raw = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    found = checked(tmp_path, item_id=text)
    assert [x.reason for x in found.letters] == ["not_utf8"] and "xff" in found.letters[0].values
    assert found.columns["item"].tolist() == hash_strings(["good", "fine"]).tolist()


def test_empty_and_null_action_lists_mean_not_engaged_for_impressions_only(tmp_path):
    path = str(tmp_path / "shown.parquet")
    shown = {name: BASE[name] for name in ("request_id", "user_id", "item_id", "timestamp_ms")}
    actions = pa.array([[], None, [1]], pa.list_(pa.int64()))
    pq.write_table(pa.table({**shown, "position": pa.array([0, 1, 2]), "actions": actions}), path)
    source = inspect(path, IMPRESSIONS)
    found = check(pq.read_table(path).to_batches()[0], source, RULES, 0)
    assert found.columns["action"].tolist() == [0, 0, 2] and found.letters == []
    events = checked(tmp_path, action=actions)
    assert events.columns["action"].tolist() == [0, 2] and [x.reason for x in events.letters] == [
        "null_action"
    ]


def test_a_file_on_any_fsspec_filesystem_can_be_read():
    import fsspec

    path = "memory://logs/a.parquet"
    with fsspec.open(path, "wb") as file:
        pq.write_table(pa.table(BASE), file)
    from vista.data import paths

    assert (
        paths.expand(["memory://logs/*.parquet"])
        == ["memory:///logs/a.parquet"]
        == paths.expand(["memory://logs"])
    )
    source = inspect(paths.expand(["memory://logs"])[0], EVENTS)
    assert source.rows == 3 and source.kinds["user_id"] == "int"
    assert np.array_equal(schema.open_source(source.path).read()["item_id"].to_numpy(), [7, 8, 9])


def test_what_fsspec_lacks_is_looked_for_in_pyarrow_and_an_unknown_scheme_is_a_typed_error():
    from vista.data import paths
    from vista.errors import DataError

    fs, path = paths.filesystem("mock:///folder/a.parquet")
    fs.makedirs("folder")
    with fs.open(path, "wb") as file:
        file.write(b"bytes")
    assert fs.size(path) == 5 and path == "folder/a.parquet"
    with pytest.raises(DataError, match="nowhere://x: no filesystem.*vista ingest"):
        paths.filesystem("nowhere://x")


@pytest.mark.parametrize("unit, factor", [("s", 1e-3), ("ms", 1), ("us", 1e3), ("ns", 1e6)])
@pytest.mark.parametrize("type_", [pa.int64(), pa.float64()])
def test_times_that_are_numbers_are_read_in_their_unit(tmp_path, unit, factor, type_):
    wanted = [1_600_000_000_000, 1_600_000_000_000 + 86_400_000]
    times = pa.array([t * factor for t in wanted] + [None, -1e18, 9e18], pa.float64())
    times = times.cast(type_, safe=False)
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({**{n: [1] * 5 for n in ("user_id", "item_id", "action")}, "timestamp_ms": times}), path
    )
    source = inspect(str(path), EVENTS, Reading(time_unit=unit), (MIN_TIME_MS, 2 * 10**12))
    found = check(
        pq.read_table(path),
        source,
        Rules(MIN_TIME_MS, 2 * 10**12, ("0", "1"), (), Reading(time_unit=unit)),
        0,
    )
    assert found.columns["time"].tolist() == wanted
    assert [x.reason for x in found.letters] == ["null_time", "negative_time", "time_too_late"]
    for other in {"s", "ms", "us", "ns"} - {unit}:
        pq.write_table(pq.read_table(path).slice(0, 2), tmp_path / "two.parquet")
        with pytest.raises(WrongTime, match=f"--time-unit {unit}"):
            inspect(
                str(tmp_path / "two.parquet"), EVENTS, Reading(time_unit=other), (MIN_TIME_MS, 2 * 10**12)
            )
