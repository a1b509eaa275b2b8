"""The demo is the whole way of the data, so it is the end-to-end test of the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tools import cli

pytestmark = pytest.mark.xdist_group("demo")  # it runs once


def vista(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict]:
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, "--json"])
    out = capsys.readouterr().out.strip().splitlines()
    return int(stop.value.code or 0), json.loads(out[-1]) if out else {}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", "--out", str(out), "--users", "60", "--seconds", "5", "--workers", "1"])
    assert not stop.value.code
    return out


def test_after_the_demo_two_generations_are_live_with_their_proof(home: Path, capsys) -> None:
    code, found = vista(capsys, "status", "--home", str(home))
    assert code == 0
    kinds = {g["generation"]: (g["kind"], g["dead letters"]) for g in found["store"]["generations"]}
    assert kinds == {"00000001": ("full", 0), "00000002": ("delta", 0), "00000003": ("full", 0)}
    assert found["store"]["lines"] == {"main": "00000002", "proof": "00000003"}


def test_looking_up_tells_known_from_unknown_users(home: Path, capsys) -> None:
    from cache_store import Store

    with Store.open(home / "store") as store:
        known = int(store.users(0)[0])
    code, found = vista(capsys, "lookup", str(known), "7", "--home", str(home))
    assert code == 3
    assert [row["status"] for row in found["users"]] == ["FRESH", "MISSING"]
    code, found = vista(capsys, "recommend", str(known), "-k", "5", "--home", str(home))
    assert code == 0 and len(found["users"][0]["items"]) == 5


def test_a_request_of_the_past_knows_nothing_that_came_later(home: Path, capsys) -> None:
    from cache_store import Store
    from vista.data.tables import Warehouse
    from vista.data.tables.reading import read_bucket

    files = next(iter(Warehouse(str(home / "warehouse")).open().bucket_files().values()))
    batch = next(iter(read_bucket(files, max_rows=1 << 20)))
    times, items = batch.events.time[: batch.events.lengths[0]], batch.events.item[: batch.events.lengths[0]]
    then = int(times[len(times) // 2])
    later = set(items[times > then].tolist()) - set(items[times <= then].tolist())
    words = ("recommend", str(batch.users[0]), "--home", str(home), "-k", "9000", "--candidates", "9000")
    code, found = vista(capsys, *words, "--exclude-seen", "--now", str(then))
    listed = {item["item"] for item in found["users"][0]["items"]}
    with Store.open(home / "store") as store:
        assert store.lookup([batch.users[0]], as_of=then).last_event_ms[0] <= then
    code, all_items = vista(capsys, *words, "--now", str(then))
    known = {item["item"] for item in all_items["users"][0]["items"]}
    assert code == 0 and later & known <= listed


def test_the_python_of_the_readme_and_of_serving_runs_as_it_stands(home: Path, tmp_path, monkeypatch) -> None:
    root = Path(__file__).parents[2]
    text = "".join((root / page).read_text(encoding="utf-8") for page in ("README.md", "docs/serving.md"))
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "my-home").symlink_to(home)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert names["tokens"].shape == (2, *names["found"].tokens.shape[1:])
    assert len(names["best"].of(0)[0]) == 10
    assert len(names["item"]) == len(names["score"]) == len(names["probability"]) == 10
    names["store"].close()


def test_verify_compact_rollback_prune_push_and_pull_follow_each_other(home: Path, tmp_path, capsys) -> None:
    where = ("--home", str(home))
    assert vista(capsys, "compact", *where)[1]["generation"] == "00000004"
    assert vista(capsys, "rollback", *where)[1]["live"] == "00000002"
    assert vista(capsys, "promote", "00000004", *where)[1]["live"] == "00000004"
    assert vista(capsys, "push", str(tmp_path / "far"), *where)[0] == 0
    code, pulled = vista(capsys, "pull", str(tmp_path / "far"), "--home", str(tmp_path / "copy"))
    assert code == 0 and pulled["copied"] > 0
    for place in (home, tmp_path / "copy"):
        code, found = vista(capsys, "verify", "--home", str(place))
        assert code == 0 and found["ok"]
    assert vista(capsys, "prune", "--keep", "1", *where)[0] == 0


def test_forgotten_users_are_in_no_file_below_the_home(home: Path, capsys) -> None:
    import pyarrow.parquet as pq

    from cache_store import Store, key_bytes

    with Store.open(home / "store") as store:
        gone = int(store.users(1)[0])
    assert vista(capsys, "forget", str(gone), "--home", str(home))[0] == 0
    code, found = vista(capsys, "lookup", str(gone), "--home", str(home))
    assert code == 3 and found["users"][0]["status"] == "MISSING"
    for path in (home / "store").rglob("*"):
        assert path.is_dir() or key_bytes(gone) not in path.read_bytes(), path
    for path in (home / "warehouse").rglob("*.parquet"):
        table = pq.read_table(path)
        if "user_id" in table.column_names:
            assert not np.isin(table["user_id"].to_numpy(), gone).any(), path


def test_the_demo_leaves_a_folder_that_is_not_its_own_alone(tmp_path: Path, capsys) -> None:
    (tmp_path / "precious.txt").write_text("keep me")
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert (tmp_path / "precious.txt").read_text() == "keep me"
