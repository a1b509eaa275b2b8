"""`vista recommend --users-from FILE --out FILE`: what the file holds is what the screen would show."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache_store.store import Store
from tools import cli


def vista(capsys, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    streams = capsys.readouterr()
    return int(stop.value.code or 0), streams.out, streams.err


def test_users_of_a_file_get_what_each_would_get_alone(small_home, tmp_path, capsys):
    with Store.open(small_home.home.store) as store:
        users = store.users(0)[:5].tolist()
    pq.write_table(pa.table({"user_id": users}), tmp_path / "u.parquet")
    (tmp_path / "u.txt").write_text("".join(f"{u}\n" for u in users))
    home = ("--home", small_home.path, "-k", 4, "--json")
    out = tmp_path / "scores.parquet"
    for file in ("u.parquet", "u.txt"):
        code, told, err = vista(capsys, "recommend", "--users-from", tmp_path / file, "--out", out, *home)
        assert code == 0, err
        assert json.loads(told)["rows"] == 20 and json.loads(told)["fresh"] == 5
        table = pq.read_table(out)
        alone = json.loads(vista(capsys, "recommend", users[2], *home)[1])["users"][0]["items"]
        mine = table.filter(pa.compute.equal(table["user_id"], users[2]))
        assert mine["item_id"].to_pylist() == [i["item"] for i in alone]
        assert mine["rank"].to_pylist() == [1, 2, 3, 4]
        assert mine["score"].to_pylist() == pytest.approx([i["score"] for i in alone], rel=1e-4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scores.parquet", "u.parquet", "u.txt"]


def test_whom_nobody_knows_is_told_and_named_he_is_no_success(small_home, tmp_path, capsys):
    with Store.open(small_home.home.store) as store:
        known = int(store.users(0)[0])
    home = ("--home", small_home.path, "-k", 1, "--json")
    code, told, err = vista(capsys, "recommend", known, 10**12, *home)
    assert (
        code == 3
        and [u["known"] for u in json.loads(told)["users"]] == [True, False]
        and "1 of 2 users" in err
    )
    (tmp_path / "u.txt").write_bytes(b"\xef\xbb\xbf%d\r\n1000000000000\r\n" % known)
    some = ("recommend", "--users-from", tmp_path / "u.txt", "--out", tmp_path / "scores.parquet", *home)
    code, told, _ = vista(capsys, *some)  # a file may have new ones, but not of nothing else
    assert code == 0 and json.loads(told)["unknown"] == 1
    (tmp_path / "u.txt").write_text("1000000000000\n")
    assert vista(capsys, *some)[0] == 3


@pytest.mark.parametrize("ids", [[1.0], [b"1"], [True]])
def test_a_column_that_is_no_id_is_told(ids, small_home, tmp_path, capsys):
    pq.write_table(pa.table({"user_id": ids}), tmp_path / "u.parquet")
    words = ("recommend", "--users-from", tmp_path / "u.parquet", "--home", small_home.path)
    assert "whole numbers or texts" in vista(capsys, *words)[2]


def test_a_file_without_users_is_told(small_home, tmp_path, capsys):
    pq.write_table(pa.table({"id": [1]}), tmp_path / "u.parquet")
    code, _, err = vista(
        capsys, "recommend", "--users-from", tmp_path / "u.parquet", "--home", small_home.path
    )
    assert code == 2 and "user_id" in err
    assert vista(capsys, "recommend", "--home", small_home.path)[0] == 2
