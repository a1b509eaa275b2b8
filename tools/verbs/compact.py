"""``vista compact``: a chain of deltas into one full generation, or the small files of the tables into few."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from tools import console, runs
from tools.options import (
    BeamArguments,
    DryRunOption,
    HomeOfData,
    JsonOption,
    LineOption,
    Runner,
    RunnerOptions,
    RunOption,
    alone,
    there,
)


class Compacted(StrEnum):
    store = "store"
    tables = "tables"


def command(
    context: typer.Context,
    what: Annotated[
        Compacted, typer.Argument(help="store: deltas of a line. tables: files of the buckets.")
    ] = Compacted.store,
    beam: BeamArguments = None,
    *,
    at: HomeOfData,
    line: LineOption = "main",
    run_dir: RunOption = None,
    files: Annotated[
        int, typer.Option("--files", min=1, help="Tables: buckets with more files than this are due.")
    ] = 8,
    everything: Annotated[
        bool, typer.Option("--all", help="Tables: every bucket down to one file, whatever it costs.")
    ] = False,
    memory_rows: Annotated[
        int, typer.Option("--memory-rows", min=1, help="Tables: rows a worker holds, about 200 bytes each.")
    ] = 1_000_000,
    runner: RunnerOptions,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> int:
    """Fold what refreshes and ingests leave behind: deltas of the store, or (`compact tables`) files of the tables.

    Both give what was there in fewer pieces, and leave the old pieces to `vista prune`. Files that came after the
    oldest kept generation of the store stay as they are, so that refresh can go on from it.
    """
    there(at)
    if what is Compacted.tables:
        from beam_jobs.tables import compact as compact_tables

        options = compact_tables.CompactOptions(
            at.tables, str(run_dir or at.new_run("compact")), (str(at.store),), most=files, everything=everything,
            max_rows=memory_rows,
        )  # fmt: skip
        if dry_run:
            return _shown("would merge", compact_tables.due(options), json)
        return runs.run(compact_tables.run, options, runner.arguments(beam), json)
    from cache_store import Store

    of_tables = {"warehouse", "files", "everything", "memory_rows"}
    alone(context, "compact store", *({p.name or "" for p in context.command.params} - of_tables))
    if dry_run:
        with Store.open(at.store, line=line) as opened:
            m = opened.manifest
        plan = {"line": line, "from": m.generation, "deltas to fold": m.depth, "users": m.records}
        return _shown("would fold", plan, json)
    if beam or run_dir or runner != Runner():
        from beam_jobs.generation import fold

        wanted = fold.FoldOptions(str(at.store), str(run_dir or at.new_run("compact")), line)
        return runs.run(fold.run, wanted, runner.arguments(beam), json)
    with Store.open(at.store, line=line) as opened, console.status("compacting"):
        before = opened.manifest
        name = opened.compact()
        after = opened.manifest
    found = {"line": line, "generation": name, "from": before.generation, "deltas folded": before.depth}
    return _shown("compacted", {**found, "users": after.records, "bytes": after.bytes}, json)


def _shown(title: str, found: dict[str, Any], json: bool) -> int:
    console.told(title, found, json)
    return 0
