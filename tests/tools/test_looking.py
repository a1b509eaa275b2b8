"""`vista status`, `vista runs` and `vista doctor`: the first line says what is wrong and what to run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cache_store.store import Store
from cache_store.testing import Truth
from tools import cli
from tools.report import health, run_history, tables_seen
from vista.data.tables.relocating import relocate
from vista.errors import DataError

ROOT = Path(__file__).parents[2]


def vista(capsys, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    streams = capsys.readouterr()
    return int(stop.value.code or 0), streams.out, streams.err


@pytest.fixture
def copy(small_home, tmp_path):
    """The small home's store and runs, to be spoiled; its tables and model stay where they are."""
    shutil.copytree(small_home.home.store, tmp_path / "store")
    shutil.copytree(small_home.home.runs, tmp_path / "runs")
    (tmp_path / "model").symlink_to(small_home.home.model)
    return tmp_path, ("--home", tmp_path, "--warehouse", small_home.home.warehouse)


def first(capsys, where) -> tuple[int, str, str]:
    """Exit code, first line, and the next command of `vista status`."""
    code, out, _ = vista(capsys, "status", *where)
    lines = out.splitlines()
    text = " ".join(line.strip() for line in lines[: lines.index("")])
    return code, text.partition(" next: ")[0], text.partition(" next: ")[2]


def test_a_home_that_is_well_says_so_first_in_80_columns_and_exits_0(small_home, capsys):
    code, out, _ = vista(capsys, "status", "--home", small_home.path)
    assert code == 0 and out.startswith("healthy: generation 00000002 serves 60 users, 0 events behind")
    assert max(map(len, out.splitlines())) <= 80
    assert all(word in out for word in ("newest event", "summarised", "published", "disk", "last runs"))


def test_the_json_of_status_keeps_its_shape(small_home, capsys):
    _, out, _ = vista(capsys, "status", "--home", small_home.path, "--json")
    found = json.loads(out)
    assert {"healthy", "exit_code", "problems", "warehouse", "model", "store", "runs"} <= set(found)
    assert set(found["store"]["clocks"]) == {"newest_event_ms", "published_ms", "summarized_ms"}
    assert found["store"]["lag"]["events"] == 0 and found["store"]["users"] == 60
    assert [run["job"] for run in found["runs"]] == ["refresh", "ingest", "summarize"]


