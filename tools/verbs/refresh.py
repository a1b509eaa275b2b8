"""``vista refresh``: what came since the live generation, published as a delta over it."""

from __future__ import annotations

from typing import Annotated

import typer

from tools import console, runs
from tools.options import (
    BeamArguments,
    DryRunOption,
    JsonOption,
    RunnerOptions,
    SummaryOptions,
    WholeHome,
    as_ms,
    parse_users,
)
from tools.verbs.plan import show


def command(
    beam: BeamArguments = None,
    *,
    at: WholeHome,
    summaries: SummaryOptions,
    since: Annotated[
        int | None, typer.Option(help="Go on from this snapshot of the tables, not the parent's own.")
    ] = None,
    user: Annotated[
        list[str] | None,
        typer.Option("--user", help="Only this user, from its whole history. May be repeated."),
    ] = None,
    max_age_days: Annotated[
        float | None, typer.Option(min=0, help="Also recompute users summarised longer ago than this.")
    ] = None,
    max_depth: Annotated[
        int, typer.Option(min=1, help="Deltas over a full generation before compaction.")
    ] = 6,
    follow: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Do not end: look for new events this often, a delta each time there are; ^C ends.",
        ),
    ] = None,
    runner: RunnerOptions,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> int:
    """Resume the users that changed from their stored states and publish a delta generation.

    Where it cannot go on from the live generation (none yet, another model, other codecs) it runs
    summarize and says so.
    """
    from beam_jobs.generation import refresh
    from vista.data.tables.warehouse import Warehouse

    kind = Warehouse(at.tables).open().user_kind
    options = refresh.RefreshOptions(
        **summaries.options(at),
        bundle=str(at.model),
        run_dir=str(summaries.run_dir or (at.runs / "follow" if follow else at.new_run("refresh"))),
        since=since,
        users=tuple(parse_users(user, kind)) if user else None,
        max_age_ms=as_ms(max_age_days),
        max_depth=max_depth,
    )
    if dry_run:
        show(options, runner.workers, json)
        return 0
    arguments = runner.arguments(beam)
    if follow is None:
        return runs.run(refresh.run, options, arguments, json)
    code = 0
    for record in refresh.follow(options, arguments, every_s=follow):
        code = max(code, runs.report(record, json))
        console.note(f"looking again every {follow:g} s; ^C ends")
    return code
