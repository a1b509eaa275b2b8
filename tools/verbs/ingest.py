"""``vista ingest``: raw logs to history and impression tables, bucketed and sorted by user."""

from __future__ import annotations

from typing import Annotated

import typer

from tools import runs
from tools.home import Home
from tools.options import (
    HOME,
    HomeOption,
    JsonOption,
    ModeOption,
    RunOption,
    WarehouseOption,
    WorkersOption,
    beam_arguments,
    pairs,
    split_beam,
)


def command(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="EVENTS... [-- BEAM OPTIONS]",
            help="Parquet files, folders or globs of events: user_id, item_id, action, timestamp_ms and, if there, "
            "surface, request_id.",
        ),
    ] = None,
    home: HomeOption = HOME,
    warehouse: WarehouseOption = None,
    run_dir: RunOption = None,
    impressions: Annotated[
        list[str] | None,
        typer.Option(
            help="Files of impressions: request_id, user_id, item_id, position, actions. May be repeated."
        ),
    ] = None,
    items: Annotated[
        list[str] | None, typer.Option(help="Files with item_id and name. May be repeated.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEANING=NAME", help="A column under another name, e.g. timestamp_ms=event_time."
        ),
    ] = None,
    impression_column: Annotated[
        list[str] | None, typer.Option(metavar="MEANING=NAME", help="The same for impressions.")
    ] = None,
    buckets: Annotated[
        int, typer.Option(min=0, help="Buckets of a new warehouse, fixed for its life; 0: 16.")
    ] = 0,
    action: Annotated[
        list[str] | None, typer.Option(help="The action vocabulary, in order.  [default: found in the logs]")
    ] = None,
    skip_bad_files: Annotated[
        bool, typer.Option("--skip-bad-files", help="Go on without unreadable files; exit code 3.")
    ] = False,
    min_time: Annotated[
        int | None, typer.Option(help="Earliest time taken, ms.  [default: 1990]", show_default=False)
    ] = None,
    max_time: Annotated[int | None, typer.Option(help="Latest time taken, ms.  [default: tomorrow]")] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Read files that were ingested before; known rows are dropped.")
    ] = False,
    memory_rows: Annotated[
        int,
        typer.Option("--memory-rows", min=1, help="Rows a worker holds while sorting, about 200 bytes each."),
    ] = 4_000_000,
    mode: ModeOption = "in_memory",
    workers: WorkersOption = 1,
    json: JsonOption = False,
) -> int:
    """Bring logs in any order into the tables. One atomic snapshot per run; the same files again add nothing."""
    from beam_jobs import ingest

    at = Home(home)
    events, beam = split_beam(files)
    optional = {"min_time_ms": min_time} if min_time is not None else {}
    options = ingest.IngestOptions(
        events=tuple(events),
        impressions=tuple(impressions or ()),
        items=tuple(items or ()),
        warehouse=str(warehouse or at.warehouse),
        run_dir=str(run_dir or at.new_run("ingest")),
        columns=pairs(column, "--column"),
        impression_columns=pairs(impression_column, "--impression-column"),
        num_buckets=buckets,
        actions=tuple(action) if action else None,
        skip_bad_files=skip_bad_files,
        max_time_ms=max_time,
        again=again,
        max_rows=memory_rows,
        **optional,
    )
    return runs.report(ingest.run(options, beam_arguments(beam, mode, workers)), json)
