"""From a log in somebody's layout to a ranking: init, ingest, train, summarize and recommend by the command line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tools.cli import main
from vista.bundle import read_meta
from vista.data.logs.reading import Reading, layouts, load
from vista.data.logs.weights import guessed, weights
from vista.data.tables.warehouse import Warehouse
from vista.errors import ConfigError

T0 = 1_650_637_245_000
SMALL = {
    "model": {
        "width": 16,
        "embedding": {"rows": 509, "surfaces": 4},
        "slots": {"buckets": 16, "clusters": 0},
        "summarizer": {"layers": 1, "heads": 2, "chunk": 16, "seeds": 4},
        "ranker": {"layers": 1, "heads": 2, "recent": 8},
    },
    "validation_slates": 50,
}


def vista(capsys, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as done:
        main([str(w) for w in words])
    out, err = capsys.readouterr()
    return int(done.value.code or 0), out, err


def kuairand(path: Path, rng: np.random.Generator, n: int) -> Path:
    flags = ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view")
    head = "user_id,video_id,date,hourmin,time_ms," + ",".join(flags) + ",play_time_ms,is_rand,tab\n"
    rows = [
        f"{rng.integers(12)},{rng.integers(60)},20220422,2200,{T0 + int(t) * 1000},"
        + ",".join(str(int(rng.random() < 0.3)) for _ in flags) + ",27890,0,1\n"
        for t in np.sort(rng.integers(0, 10**6, n) // 5 * 5)
    ]  # fmt: skip
    (path / "log_standard.csv").write_text(head + "".join(rows))
    return path / "log_standard.csv"


def yambda(path: Path, rng: np.random.Generator, n: int) -> Path:
    table = pa.table(
        {
            "uid": pa.array(np.sort(rng.integers(0, 12, n)), pa.uint32()),
            "timestamp": pa.array(rng.integers(0, 5_000_000, n) * 5, pa.uint32()),
            "item_id": pa.array(rng.integers(0, 60, n), pa.uint32()),
            "is_organic": pa.array(rng.integers(0, 2, n), pa.uint8()),
            "event_type": pa.array(np.array(["listen", "like", "dislike"])[rng.integers(0, 3, n)]),
        }
    )
    pq.write_table(table, path / "multi_event.parquet")
    return path / "multi_event.parquet"


def lastfm(path: Path, rng: np.random.Generator, n: int) -> Path:
    when = np.datetime_as_string(np.datetime64(T0, "ms") - rng.integers(0, 10**9, n), "s")
    rows = [f'user_{u:06}\t{t}Z\tx\tArtist\t\t"Song {i}\n'
            for u, t, i in zip(rng.integers(0, 12, n), when, rng.integers(0, 60, n), strict=True)]  # fmt: skip
    (path / "userid-timestamp.tsv").write_text("".join(rows))
    return path / "userid-timestamp.tsv"


@pytest.mark.parametrize(
    ("layout", "make", "user"),
    [("kuairand", kuairand, 3), ("yambda", yambda, 3), ("lastfm-1k", lastfm, "user_000003")],
)
def test_a_log_of_a_known_layout_goes_all_the_way_to_a_ranking(tmp_path, capsys, layout, make, user):
    file = make(tmp_path, np.random.default_rng(1), 900)
    home = tmp_path / "home"
    assert vista(capsys, "init", file, "--home", home, "--layout", layout)[0] == 0
    code, out, _ = vista(capsys, "ingest", file, "--home", home, "--buckets", 2, "--json")
    told = load(layout).weights
    counts = json.loads(out.splitlines()[-1])["counts"]
    assert code == 0 and counts["events_read"] == 900
    tables = Warehouse(home / "warehouse").open()
    assert tables.weights == {a: w for a, w in told.items() if a in tables.actions}
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    config = ("--config", tmp_path / "small.json", "--steps", 2)
    assert vista(capsys, "train", "--home", home, *config, "--json")[0] == 0
    assert read_meta(home / "model")[0].weights == tables.weights
    assert vista(capsys, "summarize", "--home", home, "--json")[0] == 0
    code, out, _ = vista(capsys, "recommend", user, "--home", home, "-k", 3, "--json")
    found = json.loads(out)
    (answer,) = found["users"]
    assert code == 0 and answer["status"] == "FRESH" and len(answer["items"]) == 3
    for item in answer["items"]:
        worth = sum(found["weights"][a] * p for a, p in item["probability"].items())
        assert item["score"] == pytest.approx(worth, rel=1e-4, abs=1e-5)
    if layout == "lastfm-1k":
        assert answer["items"][0]["name"].startswith('"Song ')
    action = tables.actions[0]
    _, out, _ = vista(capsys, "recommend", user, "--home", home, "--weight", f"{action}=-3", "--json")
    assert json.loads(out)["weights"][action] == -3


def test_init_writes_what_it_guesses_once_and_ingest_takes_it_from_there(tmp_path, capsys):
    (tmp_path / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n"
        + "".join(f"1,{i},{i % 10 / 2 + 0.5},94424907{i}\n" for i in range(10))
    )
    home = tmp_path / "home"
    home.mkdir()
    for other in (
        "log.time_unit = 's'\n",
        "['log']\ntime_unit = 's'\n",
        '[log]\nskip = """\n[lookup]\n"""\n',
    ):
        (home / "vista.toml").write_text(other)  # which cannot be written anew without loss
        assert vista(capsys, "init", tmp_path / "ratings.csv", "--home", home, "--force")[0] == 2
        assert (home / "vista.toml").read_text() == other
    (home / "vista.toml").write_text("[lookup]\nline = 'main'\n")
    code, _, _ = vista(capsys, "init", tmp_path / "ratings.csv", "--home", home)
    text = (home / "vista.toml").read_text()
    assert (
        code == 0
        and text.startswith("[lookup]")
        and 'liked = "rating>=4"' in text
        and 'time_unit = "s"' in text
    )
    assert vista(capsys, "init", tmp_path / "ratings.csv", "--home", home)[0] == 2
    code, out, err = vista(capsys, "ingest", tmp_path / "ratings.csv", "--home", home, "--dry-run")
    assert code == 0 and "1999-12-" in out and "liked" in out and not (home / "warehouse").exists()
    assert vista(capsys, "ingest", tmp_path / "ratings.csv", "--home", home, "--weight", "liked=3")[0] == 0
    assert Warehouse(home / "warehouse").open().weights == {"liked": 3, "disliked": -1}


def test_init_guesses_a_shop_s_own_names_and_a_time_by_its_values(tmp_path, capsys):
    columns = {"customer": ["a", "b"], "sku": ["x", "y"], "kind": ["view", "buy"],
               "at": ["2024-05-01T10:00:00", "2024-05-02T11:00:00"], "born": ["1999", "2001"]}  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "shop.parquet")
    code, out, err = vista(
        capsys, "init", str(tmp_path / "shop.parquet"), "--home", str(tmp_path / "h"), "--json"
    )
    assert code == 0, err
    assert json.loads(out)["log"]["columns"] == {
        "user_id": "customer", "item_id": "sku", "action": "kind", "timestamp_ms": "at"
    }  # fmt: skip


def test_init_takes_persons_and_things_that_no_column_calls_an_id(tmp_path, capsys):
    """Names that hold neither id nor user nor item; what only resembles one of a person or a thing is left alone."""
    for user, item, others in (
        ("Contributor", "Path", ["Tree", "Entry"]),
        ("changed_by", "fileName", ["user_agent", "country"]),
        ("author email", "page url", ["referrer_url", "customerCity"]),
        ("who", "song title", ["device", "standby"]),
    ):
        did = ["edit", "create", "removed"]
        names = [*others, "what", "seen on", user, item]
        rows = [["a", "b", did[d % 3], f"2024-05-0{d} 10:00:00", f"p{d % 3}", f"x{d}"] for d in range(1, 8)]
        lines = [names, *rows]
        (tmp_path / "log.csv").write_text("".join(";".join(line) + "\n" for line in lines))
        code, out, err = vista(
            capsys, "init", tmp_path / "log.csv", "--home", tmp_path / "h", "--dry-run", "--json"
        )
        columns = {"user_id": user, "item_id": item, "action": "what", "timestamp_ms": "seen on"}
        assert code == 0 and json.loads(out)["log"]["columns"] == columns, err


def test_init_says_all_that_it_could_not_guess_at_once(tmp_path, capsys):
    (tmp_path / "odd.csv").write_text("foo,bar\n1,2\n")
    code, _, err = vista(capsys, "init", tmp_path / "odd.csv", "--home", tmp_path / "home")
    assert code == 3 and "user_id, item_id, timestamp_ms;" in err


def test_init_finds_the_events_in_a_folder_of_several_kinds_of_files(tmp_path, capsys):
    folder, home = tmp_path / "a set", tmp_path / "home"
    folder.mkdir()
    (folder / "movies.csv").write_text("movieId,title,genres\n1,Toy Story,Comedy\n")
    (folder / "tags.csv").write_text("userId,movieId,tag,timestamp\n1,2,funny,944249077\n")
    for part in range(3):
        rows = "".join(f"{u},{part},4.0,94424907{u}\n" for u in range(9))
        (folder / f"ratings_{part}.csv").write_text("userId,movieId,rating,timestamp\n" + rows)
    for more in ((), ("--dry-run",)):
        code, _, err = vista(capsys, "ingest", folder, "--home", home, *more)
        assert (
            code == 2 and f"{folder}/movies.csv" in err and f"vista init '{folder}'" in err.replace("\n", " ")
        )
    code, out, err = vista(capsys, "init", folder, "--home", home, "--json")
    said = json.loads(out)
    assert code == 0 and said["logs"] == [f"{folder}/ratings_*.csv"], err
    assert {Path(o["logs"][0]).name: o["says"] for o in said["others"]} == {
        "movies.csv": "items, by its columns (no user_id, timestamp_ms)",
        "tags.csv": "events too, of other columns",
    }
    assert "movies.csv" in err and f"'{folder}/ratings_*.csv'" in err
    assert vista(capsys, "ingest", *said["logs"], "--home", home)[0] == 0
    assert Warehouse(home / "warehouse").open().actions == ("liked", "disliked")


def test_a_dry_run_of_a_folder_looks_at_every_kind_of_file_in_it(tmp_path, capsys):
    folder = tmp_path / "logs"
    folder.mkdir()
    for n in range(3):
        (folder / f"day-{n}.csv").write_text(
            f"user_id,item_id,action,timestamp_ms\n{n},2,view,1700000000000\n"
        )
    (folder / "shop.csv").write_text("user_id,item_id,action,timestamp_ms,price\n9,2,buy,1700000000000,5\n")
    code, out, err = vista(capsys, "ingest", folder, "--home", tmp_path / "h", "--dry-run", "--json")
    looks = json.loads(out)
    assert code == 0 and [Path(look["path"]).name for look in looks] == ["day-0.csv", "shop.csv"], err
    assert looks[1]["events"][0][0] == "9"
    (folder / "zoo.csv").write_text((folder / "day-0.csv").read_text() + "5,2,view,17\n")
    code, out, err = vista(capsys, "ingest", folder, "--home", tmp_path / "h", "--dry-run")
    assert code == 3 and out.count("timestamp_ms") == 2, "one table for files that are read alike"
    assert f"read alike: {folder}/shop.csv, {folder}/zoo.csv" in err, err
    assert f"row 2 of {folder}/zoo.csv, time_too_early" in err, err
    (folder / "zoo.csv").unlink()
    (folder / "zzz.csv").write_text(
        "movieId,title\n1,x\n"
    )  # told before anything is begun, not when it is read
    code, _, err = vista(capsys, "ingest", folder, "--home", tmp_path / "h", "--dry-run")
    assert code == 2 and f"{folder}/zzz.csv" in err and "vista init" in err


def test_rows_set_aside_as_too_early_come_with_the_option_that_the_run_names(tmp_path, capsys):
    log, home = tmp_path / "log.csv", tmp_path / "h"
    log.write_text("user_id,item_id,action,timestamp_ms\n1,2,view,1985-01-02\n1,3,view,2015-01-02\n")
    code, out, err = vista(capsys, "ingest", log, "--home", home)
    assert code == 3 and "1 time_too_early" in err and "--min-time takes earlier ones" in err, err
    code, out, err = vista(capsys, "ingest", log, "--home", home, "--min-time", 0, "--json")
    assert code == 0 and json.loads(out)["counts"]["events"] == 1, "the rest was there before"
    code, out, err = vista(capsys, "ingest", log, "--home", home, "--min-time", 0, "--json")
    assert code == 0 and json.loads(out)["counts"]["known_files"] == 1


def test_impressions_alone_are_not_taken_for_events(tmp_path, capsys):
    folder = tmp_path / "shown"
    folder.mkdir()
    columns = {
        "request_id": [1, 1], "user_id": [7, 7], "item_id": [1, 2], "position": [0, 1], "actions": [["view"], []],
        "timestamp_ms": [1_700_000_000_000] * 2,
    }  # fmt: skip
    pq.write_table(pa.table(columns), folder / "part-0.parquet")
    for words in (("init", folder), ("ingest", folder), ("ingest", folder, "--dry-run")):
        code, _, err = vista(capsys, *words, "--home", tmp_path / "h")
        assert code == 2 and "found impressions" in err and "--impressions" in err, (words, err)
    assert not (tmp_path / "h" / "vista.toml").exists() and not (tmp_path / "h" / "warehouse").exists()
    (folder / "log.csv").write_text("user_id,item_id,action,timestamp_ms\n7,1,view,1700000000000\n")
    code, out, err = vista(capsys, "init", folder, "--home", tmp_path / "h", "--json")
    said = json.loads(out)
    assert code == 0 and said["logs"] == [f"{folder}/log.csv"], err
    (other,) = said["others"]
    assert other["says"].startswith("impressions")
    words = ("ingest", *said["logs"], "--impressions", *other["logs"], "--home", tmp_path / "h")
    assert vista(capsys, *words)[0] == 0
    words = ("ingest", folder / "part-0.parquet", "--column", "action=actions", "--home", tmp_path / "meant")
    assert vista(capsys, *words)[0] in (0, 3)  # who names the actions means it


def test_times_without_a_year_are_refused_with_what_would_read_them(tmp_path, capsys):
    log = tmp_path / "log.csv"
    for value, form in (("24/Feb 10:15", "%Y %d/%b %H:%M"), ("Feb 29 10:15:01", "%Y %b %d %H:%M:%S")):
        log.write_text(f"user_id,item_id,action,timestamp_ms\n1,2,view,{value}\n")
        code, _, err = vista(capsys, "ingest", log, "--home", tmp_path / "h")
        assert code == 2 and repr(value) in err and f"--time-format '{form}'" in err, err
        short = form.removeprefix("%Y ")
        code, _, err = vista(capsys, "ingest", log, "--time-format", short, "--home", tmp_path / "h")
        assert code == 2 and "a format with a year" in err and f"--time-format '{form}'" in err, err
        log.write_text(log.read_text().replace(value, f"2024 {value}"))
        assert vista(capsys, "ingest", log, "--time-format", form, "--home", tmp_path / form[3:5])[0] == 0


def test_missing_columns_are_told_all_at_once_with_what_fits(tmp_path, capsys):
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,2,5.0,944249077\n")
    code, _, err = vista(capsys, "ingest", tmp_path / "ratings.csv", "--home", tmp_path / "home")
    assert code == 2
    assert "--column user_id=userId --column item_id=movieId --column action=rating" in err.replace("\n", " ")


def test_a_repository_becomes_events_of_its_authors_and_files(tmp_path, capsys):
    repo = tmp_path / "a repo"
    repo.mkdir()

    def git(*words: str) -> None:
        mine = ("-c", "user.name=A", "-c", "user.email=A@x.org", "-c", "init.defaultBranch=main")
        subprocess.run(["git", *mine, *words], cwd=repo, check=True, capture_output=True)

    git("init")
    for k, name in enumerate(("one.txt", "zwei\tü.txt", "one.txt")):
        (repo / name).write_text(str(k))
        git("add", "-A")
        git("commit", "-m", "x")
    code, out, _ = vista(capsys, "ingest", "git", repo, "--home", tmp_path / "home", "--json")
    tables = Warehouse(tmp_path / "home" / "warehouse").open()
    assert code == 0 and json.loads(out.splitlines()[-1])["counts"]["events"] == 3
    assert set(tables.read_items().name) == {"one.txt", "zwei\tü.txt"} and set(tables.actions) == {
        "add",
        "modify",
    }
    code, _, err = vista(capsys, "ingest", "git", tmp_path, "--home", tmp_path / "other")
    assert code == 2 and "expected a Git repository" in err


def test_every_layout_reads_back_from_what_it_prints(capsys, tmp_path):
    for name, reading in layouts().items():
        (tmp_path / f"{name}.toml").write_text(reading.to_toml())
        assert load(str(tmp_path / f"{name}.toml")) == reading and reading.about
    assert vista(capsys, "layouts")[0] == 0
    code, out, _ = vista(capsys, "layouts", "kuairand")
    assert code == 0 and 'hate = "is_hate"' in out
    assert Reading().to_json() == {}


def test_no_score_is_a_sum_over_what_people_did_not_do():
    assert guessed(["0", "1"]) == {"0": 0, "1": 1}
    assert guessed(["0.5", "5.0"]) == {"0.5": 0.1, "5.0": 1}
    assert guessed(["like", "dislike", "skip", "is_hate"]) == {
        "like": 1,
        "dislike": -1,
        "skip": 0,
        "is_hate": -1,
    }
    assert guessed(["0"]) == {"0": 1}
    assert weights(["a", "b"], {"a": 2}, {"a": -1}) == {"a": -1, "b": 1}
    with pytest.raises(ConfigError, match="--weight.*'c'.*--weight a=1"):
        weights(["a"], {"c": 1})
