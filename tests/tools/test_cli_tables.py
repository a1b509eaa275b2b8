"""The verbs on tables, run as a person would: text logs, seconds, a catalog in a file, another engine's table."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tools import cli

T0 = 1_600_000_000


def vista(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    streams = capsys.readouterr()
    return int(stop.value.code or 0), streams.out, streams.err


def log(folder: Path, n: int, start: int = 0) -> str:
    path = folder / f"log-{n}.csv"
    rows = [f"{u},{(u * 7 + i) % 30},view,{T0 + start + 60 * i}" for u in range(20) for i in range(5)]
    path.write_text("user,item_id,action,at\n" + "\n".join(rows) + "\n")
    return str(path)


def test_tables_are_filled_merged_pruned_and_looked_at_by_the_verbs(tmp_path, capsys):
    home = ("--home", str(tmp_path / "home"))
    columns = ("--column", "user_id=user", "--column", "timestamp_ms=at", "--time-unit", "s")
    for n in range(3):
        assert vista(capsys, "ingest", log(tmp_path, n, 1_000 * n), *home, *columns, "--buckets", "2")[0] == 0
    bad = tmp_path / "bad.csv"
    bad.write_text(f"user,item_id,action,at\n1,2,view,soon\n1,2,view,{T0 + 10**6}\n1,2\n")
    code, _, err = vista(capsys, "ingest", str(bad), *home, *columns)
    assert code == 3 and "set aside: 2 broken_line" in err
    status = json.loads(vista(capsys, "status", *home, "--json")[1])["warehouse"]
    assert status["events"] == 301 and status["most files of a bucket"] == 4
    code, out, _ = vista(capsys, "compact", "tables", *home, "--files", "2", "--json")
    assert code == 0 and json.loads(out)["counts"]["events"] == 301
    code, out, _ = vista(capsys, "prune", *home, "--staging-hours", "0", "--json")
    assert code == 0 and json.loads(out)["tables"]["files"] >= 7
    code, out, _ = vista(capsys, "status", *home)
    assert code == 0 and "`vista train` makes one" in out
    code, _, err = vista(capsys, "train", "--home", str(tmp_path / "none"))
    assert code == 2 and "vista ingest" in err


def test_tables_may_lie_in_any_catalog_named_by_a_file(tmp_path, capsys):
    where = tmp_path / "catalog.json"
    where.write_text(
        json.dumps(
            {
                "type": "sql",
                "uri": f"sqlite:///{tmp_path}/shared.db",
                "warehouse": f"file://{tmp_path}/lake",
                "namespace": "people",
            }
        )
    )
    tables = ("--warehouse", str(where), "--home", str(tmp_path / "home"))
    columns = ("--column", "user_id=user", "--column", "timestamp_ms=at", "--time-unit", "s")
    assert vista(capsys, "ingest", log(tmp_path, 0), *tables, *columns)[0] == 0
    status = json.loads(vista(capsys, "status", *tables, "--json")[1])["warehouse"]
    assert status["events"] == 100 and status["path"].endswith("shared.db/people")
    where.write_text("{}")
    code, _, err = vista(capsys, "status", *tables)
    assert code == 2 and "catalog.json" in err and "docs/data.md" in err


def test_a_table_of_another_engine_is_adopted_with_its_items(tmp_path, capsys):
    from pyiceberg.catalog import load_catalog

    from cache_store.format.keys import bucket_of
    from vista.data.tables.rows import HISTORY
    from vista.data.tables.schemas import bucket_spec, table_schema

    (tmp_path / "w").mkdir()
    uri = f"sqlite:///{tmp_path}/w/catalog.db"
    catalog = load_catalog("vista", type="sql", uri=uri, warehouse=f"file://{tmp_path}/w")
    catalog.create_namespace("vista")
    schema = table_schema(HISTORY, "int64")
    table = catalog.create_table("vista.history", schema, partition_spec=bucket_spec(schema))
    users = sorted(range(40))
    columns = {
        "bucket": bucket_of(users, 4),
        "user_id": users,
        "time": [1_000 * T0] * 40,
        "request": [0] * 40,
    }
    columns |= {"item": [u % 7 for u in users], "action": [1] * 40, "surface": [0] * 40}
    table.append(pa.table(columns, schema=schema.as_arrow()))
    tables = ("--warehouse", str(tmp_path / "w"))
    code, _, err = vista(capsys, "ingest", "--adopt", *tables)
    assert code == 2 and "--buckets" in err
    code, out, _ = vista(capsys, "ingest", "--adopt", *tables, "--buckets", "4", "--action", "view", "--json")
    found = json.loads(out)
    assert code == 0 and (found["events"], found["items"]) == (40, 7)
    pq.write_table(
        pa.table({"user_id": [3], "item_id": [9], "action": ["view"], "timestamp_ms": [1_000 * T0 + 5]}),
        tmp_path / "more.parquet",
    )
    assert (
        vista(capsys, "ingest", str(tmp_path / "more.parquet"), *tables, "--home", str(tmp_path / "h"))[0]
        == 0
    )
    status = json.loads(vista(capsys, "status", *tables, "--json")[1])["warehouse"]
    assert (status["events"], status["items"]) == (41, 8)


def test_what_is_given_beside_a_configuration_is_not_ignored(tmp_path, capsys):
    (tmp_path / "c.json").write_text('{"users": 7, "min_events": 5, "max_events": 9}')
    out = str(tmp_path / "logs")
    code, told, _ = vista(
        capsys, "generate", out, "--config", str(tmp_path / "c.json"), "--users", "4", "--json"
    )
    assert code == 0 and json.loads(told)["users"] == 4
    code, _, err = vista(capsys, "generate", out, "--config", str(tmp_path / "none.json"))
    assert code == 2 and "none.json" in err
