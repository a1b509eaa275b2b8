"""``vista ingest``: raw logs to history and impression tables, bucketed and sorted by user."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tools import console, runs
from tools.log_options import WeightOption, git_history, given_reading, show_dry_run, weights
from tools.options import (
    HomeOfTables,
    JsonOption,
    MaxBytesOption,
    RunnerOptions,
    RunOption,
    alone,
    as_bytes,
    pairs,
    split_beam,
)


def command(
    context: typer.Context,
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="EVENTS... [-- BEAM OPTIONS]",
            help="Files, folders or globs of events: Parquet, CSV, TSV, .inter or JSON lines (also .gz, .bz2, "
            ".zst, .xz, .zip), Feather, Arrow IPC, ORC; with columns user_id, item_id, action, timestamp_ms and, if "
            "there, surface, request_id. `git PATH` takes the history of a repository.",
        ),
    ] = None,
    *,
    at: HomeOfTables,
    run_dir: RunOption = None,
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="How the files are laid out: one of `vista layouts`, or a file of one's own.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show the columns found, how each would be read and ten events; change nothing."
        ),
    ] = False,
    impressions: Annotated[
        list[str] | None,
        typer.Option(
            help="Files of what was shown: request_id, user_id, item_id, position, actions. May be repeated."
        ),
    ] = None,
    items: Annotated[
        list[str] | None,
        typer.Option(
            help="What items are: files with item_id and, as far as known, name, category, text, vector; or vectors as "
            "NumPy writes them (.npz, .npy). May be repeated, and given without events."
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEANING=NAME",
            help="A column under another name, e.g. timestamp_ms=event_time. May be repeated.",
        ),
    ] = None,
    action_column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=COLUMN[>=N]",
            help="A column that tells one action: 0/1 or true/false, a number and a bound (long_view=play_ms>=18000), "
            "or a list of the items with it. May be repeated: a row may have several actions.",
        ),
    ] = None,
    action_is: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="An action that every row has, where no column tells one."),
    ] = None,
    unengaged: Annotated[
        str | None,
        typer.Option(
            help="What a row is in which no --action-column tells an action: events (one without action), impressions "
            "(rows with an action are impressions too), or refused (a dead letter).  [default: events]"
        ),
    ] = None,
    weight: WeightOption = None,
    header: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME,-", help="Names of the columns of CSV and TSV without a header; - is none."
        ),
    ] = None,
    quotes: Annotated[
        bool | None,
        typer.Option(
            "--quotes/--no-quotes", help="Whether quotes enclose fields of CSV and TSV.  [default: look]"
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of text, e.g. latin-1.  [default: UTF-8, or UTF-16 by its mark]"),
    ] = None,
    explode: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN[:FIELD-FIELD]",
            help="A list (of a user, a session, a slate) of which each element is a row; of nested events the fields "
            "become columns; N1-0 is taken apart by :item_id-clicked. May be repeated for lists side by side.",
        ),
    ] = None,
    constant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEANING=VALUE", help="A value that all rows have, e.g. surface=web. May be repeated."
        ),
    ] = None,
    impression_column: Annotated[
        list[str] | None,
        typer.Option(metavar="MEANING=NAME", help="The same for the files of --impressions."),
    ] = None,
    item_column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEANING=NAME",
            help="The same for the files of --items, e.g. vector=embedding; of a .npy item_id is the file of its ids.",
        ),
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
        str | None,
        typer.Option("--time-unit", help="Unit of times that are numbers: s, ms, us or ns.  [default: ms]"),
    ] = None,
    time_format: Annotated[
        str | None,
        typer.Option(metavar="FORMAT", help="Of times that are text and not ISO 8601, as strptime has it."),
    ] = None,
    time_from: Annotated[
        str | None,
        typer.Option(
            metavar="order|DATE",
            help="order: no times, rows and files are in order. A date: times count from it.",
        ),
    ] = None,
    keep_repeats: Annotated[
        bool, typer.Option("--keep-repeats", help="Equal rows of one file are different events, not copies.")
    ] = False,
    skip_bad_files: Annotated[
        bool, typer.Option("--skip-bad-files", help="Go on without unreadable files; exit code 3.")
    ] = False,
    min_time: Annotated[
        int | None,
        typer.Option(
            help="Earliest time taken, ms since 1970; earlier rows are dead letters.  [default: 1990]"
        ),
    ] = None,
    max_time: Annotated[
        int | None, typer.Option(help="Latest time taken, likewise.  [default: in a day]")
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
    runner: RunnerOptions,
    json: JsonOption = False,
) -> int:
    """Bring logs in any order into the tables. One atomic snapshot per run; the same files again add nothing."""
    from beam_jobs.ingest import job as ingest

    if adopt:
        alone(context, "--adopt", "home", "warehouse", "adopt", "buckets", "action", "surface", "json")
        return _adopt(at.tables, buckets, action or (), surface or (), json)
    if undo is not None:
        alone(context, "--undo", "home", "warehouse", "undo", "json")
        return _undo(at.tables, undo, json)
    events, beam = split_beam(files)
    if action_is is not None and not action_is.strip():
        text = "--action-is: expected the name of an action, found none; for example --action-is view"
        raise typer.BadParameter(text)
    worth = weights(weight)
    log = given_reading(
        at, layout, columns=pairs(column, "--column"), actions=action_column,
        constants=pairs(constant, "--constant"), weights=worth, action_is=action_is, unengaged=unengaged,
        header=tuple(header.split(",")) if header else None, quotes=quotes, encoding=encoding,
        explode=tuple(explode) if explode else None, time_unit=time_unit, time_format=time_format,
        time_from=time_from, keep_repeats=keep_repeats or None,
    )  # fmt: skip
    optional: dict[str, Any] = {"min_time_ms": min_time} if min_time is not None else {}
    run_dir = run_dir or at.new_run("ingest")
    if events[:1] == ["git"] and len(events) > 1:
        events = [git_history(events[1:], at)]
    options = ingest.IngestOptions(
        events=tuple(events),
        impressions=tuple(impressions or ()),
        items=tuple(items or ()),
        warehouse=at.tables,
        run_dir=str(run_dir),
        log=log,
        impression_columns=pairs(impression_column, "--impression-column"),
        item_columns=pairs(item_column, "--item-column"),
        num_buckets=buckets,
        actions=tuple(action) if action else None,
        surfaces=tuple(surface) if surface else None,
        skip_bad_files=skip_bad_files,
        max_time_ms=max_time,
        again=again,
        weighed=tuple(worth),
        max_rows=memory_rows,
        max_bytes=as_bytes(max_bytes),
        **optional,
    )
    if dry_run:
        return show_dry_run(options, json)
    return runs.run(ingest.run, options, runner.arguments(beam), json)


def _undo(where: str | dict[str, str], run: str, json: bool) -> int:
    from vista.data.tables.undoing import undo
    from vista.data.tables.warehouse import Warehouse

    done = undo(Warehouse(where).open(), Path(run).name)
    found: dict[str, Any] = {"run": done.run, "rows": done.rows, "files": done.files, "logs": len(done.logs)}
    found["again"] = list(done.again)
    if json:
        console.json_line(found)
        return 0
    console.fields("taken back", found)
    remedy = "run vista summarize: summaries still know what was taken back"
    if done.again:
        remedy = (
            "rows of these logs were left out as known: run vista ingest on them again, then vista summarize"
        )
    console.note(remedy)
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
        Warehouse(where), num_buckets=buckets, bucket_of=bucket_of, actions=tuple(actions), surfaces=tuple(surfaces)
    )  # fmt: skip
    files = [f for found in tables.bucket_files().values() for f in found]
    found = {"tables": tables.name, "events": sum(f.rows for f in files), "files": len(files)}
    console.told("adopted", {**found, "items": len(tables.read_items())}, json)
    return 0
