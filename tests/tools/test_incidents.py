"""Incidents as a person on call meets them: from the first line of `vista status` to the remedy, by what it prints."""

from __future__ import annotations

import json
import shlex
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_home

from cache_store.store import Store
from tools import cli

HOUR = 3_600_000


def vista(capsys, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    streams = capsys.readouterr()
    return int(stop.value.code or 0), streams.out, streams.err


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("incidents"), users=40)


def status(capsys, home, *more) -> tuple[int, str, list[str]]:
    """Exit code, what is wrong, and the words of the command that comes next."""
    code, out, _ = vista(capsys, "status", "--home", home.path, *more)
    lines = out.splitlines()
    following = next((line.removeprefix("  next: ") for line in lines if line.startswith("  next: ")), "")
    words = shlex.split(following)
    return (
        code,
        " ".join(lines[: lines.index("")]),
        words[words.index("vista") + 1 :] if "vista" in words else words[1:],
    )


def log(home, name: str) -> str:
    """Events of two users after everything that is known."""
    with Store.open(home.home.store) as store:
        users, last = store.users(0)[:2].tolist(), store.manifest.watermark_ms
    path = home.path / f"{name}.parquet"
    columns = {
        "user_id": users,
        "item_id": [1, 2],
        "action": [0, 1],
        "timestamp_ms": [last + HOUR, last + HOUR],
    }
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_a_stale_store_is_refreshed_by_the_printed_command(home, capsys):
    code, _, err = vista(capsys, "ingest", log(home, "stale"), "--home", home.path)
    assert code == 0, err
    code, what, command = status(capsys, home, "--max-lag-hours", 0)
    assert code == 3 and "2 events of the tables are not in the store" in what
    assert vista(capsys, *command)[0] == 0
    assert status(capsys, home, "--max-lag-hours", 0)[0] == 0


def test_a_refresh_that_fails_goes_on_by_the_printed_command_once_the_cause_is_gone(home, capsys, tmp_path):
    live = Store(home.home.store).lines()["main"]
    assert vista(capsys, "ingest", log(home, "fails"), "--home", home.path)[0] == 0
    newest = max(
        (p for p in home.home.warehouse.rglob("*.parquet") if "history" in str(p)), key=lambda p: p.name
    )
    shutil.move(newest, tmp_path / "gone")
    code, _, err = vista(capsys, "refresh", "--home", home.path)
    assert code in (2, 4) and newest.name in err
    assert Store(home.home.store).lines()["main"] == live
    code, what, _ = status(capsys, home)
    assert code == 3 and "the last refresh failed" in what and newest.name in what.replace(" ", "")
    shutil.move(tmp_path / "gone", newest)
    _, _, command = status(capsys, home)
    assert command[0] == "refresh" and "--run-dir" in command
    assert vista(capsys, *command)[0] == 0
    assert status(capsys, home)[0] == 0


def test_a_bad_model_does_not_go_live_and_is_taken_live_only_by_hand(home, capsys):
    live = Store(home.home.store).lines()["main"]
    gate = home.path / "gate.toml"
    gate.write_text('[quality]\n"ranking.auc" = 1.01\n')
    code, out, _ = vista(capsys, "summarize", "--home", home.path, "--json")
    record = json.loads(out)
    assert code == 4 and "the gate refused" in record["notes"][-1] and "vista promote" in record["notes"][-1]
    assert Store(home.home.store).lines() == {"main": live, "main-refused": record["generation"]}
    code, what, _ = status(capsys, home)
    assert code == 3 and "the gate refused" in what
    assert vista(capsys, "diff", live, "main-refused", "--home", home.path)[0] == 0
    gate.unlink()
    assert vista(capsys, "promote", record["generation"], "--home", home.path)[0] == 0
    assert Store(home.home.store).lines()["main"] == record["generation"]


def test_too_little_room_is_told_before_anything_is_written_and_what_is_live_stays(home, capsys):
    before = Store(home.home.store).lines()
    code, _, err = vista(capsys, "summarize", "--home", home.path, "--max-bytes", "1K")
    assert code in (2, 4) and "max-bytes" in err
    assert Store(home.home.store).lines() == before
    assert vista(capsys, "prune", "--home", home.path, "--dry-run")[0] == 0


def test_a_damaged_shard_is_left_by_the_printed_command(home, capsys):
    live = Store(home.home.store).lines()["main"]
    shard = next((home.home.store / "generations" / live).glob("shard-*.mdb"))
    shard.write_bytes(shard.read_bytes()[:-1])
    code, what, command = status(capsys, home)
    assert code == 4 and f"generation {live} is damaged" in what and command[0] == "rollback"
    assert vista(capsys, *command)[0] == 0
    assert Store(home.home.store).lines()["main"] < live
    code, what, _ = status(capsys, home)
    assert code == 3, what  # it serves; the damaged one is still there
    assert vista(capsys, "verify", "--home", home.path)[0] == 4
