"""``vista ingest``: raw logs to history and impression tables, bucketed and sorted by user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from tools import console, runs
from tools.home import Home
from tools.options import (
    HOME,
    HomeOption,
    JsonOption,
    MaxBytesOption,
    ModeOption,
    RunOption,
    WarehouseOption,
    WorkersOption,
    as_bytes,
    beam_arguments,
    pairs,
    split_beam,
)


def command(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="EVENTS... [-- BEAM OPTIONS]",
            help="Files, folders or globs of events, as Parquet, CSV, TSV or JSON lines (also .gz, .bz2, .zst), with "
            "columns user_id, item_id, action, timestamp_ms and, if there, "
            "surface, request_id.",
        ),
    ] = None,
    home: HomeOption = HOME,
    warehouse: WarehouseOption = None,
    run_dir: RunOption = None,
    impressions: Annotated[
        list[str] | None,
        typer.Option(
            help="Files of what was shown: request_id, user_id, item_id, position, actions. May be repeated."
        ),
    ] = None,
    items: Annotated[
        list[str] | None,
        typer.Option(help="Files with item_id and name: names for numbered items. May be repeated."),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEANING=NAME",
            help="A column under another name, e.g. timestamp_ms=event_time. May be repeated.",
        ),
    ] = None,
    impression_column: Annotated[
        list[str] | None,
        typer.Option(metavar="MEANING=NAME", help="The same for the files of --impressions."),
    ] = None,
    buckets: Annotated[
        int,
        typer.Option(
            min=0,
            help="Buckets of a new warehouse, fixed for its life: its tasks and shards.  [default: 16]",
            show_default=False,
        ),
    ] = 0,
    action: Annotated[
        list[str] | None,
        typer.Option(
            help="The action vocabulary, one name each time, in order; other actions are dead letters.  "
            "[default: found in the logs]"
        ),
    ] = None,
    surface: Annotated[
        list[str] | None,
        typer.Option(help="The vocabulary of string surfaces, likewise.  [default: found in the logs]"),
    ] = None,
    time_unit: Annotated[
        str, typer.Option("--time-unit", help="Unit of times that are numbers: s, ms, us or ns.")
    ] = "ms",
    skip_bad_files: Annotated[
        bool, typer.Option("--skip-bad-files", help="Go on without unreadable files; exit code 3.")
    ] = False,
    min_time: Annotated[
        int | None,
        typer.Option(
            help="Earliest time taken, ms since 1970; earlier rows are dead letters.  [default: 1990]",
            show_default=False,
        ),
    ] = None,
    max_time: Annotated[
        int | None, typer.Option(help="Latest time taken, likewise.  [default: in a day]", show_default=False)
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Read files that were ingested before; known rows are dropped.")
    ] = False,
    adopt: Annotated[
        bool,
        typer.Option(
            "--adopt",
            help="Instead of reading files, take over a history table that another engine keeps in the catalog of "
            "--warehouse; needs --buckets and --action.",
        ),
    ] = False,
    undo: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Instead of reading files, take back what the ingest RUN brought (name of its run or run directory).",
        ),
    ] = None,
    memory_rows: Annotated[
        int,
        typer.Option("--memory-rows", min=1, help="Rows a worker holds while sorting, about 200 bytes each."),
    ] = 4_000_000,
    max_bytes: MaxBytesOption = None,
    mode: ModeOption = "in_memory",
    workers: WorkersOption = 1,
    json: JsonOption = False,
) -> int:
    """Bring logs in any order into the tables. One atomic snapshot per run; the same files again add nothing."""
    from beam_jobs.ingest import job as ingest

    at = Home(home)
    if adopt:
        return _adopt(at.tables(warehouse), buckets, action or (), surface or (), json)
    if undo is not None:
        return _undo(at.tables(warehouse), undo, json)
    events, beam = split_beam(files)
    optional = {"min_time_ms": min_time} if min_time is not None else {}
    options = ingest.IngestOptions(
        events=tuple(events),
        impressions=tuple(impressions or ()),
        items=tuple(items or ()),
        warehouse=at.tables(warehouse),
        run_dir=str(run_dir or at.new_run("ingest")),
        columns=pairs(column, "--column"),
        impression_columns=pairs(impression_column, "--impression-column"),
        num_buckets=buckets,
        actions=tuple(action) if action else None,
        surfaces=tuple(surface) if surface else None,
        time_unit=time_unit,
        skip_bad_files=skip_bad_files,
        max_time_ms=max_time,
        again=again,
        max_rows=memory_rows,
        max_bytes=as_bytes(max_bytes),
        **optional,
    )
    return runs.report(ingest.run(options, beam_arguments(beam, mode, workers)), json)


def _undo(where: str | dict[str, str], run: str, json: bool) -> int:
    from vista.data.tables.undoing import undo
    from vista.data.tables.warehouse import Warehouse

    done = undo(Warehouse(where).open(), run)
    found = {
        "run": done.run,
        "rows": done.rows,
        "files": done.files,
        "logs": len(done.logs),
        "again": list(done.again),
    }
    if json:
        console.json_line(found)
        return 0
    console.fields("taken back", {**found, "again": ", ".join(done.again) or "none"})
    if done.again:
        console.note(
            "rows of these logs were left out as known: run vista ingest on them again, then vista summarize"
        )
    else:
        console.note("run vista summarize: summaries still know what was taken back")
    return 0


def _adopt(
    where: str | dict[str, str], buckets: int, actions: Sequence[str], surfaces: Sequence[str], json: bool
) -> int:
    from cache_store.format.keys import bucket_of
    from vista.data.tables.adopting import adopt
    from vista.data.tables.warehouse import Warehouse

    if not buckets or not actions:
        raise typer.BadParameter(
            "--adopt needs --buckets N, as the table was bucketed, and --action NAME once for every bit of its actions"
        )
    tables = adopt(
        Warehouse(where),
        num_buckets=buckets,
        bucket_of=bucket_of,
        actions=tuple(actions),
        surfaces=tuple(surfaces),
    )
    files = [f for found in tables.bucket_files().values() for f in found]
    found = {"tables": tables.name, "events": sum(f.rows for f in files), "files": len(files)}
    found["items"] = len(tables.read_items())
    console.json_line(found) if json else console.fields("adopted", found)
    return 0
