"""What is named on the command line is worked on: nothing absent is passed over, nothing foreign is written over."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from test_every_verb import vista

from cache_store.remote.copy import push, sweep
from cache_store.store import Store
from tools.drills import storage
from vista.data.tables.relocating import relocate


@pytest.mark.parametrize(
    "words",
    [
        "forget 1 --yes --store", "forget 1 --yes --warehouse", "forget 1 --dry-run --store", "prune --store",
        "prune --warehouse", "compact tables --store", "status --store", "status --warehouse", "status --model",
        "report --store", "report --model", "explain 1 --warehouse", "explain 1 --model",
    ],
)  # fmt: skip
def test_a_place_that_is_named_and_not_there_is_an_error_and_nothing_is_done_elsewhere(
    words, small_home, tmp_path, capsys
):
    kept = Store(small_home.home.store).generations()
    code, _, err = vista(capsys, *words.split(), tmp_path / "typo", "--home", small_home.path)
    assert code == 2 and words.split()[-1] in err and "typo" in err, err
    assert list(tmp_path.iterdir()) == [] and Store(small_home.home.store).generations() == kept


@pytest.mark.parametrize(
    "words",
    ["ingest --undo x --dry-run", "ingest --undo x more.csv", "compact store --files 3", "compact --all"],
)
def test_an_option_that_would_say_nothing_beside_another_is_an_error(words, small_home, capsys):
    code, _, err = vista(capsys, *words.split(), "--home", small_home.path)
    assert code == 2 and "says nothing with" in err, err


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400", "-1"])
@pytest.mark.parametrize(
    "option", ["prune --staging-hours", "lookup 1 --max-age-days", "summarize --expire-after"]
)
def test_what_is_no_number_is_no_age(option, value, small_home, capsys):
    code, _, err = vista(capsys, *option.split(), value, "--home", small_home.path)
    assert code == 2 and option.split()[-1] in err, err


@pytest.mark.parametrize("kind", ["text", "pipe", "folder"])
@pytest.mark.parametrize(
    "verb", ["status --prometheus", "report --out", "lookup 1 --out", "recommend 1 --out"]
)
def test_nothing_is_written_over_what_is_not_of_the_same_verb(verb, kind, small_home, tmp_path, capsys):
    place, words = tmp_path / "notes", (*verb.split(), tmp_path / "notes", "--home", small_home.path)
    if kind == "text":
        place.write_text("mine")
    else:
        os.mkfifo(place) if kind == "pipe" else place.mkdir()
    before = place.lstat()
    code, _, err = vista(capsys, *words)
    assert code == 2 and "name another file" in err and place.lstat().st_ino == before.st_ino, err
    if kind == "text":
        assert place.read_text() == "mine"
        place.unlink()
        assert [vista(capsys, *words)[0] in (0, 3) for _ in range(2)] == [True, True]  # its own is replaced


@pytest.mark.parametrize(
    "properties",
    [
        {"type": "rest", "uri": "http://me:word@127.0.0.1:9/", "token": "word"},
        {"type": "sql", "uri": "sqlite:////nowhere/x.db", "warehouse": "/nowhere"},
        {"type": "no-such", "uri": "x"},
    ],
)
def test_a_catalog_that_cannot_be_reached_is_told_without_its_login(properties, tmp_path, capsys):
    catalog = tmp_path / "catalog.json"
    catalog.write_text(json.dumps(properties))
    code, out, err = vista(capsys, "status", "--home", tmp_path, "--warehouse", catalog)
    assert code == 4 and "CatalogAway" in err and "word" not in out + err, err


def test_a_store_that_lost_its_format_is_told_and_never_passed_over(small_home, tmp_path, capsys):
    home = tmp_path / "home"
    shutil.copytree(small_home.path, home)
    relocate(home / "warehouse")
    with Store.open(home / "store", lease=False) as store:
        user = store.users(0)[0]
    (home / "store/FORMAT").unlink()
    before = sorted((p, p.lstat().st_mtime_ns) for p in (home / "warehouse").rglob("*"))
    for words in (
        f"forget {user} --yes",
        "prune --staging-hours 0",
        "status",
        f"lookup {user}",
        "compact store",
    ):
        code, _, err = vista(capsys, *words.split(), "--home", home)
        assert code == 2 and "FORMAT" in err and "restore" in err, (words, code, err)
    assert sorted((p, p.lstat().st_mtime_ns) for p in (home / "warehouse").rglob("*")) == before
    for words in ("refresh", "summarize", "compact tables --files 1"):
        code, _, err = vista(capsys, *words.split(), "--home", home)
        assert code == 2 and str(home / "store") in err.replace("\n", ""), (words, code, err)


def test_a_push_and_its_sweep_leave_alone_what_they_did_not_bring(small_home, tmp_path, capsys):
    mine = tmp_path / "docs/generations/00000009"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("mine")
    words = ("push", f"file://{tmp_path}/docs", "--sweep", "--home", small_home.path)
    code, _, err = vista(capsys, *words)
    assert code == 2 and "URL of its own" in err and os.listdir(tmp_path / "docs") == ["generations"]
    url = f"file://{tmp_path}/remote"
    push(Store(small_home.home.store), None, url)
    (tmp_path / "remote/generations/notes").mkdir()
    assert sweep(url) == [] and (tmp_path / "remote/generations/notes").is_dir()
    code, _, err = vista(capsys, "push", "s3://me:word@nowhere/x", "--home", small_home.path)
    assert code == 4 and "word" not in err and "***@nowhere" in err


@pytest.mark.skipif(not storage.mountable(), reason="needs the right to mount")
@pytest.mark.parametrize(
    "words",
    ["lookup {user}", "recommend {user} -k 3 --candidates 20", "explain {user}", "status", "verify", "plan refresh",
     "diff 00000001 00000002", "runs", "config", "report --out {tmp}/r.html"],
)  # fmt: skip
def test_what_only_reads_works_on_a_home_that_cannot_be_written(words, small_home, tmp_path, capsys):
    with Store.open(small_home.home.store, lease=False) as store:
        user = store.users(0)[0]
    with storage.seen_read_only(small_home.path) as home:
        code, _, err = vista(capsys, *words.format(user=user, tmp=tmp_path).split(), "--home", home)
    assert code in (0, 3), err