def test_status_imports_neither_torch_nor_beam_nor_asked_again_the_library_of_the_tables(small_home, capsys):
    _, before, _ = vista(capsys, "status", "--home", small_home.path, "--json")
    code = (
        "import sys\nfrom tools import cli\ntry:\n    cli.main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print('|', [m for m in ('torch', 'apache_beam', 'faiss', 'pyiceberg') if m in sys.modules])"
    )
    words = [sys.executable, "-c", code, "status", "--home", str(small_home.path), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    told, _, heavy = done.stdout.rpartition("|")
    assert heavy.strip() == "[]"
    assert json.loads(told)["warehouse"] == json.loads(before)["warehouse"]
    assert json.loads(told)["store"]["lag"] == json.loads(before)["store"]["lag"]


def test_what_was_told_of_the_tables_holds_only_while_tables_and_store_are_the_same(small_home, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(small_home.path, home)
    relocate(home / "warehouse")
    kept = home / tables_seen.KEPT
    kept.unlink(missing_ok=True)

    def look() -> tuple[bool, int | None]:
        """Whether the tables were opened, and how far the store is behind."""
        seen = tables_seen.TablesSeen(str(home / "warehouse"), home / "store", home, keep=True)
        assert seen.overview["events"] > 0
        with Store.open(home / "store") as store:
            behind = seen.lag(store.manifest, store).events
        return "tables" in vars(seen), behind

    assert look() == (True, 0) and look() == (False, 0)
    text = kept.read_text()
    for spoilt in (
        "",
        "[]",
        "{}",
        text.replace('"mark": "', '"mark": "0'),
        text.replace("events", "evants"),
        text[:-9],
    ):
        kept.write_text(spoilt)
        assert look() == (True, 0) and look() == (False, 0), spoilt
    file = next((home / "warehouse").glob("*/history/metadata/*.avro"))
    os.utime(file, (1, 1))
    assert look() == (True, 0) and look() == (False, 0)
    Store(home / "store").rollback()
    opened, behind = look()
    assert opened and behind > 0 and look() == (False, behind)
    data = next((home / "warehouse").glob("*/history/data/*/*.parquet"))
    os.utime(data, (1, 1))
    assert look() == (True, behind) and look() == (False, behind)
    Store(home / "store").promote(generation="00000002")
    assert look()[1] == 0 and look() == (False, 0)
    shutil.copytree(home, tmp_path / "copy")
    twin = tables_seen.TablesSeen(
        str(tmp_path / "copy" / "warehouse"), tmp_path / "copy" / "store", tmp_path / "copy"
    )
    with pytest.raises(DataError, match="relocate"):
        assert twin.overview is None


def test_damage_is_followed_by_what_helps_against_it(tmp_path, capsys):
    truth = Truth(num_users=30)
    store = truth.create(tmp_path / "store")
    for number in range(1, 7):
        truth.publish(store, f"run-{number}", number)

    def spoilt(number: int) -> tuple[int, str]:
        shard = next((tmp_path / "store" / "generations" / f"{number:08d}").glob("shard-*.mdb"))
        whole = shard.read_bytes()
        shard.write_bytes(whole[:-1])
        code, what, command = first(capsys, ("--home", tmp_path))
        assert f"{number:08d} is damaged" in what
        shard.write_bytes(whole)
        return code, command.split(" --home")[0].removesuffix(" ").rpartition(" ")[2]

    assert spoilt(6) == (4, "rollback")
    assert spoilt(5) == (3, "verify")  # kept to go back to
    assert spoilt(1) == (3, "prune")  # nothing needs it


def test_nothing_at_all_is_a_usage_error(tmp_path, capsys):
    for where in (tmp_path / "none", tmp_path):
        code, _, err = vista(capsys, "status", "--home", where)
        assert code == 2 and "vista ingest" in err
    code, _, err = vista(capsys, "status", "--home", tmp_path, "--store", tmp_path / "no")
    assert code == 2 and "no store" in err


def test_a_damaged_shard_of_what_is_live_is_wrong_and_names_the_way_back(copy, capsys):
    home, where = copy
    shard = next((home / "store" / "generations" / "00000002").glob("shard-*.mdb"))
    shard.write_bytes(shard.read_bytes()[:-1])
    code, what, command = first(capsys, where)
    assert code == 4 and "00000002 is damaged" in what and "rollback" in command
    assert vista(capsys, "rollback", *where[:2])[0] == 0
    code, what, _ = first(capsys, where)
    assert code == 3 and "damaged" in what


def test_a_store_behind_the_tables_for_too_long_wants_a_refresh(copy, capsys):
    home, where = copy
    store = Store(home / "store")
    store.rollback()
    code, what, _ = first(capsys, where)
    assert code == 0 and "events behind the tables" in what and " 0 events" not in what
    code, what, command = first(capsys, (*where, "--max-lag-hours", 0))
    assert code == 3 and "not in the store" in what and "refresh" in command


def test_events_that_stopped_coming_are_seen_where_it_is_asked_for(small_home, capsys):
    code, what, command = first(capsys, ("--home", small_home.path, "--max-event-age-hours", 1))
    assert code == 3 and "newest event" in what and "runs" in command


def test_a_run_that_failed_is_named_with_the_command_that_goes_on(copy, capsys):
    home, where = copy
    run = home / "runs" / "refresh-20991231-000000"
    shutil.copytree(next((home / "runs").glob("refresh-*")), run)
    facts = json.loads((run / "run.json").read_text())
    facts |= {"exit_code": None, "finished_ms": None, "started_ms": 4_000_000_000_000}
    (run / "run.json").write_text(json.dumps(facts))
    assert first(capsys, where)[1].endswith("the last refresh stopped")
    (run / "failures").mkdir()
    (run / "failures" / "bucket-00001.json").write_text(
        json.dumps({"error": "DataError", "text": "x.parquet: gone", "exit_code": 2, "trace": []})
    )
    code, what, command = first(capsys, where)
    assert code == 3 and "DataError: x.parquet: gone" in what and f"--run-dir {run}" in command
    code, out, _ = vista(capsys, "runs", run)
    assert code == 3 and "x.parquet" in out
    code, out, _ = vista(capsys, "runs", *where[:2], "--json")
    assert code == 0 and json.loads(out)[0]["outcome"] == "failed"


def test_a_run_under_way_is_no_failure(copy):
    import fcntl

    home, _ = copy
    run = next((home / "runs").glob("refresh-*"))
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "exit_code": None, "finished_ms": None}))
    with open(run / "run.lock", "w") as lock:
        assert run_history.read(run).outcome == "stopped"
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run_history.read(run).outcome == "running"


