"""Folders of tables that are copied, moved, linked or oddly named: theirs is touched and nobody else's."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from beam_jobs.tables import forget
from cache_store.format.keys import bucket_of
from vista.data.events import Events
from vista.data.tables import ledger, manifests
from vista.data.tables.appending import append
from vista.data.tables.commits import Addition, commit
from vista.data.tables.folder import WarehouseMoved
from vista.data.tables.forgetting import forget_users
from vista.data.tables.ledger import LedgerRow
from vista.data.tables.manifests import TableDamaged
from vista.data.tables.pruning import prune
from vista.data.tables.reading import read_bucket
from vista.data.tables.relocating import relocate
from vista.data.tables.warehouse import Warehouse
from vista.errors import DataError


def filled(folder, commits=2):
    warehouse = Warehouse(folder).create(num_buckets=2)
    for number in range(commits):
        more(warehouse, number)
    return warehouse


def more(warehouse, commit):
    users = np.arange(6)
    events = Events.of([3] * 6, item=np.arange(18) + commit, time=np.arange(18) + 100 * commit)
    append(warehouse, users, events, bucket_of(users, 2), f"run{commit}")


def rows(folder):
    files = Warehouse(folder).open().bucket_files()
    return sum(len(b.events) for found in files.values() for b in read_bucket(found, max_rows=1_000))


def bytes_below(folder):
    return {p: hashlib.sha256(p.read_bytes()).digest() for p in Path(folder).rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["exp#1", "what?", "50% off", "a b", "zoë", "line\nbreak", "a::b", "[x]*"])
def test_a_folder_of_any_name_works_and_leaves_nothing_beside_itself(tmp_path, name):
    home = tmp_path / name / "w"
    warehouse = filled(home)
    forget_users(warehouse, [1])
    prune(Warehouse(home).open(), (), before_ms=2**62)
    more(Warehouse(home).open(), 2)
    assert rows(home) == 5 * 3 * 3 and [p.name for p in tmp_path.iterdir()] == [name]
    shutil.copytree(home, tmp_path / "plain")
    relocate(tmp_path / "plain")
    assert rows(tmp_path / "plain") == rows(home)


def test_a_folder_whose_name_is_no_text_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(DataError, match="UTF-8"):
        Warehouse(str(tmp_path / "caf\udce9")).exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("work", [lambda w: w.open(), lambda w: w.exists(), lambda w: forget_users(w, [1])])
def test_a_copy_is_refused_until_it_was_relocated_and_the_original_is_never_touched(tmp_path, work):
    filled(tmp_path / "home")
    shutil.copytree(tmp_path / "home", tmp_path / "copy")
    before = bytes_below(tmp_path / "home")
    with pytest.raises(WarehouseMoved, match="vista relocate"):
        work(Warehouse(tmp_path / "copy"))
    done = relocate(tmp_path / "copy")
    assert done.files and done.old == f"file://{tmp_path}/home" and relocate(tmp_path / "copy").files == 0
    copy = Warehouse(tmp_path / "copy").open()
    forget_users(copy, [1])
    more(copy, 7)
    prune(copy, (), before_ms=2**62)
    assert bytes_below(tmp_path / "home") == before and rows(tmp_path / "home") == 36
    assert rows(tmp_path / "copy") == 30 + 15
    held = [
        p
        for p, d in bytes_below(tmp_path / "copy").items()
        if bytes(f"{tmp_path}/home", "utf8") in p.read_bytes()
    ]
    assert held == []


def test_a_moved_folder_is_whole_again_whatever_moment_the_relocation_was_cut_off(tmp_path, monkeypatch):
    snapshot = filled(tmp_path / "old").snapshot()
    (tmp_path / "old").rename(tmp_path / "new")
    real, left = os.replace, 0

    def replace(source, target):
        nonlocal budget
        budget -= 1
        if budget < 0:
            raise KeyboardInterrupt
        real(source, target)

    while True:
        budget = left
        monkeypatch.setattr(os, "replace", replace)
        try:
            relocate(tmp_path / "new")
            break
        except KeyboardInterrupt:
            left += 1
        finally:
            monkeypatch.setattr(os, "replace", real)
        with pytest.raises(WarehouseMoved):
            Warehouse(tmp_path / "new").open()
    assert left > 5 and rows(tmp_path / "new") == 36
    assert Warehouse(tmp_path / "new").open().snapshot() == snapshot
    assert Warehouse(tmp_path / "new").bucket_files(since=snapshot) == {}
    assert not list((tmp_path / "new").rglob("*.tmp"))


def test_a_folder_reached_by_a_link_is_at_home(tmp_path):
    filled(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert rows(tmp_path / "link") == 36
    more(Warehouse(tmp_path / "link").open(), 3)
    assert rows(tmp_path / "real") == 54


def test_half_a_copy_and_a_damaged_catalogue_are_told(tmp_path):
    filled(tmp_path / "home")
    shutil.copytree(tmp_path / "home", tmp_path / "half", ignore=shutil.ignore_patterns("*.parquet"))
    with pytest.raises(DataError, match="missing, such as"):
        relocate(tmp_path / "half")
    shutil.copytree(tmp_path / "home", tmp_path / "bare", ignore=shutil.ignore_patterns("*.metadata.json"))
    with pytest.raises(DataError, match="copy the home again"):
        relocate(tmp_path / "bare")
    (tmp_path / "home" / "catalog.db").write_bytes(b"no catalogue")
    with pytest.raises(DataError, match="expected an SQLite catalog"):
        Warehouse(tmp_path / "home").open()
    with pytest.raises(DataError, match="expected tables, found none"):
        relocate(tmp_path / "nothing")


@pytest.mark.parametrize("how", ["missing", "empty", "of another"])
def test_tables_whose_catalogue_was_lost_are_not_made_anew(how, tmp_path):
    folder = tmp_path / "w"
    filled(folder)
    (folder / "catalog.db").unlink()
    if how == "empty":
        (folder / "catalog.db").touch()
    elif how == "of another":
        Warehouse(tmp_path / "other").create(num_buckets=2)
        with contextlib.closing(sqlite3.connect(tmp_path / "other/catalog.db")) as db, db:
            db.execute("delete from iceberg_tables")
        shutil.copy(tmp_path / "other/catalog.db", folder / "catalog.db")
    before = sorted(p for p in folder.rglob("*.parquet"))
    for work in (
        lambda: Warehouse(folder).exists(),
        lambda: Warehouse(folder).open(),
        lambda: Warehouse(folder).create(num_buckets=2),
        lambda: forget.run(forget.ForgetOptions([1], str(folder))),
    ):
        with pytest.raises(DataError, match="restore it from a copy"):
            work()
    assert sorted(p for p in folder.rglob("*.parquet")) == before


@pytest.mark.parametrize(
    "pattern", ["history/metadata/*.avro", "history/metadata/*.json", "items/data/*.parquet"]
)
def test_damage_to_the_tables_own_files_is_a_typed_error_and_never_ends_the_process(pattern, tmp_path):
    folder, rng = tmp_path / "w", np.random.default_rng(1)
    filled(folder)
    whole = {path: path.read_bytes() for path in sorted((folder / "vista").glob(pattern))}
    assert whole
    told = 0
    for turn in range(60):
        for path, raw in whole.items():
            data = bytearray(raw if turn % 3 else rng.bytes(len(raw)))
            for at in rng.integers(0, len(data), 8):
                data[at] ^= 1 << int(rng.integers(8))
            manifests._kept.clear()  # as another process would see it
            path.write_bytes(data if turn % 2 else data[: int(rng.integers(len(data)))])
        try:
            tables = Warehouse(folder).open()
            tables.bucket_files(), tables.read_items(), prune(tables, (), 0, dry_run=True)
        except DataError:
            told += 1
    assert told > 40
    for path, raw in whole.items():
        path.write_bytes(raw)
    manifests._kept.clear()
    assert len(Warehouse(folder).open().read_items())


@pytest.mark.parametrize(
    "edit",
    ["a column gone", "a column renamed", "an unknown codec", "a relative place", "another relative place"],
)
def test_a_ledger_of_another_form_is_a_typed_error_and_writes_nowhere_else(edit, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    line = Addition("x", sources=[LedgerRow("l", 1, "d", 1, "events")])
    commit(filled(tmp_path / "w"), line)
    path = max((tmp_path / "w/vista/sources/metadata").glob("*.metadata.json"))
    facts = json.loads(path.read_text())
    columns = facts["schemas"][0]["fields"]
    if edit == "an unknown codec":
        facts["properties"]["write.parquet.compression-codec"] = "zste"
    elif edit == "a relative place":
        facts["location"] = "delta"
    elif edit == "another relative place":
        facts["properties"]["write.data.path"] = "delta"
    else:
        run = next(c for c in columns if c["name"] == "run")
        columns.remove(run) if edit == "a column gone" else run.update(name="walk")
    path.write_text(json.dumps(facts))
    with pytest.raises(TableDamaged):
        ledger.entries(Warehouse(tmp_path / "w").open())
        commit(Warehouse(tmp_path / "w").open(), line)
    assert not list((tmp_path / "here").iterdir())
