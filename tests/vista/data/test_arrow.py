"""Arrow's columns as NumPy's: nulls, lists and dictionaries come out as they went in."""

import numpy as np
import pyarrow as pa

from vista.data.arrow import decoded, list_lengths, lists, read_tables, true, valid, write_table


def test_lists_come_back_by_their_lengths_and_a_null_has_none():
    lengths = np.array([2, 0, 0, 3])
    made = lists(lengths, np.arange(5), np.array([False, True, False, False]))
    assert made.to_pylist() == [[0, 1], None, [], [2, 3, 4]]
    assert list_lengths(made).tolist() == lengths.tolist() and valid(made).tolist() == [
        True,
        False,
        True,
        True,
    ]
    assert true(pa.array([True, None, False])).tolist() == [True, False, False]


def test_a_dictionary_and_runs_are_the_values_they_stand_for():
    plain = pa.array(["a", "a", None, "b"])
    runs = pa.RunEndEncodedArray.from_arrays([2, 4], pa.array([7, None]))
    assert decoded(plain.dictionary_encode()).equals(plain) and decoded(plain) is plain
    assert decoded(runs).to_pylist() == [7, 7, None, None]


def test_files_are_read_in_the_order_given_and_no_file_is_an_empty_table(tmp_path):
    schema = pa.schema([pa.field("a", pa.int64(), False), pa.field("b", pa.string())])
    uris = [str(tmp_path / "new" / f"{n}.parquet") for n in range(2)]
    for n, uri in enumerate(uris):
        assert write_table(pa.table({"b": [None, f"b{n}"], "more": [0, 0], "a": [n, 9]}), uri) == uri
    assert read_tables(reversed(uris), schema).to_pydict() == {
        "a": [1, 9, 0, 9],
        "b": [None, "b1", None, "b0"],
    }
    assert read_tables([], schema).equals(schema.empty_table())