def test_a_run_of_another_user_is_private_and_nothing_bad(tmp_path, monkeypatch):
    (tmp_path / "ingest-1").mkdir()
    (tmp_path / "ingest-1/run.json").write_text("{}")

    def denied(path):  # root may read everything, so the answer of the kernel is given in its place
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(run_history, "small_json", denied)
    (run,) = run_history.runs(tmp_path)
    assert (run.outcome, run.bad, run.job) == ("private", False, "ingest")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"job": 1}', '{"job": "x", "started_ms": "y"}',
                                  '{"job": "x", "started_ms": 1, "counts": 7}'])  # fmt: skip
def test_a_damaged_record_is_told_and_stops_nothing(copy, capsys, text):
    home, where = copy
    (home / "runs" / "odd").mkdir()
    (home / "runs" / "odd" / "run.json").write_text(text)
    code, out, _ = vista(capsys, "runs", *where[:2], "--json")
    assert code == 0 and "damaged" in {run["outcome"] for run in json.loads(out)}


def test_a_full_disk_is_foreseen(copy, capsys, monkeypatch):
    from tools.report import store_seen

    monkeypatch.setattr(store_seen, "free_bytes", lambda path: 10)
    code, what, command = first(capsys, copy[1])
    assert code == 3 and "left on the disk" in what and "prune" in command


def test_every_problem_names_a_paragraph_that_the_runbook_has():
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    source = (ROOT / "tools" / "report" / "health.py").read_text(encoding="utf-8")
    import re

    named = set(
        re.findall(r'"(A [a-z ]+|Nothing is live|Many small files|Deep chains|Another model)"', source)
    )
    headings = set(re.findall(r"^#+ (.*)$", text, re.MULTILINE))
    assert named and named <= headings


def test_sizes_are_told_for_a_person():
    assert [health.size(n) for n in (0, 1023, 1024, 10_240, 3 << 30, 5 << 40)] == [
        "0 B", "1,023 B", "1.0 KiB", "10 KiB", "3.0 GiB", "5.0 TiB",
    ]  # fmt: skip


def test_the_doctor_says_what_will_not_work_and_why(tmp_path, capsys, monkeypatch):
    code, out, _ = vista(capsys, "doctor", "--home", tmp_path, "--json")
    found = json.loads(out)
    assert code == 0 and found["ok"] and {c["verdict"] for c in found["checks"]} <= {"ok", "note", "no"}
    assert not list(tmp_path.iterdir())
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 64))
    code, out, _ = vista(capsys, "doctor", "--home", tmp_path)
    assert code == 3 and "open files" in out.splitlines()[0] and "ulimit -n" in out
