"""`vista diff` and `vista explain` tell what is so: counted by hand from the tables, and from what was stored."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cache_store.store import Store
from tools import cli, histories
from vista import bundle as bundles
from vista.data.tables.warehouse import Warehouse


def vista(capsys, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    streams = capsys.readouterr()
    return int(stop.value.code or 0), streams.out, streams.err


def told(capsys, *words: object) -> dict:
    code, out, err = vista(capsys, *words, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def users(small_home) -> list[int]:
    with Store.open(small_home.home.store) as store:
        return np.concatenate([store.users(b) for b in range(2)]).tolist()


def test_a_generation_does_not_differ_from_itself(small_home, capsys):
    found = told(capsys, "diff", "00000002", "main", "--home", small_home.path)
    assert (found["added"], found["gone"], found["changed"], found["grown"]) == (0, 0, 0, 0)
    assert all(v == [0.0] * 5 for v in found["drift"].values())


def test_a_delta_changes_only_users_that_it_refreshed(small_home, capsys, users):
    found = told(capsys, "diff", "00000001", "--home", small_home.path)
    record = json.loads((next(small_home.home.runs.glob("refresh-*")) / "run.json").read_text())
    assert found["grown"] + found["added"] == record["counts"]["users"]
    assert 0 < found["changed"] <= found["grown"] and found["gone"] == 0
    assert found["kept"] + found["added"] == len(users)
    assert max(v[-1] for v in found["drift"].values()) > 0
    assert sum(row["users"] for row in found["by_length"]) == found["sampled"]
    code, out, _ = vista(capsys, "diff", "00000001", "--home", small_home.path)
    assert code == 0 and "drift by length of history" in out


def test_an_unknown_generation_is_told(small_home, capsys):
    code, _, err = vista(capsys, "diff", "00000099", "--home", small_home.path)
    assert code != 0 and "00000099" in err and "vista status" in err and "internal" not in err


def test_what_weighs_most_is_what_the_history_has_most_often(small_home, capsys, users):
    tables = Warehouse(small_home.home.warehouse).open()
    for user in users[:3]:
        found = told(capsys, "explain", user, "--home", small_home.path)
        events = histories.newest(tables, [user], 1 << 20)
        assert found["history"]["events"] == found["record"]["events"] == len(events)
        counted = {i: int((events.item == i).sum()) for i in np.unique(events.item).tolist()}
        for row in found["held"]["items"]:
            assert row["masses"][0] == pytest.approx(counted[row["item"]], rel=0.15)
        assert found["record"]["status"] == "FRESH" and found["record"]["state_bytes"] > 0


def test_a_recommended_item_is_explained_with_its_place_and_its_past(small_home, capsys, users):
    home = small_home.path
    top = told(capsys, "recommend", users[0], "-k", 3, "--home", home)["users"][0]["items"]
    found = told(capsys, "explain", users[0], "--item", top[1]["item"], "--home", home)["item"]
    events = histories.newest(Warehouse(small_home.home.warehouse).open(), [users[0]], 1 << 20)
    assert found["touched"] == int((events.item == top[1]["item"]).sum())
    assert found["place"] is not None
    assert found["probability"]["with_summary"] == pytest.approx(top[1]["probability"], rel=1e-3)
    code, out, _ = vista(capsys, "explain", users[0], "--item", top[1]["item"], "--home", home)
    assert code == 0 and "place among the recommended" in out


def test_a_stranger_is_explained_as_missing_with_code_3(small_home, capsys):
    code, out, _ = vista(capsys, "explain", "12345", "--home", small_home.path, "--json")
    assert code == 3 and json.loads(out)["record"]["status"] == "MISSING"


def test_names_go_to_the_model_s_numbers_and_back(small_home):
    from vista.data.events import Events
    from vista.data.logs.values import hash_strings
    from vista.errors import DataError

    bundle = bundles.load(small_home.home.model)
    known = bundle.items()["item_id"].to_numpy()[:3]
    assert bundle.names(known) == bundle.items()["name"].to_pylist()[:3] and bundle.names([-5]) == [None]
    columns = bundle.encode(items=["SKU-1", "SKU-2"], actions=["1", ["0", "2"]], surfaces=[0, 1])
    assert columns["item"].tolist() == hash_strings(["SKU-1", "SKU-2"]).tolist()
    assert columns["action"].tolist() == [2, 5]
    assert len(Events.of([2], **columns, time=np.array([1, 2]))) == 2
    for wrong in ({"actions": ["bought"]}, {"items": "SKU-1"}, {"items": ["a", 1]}, {"surfaces": ["home"]},
                  {"items": [1.5]}, {"items": [None]}, {"items": [1 << 70]}, {"surfaces": [0.5]}):  # fmt: skip
        with pytest.raises(DataError):
            bundle.encode(**wrong)
    with pytest.raises(DataError, match="encode"):
        Events.of([1], item=["SKU-1"], time=[1])
