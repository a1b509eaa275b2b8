"""A bad value of any option that says how logs are read: told in one line, with an example, before anything is made."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tools.cli import main

LOG = """user_id,item_id,action,timestamp_ms,rating,tags,tab
1,2,view,1700000000000,4.5,a b,home
1,3,like,1700000001000,2,c,feed
"""
CASES = [
    ("--layout kuairnd", "--layout", "'kuairnd'", "--layout kuairand"),
    ("--column user=uid", "--column", "found user;", "--column timestamp_ms=event_time"),
    ("--column user_id=nouser", "log.csv", "'nouser'", "--column user_id=user_id"),
    ("--column user_id", "--column takes", "'user_id'", "--column timestamp_ms=event_time"),
    ("--column user_id=", "--column user_id=", "found none", "--column timestamp_ms=event_time"),
    ("--column item_id=item_id --column item_id=tab", "--column item_id", "(item_id, tab)", "--column item_id=item_id"),
    ("--column timestamp_ms=timestamp_ms+nope", "log.csv", "'nope'", "--column timestamp_ms=timestamp_ms"),
    ("--impression-column x=y", "--impression-column", "'x'", "--impression-column timestamp_ms=y"),
    ("--item-column user_id=y", "--item-column", "'user_id'", "--item-column vector=y"),
    ("--items log.csv --item-column name=nope", "log.csv", "'nope' (string)", "--item-column name="),
    ("--action-column like", "--action-column", "'like='", "--action-column like=is_like"),
    ("--action-column like=nope", "log.csv", "'nope'", "--action-column like="),
    ("--action-column 'like=rating>=high'", "--action-column", "'high'", "'like=rating>=4'"),
    ("--action-column like=action", "--action-column like=action", "'view'", "'like=action==view'"),
    ("--action-column a=rating --action-column a=tab", "--action-column", "'a' twice", "--action-column like=is_like"),
    ("--action-is ''", "--action-is", "found none", "--action-is view"),
    ("--unengaged maybe", "--unengaged", "'maybe'", "--unengaged events"),
    ("--unengaged impressions", "--unengaged impressions", "found none", "--action-column like=is_like"),
    ("--weight view=much", "--weight", "'much'", "--weight view=1"),
    ("--weight view=nan", "--weight", "found nan", "--weight view=1"),
    ("--weight vew=1", "--weight", "found vew", "--weight like=1"),
    ("--weight view=1 --weight vew=1", "--weight", "found vew", "--weight like=1"),
    ("--header user_id,user_id,action,timestamp_ms", "--header", "'user_id' twice", "--header user_id,item_id,-"),
    ("--header user_id,item_id", "log.csv", "found 2 names", "--header user_id,item_id,-,-,-,-,-"),
    ("--header a,b,c,d,e,f,g", "log.csv", "'timestamp_ms'", "--header user_id,item_id,action,timestamp_ms"),
    ("--explode nope", "--explode nope", "found ['user_id'", "--explode tab"),
    ("--explode tags:a", "--explode", "'tags:a'", "--explode events"),
    ("--constant where=home", "--constant", "found where", "--constant surface=web"),
    ("--constant surface=", "--constant surface=", "found none", "--constant surface=web"),
    ("--constant timestamp_ms=yesterday", "--constant", "'yesterday'", "timestamp_ms=2024-01-31T12:00:00"),
    ("--constant position=top", "--constant", "'top'", "--constant position=0"),
    ("--time-unit min", "--time-unit", "'min'", "--time-unit s"),
    ("--time-unit s", "log.csv", "found 1700000000000 to", "--time-unit ms"),
    ("--time-format banana", "--time-format", "'banana'", "--time-format '%m"),
    ("--time-format %Y", "log.csv", "like '1700000000000'", "--time-format '%m"),
    ("--time-from never", "--time-from", "'never'", "--time-from 2020-01-01"),
    ("--min-time -5", "--min-time", "found -5", "--min-time 0"),
    ("--action view --action view", "--action", "'view' twice", "--action view"),
    ("--surface a --surface a", "--surface", "'a' twice", "--surface a"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "where", "found", "example"), CASES, ids=[c[0] for c in CASES])
def test_a_bad_value_is_told_with_option_or_file_what_was_found_and_an_example(
    tmp_path, monkeypatch, capsys, words, where, found, example
):
    monkeypatch.chdir(tmp_path)
    Path("log.csv").write_text(LOG)
    with pytest.raises(SystemExit) as done:
        main(["ingest", "log.csv", *shlex.split(words), "--home", "home"])
    told = capsys.readouterr().err.strip()
    lines = [line for line in told.splitlines() if "--help" not in line]
    assert done.value.code == 2 and len(lines) <= 2, told
    for part in (where, "expected" if "takes" not in where else "takes", found, example):
        assert part in told, told
    assert not Path("home", "warehouse", "vista", "history").exists()


def test_a_weight_of_a_layout_may_be_of_an_action_that_these_logs_have_not_and_one_that_was_asked_for_may_not(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("log.csv").write_text(LOG)
    Path("mine.toml").write_text("[weights]\nview = 2\nbuy = 5\n")
    for more, code in (([], 0), (["--weight", "buy=6"], 2)):
        with pytest.raises(SystemExit) as done:
            main(["ingest", "log.csv", "--layout", "mine.toml", *more, "--home", f"home{code}"])
        assert (done.value.code or 0) == code
    assert "found buy" in capsys.readouterr().err


def test_one_file_may_tell_events_and_what_its_items_are(tmp_path, monkeypatch, capsys):
    from vista.data.tables.warehouse import Warehouse

    monkeypatch.chdir(tmp_path)
    Path("log.csv").write_text(LOG)
    words = "--items log.csv --item-column name=tags --item-column category=tab --home home"
    with pytest.raises(SystemExit) as done:
        main(["ingest", "log.csv", *words.split()])
    tables = Warehouse("home/warehouse").open()
    assert not done.value.code and list(tables.read_items().name) == ["a b", "c"]
    assert list(tables.read_content().category) == ["home", "feed"]
