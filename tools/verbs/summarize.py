"""``vista summarize``: every user's history to summary tokens, published as one full generation."""

from __future__ import annotations

from typing import Annotated

import typer

from tools import runs
from tools.options import BeamArguments, DryRunOption, JsonOption, RunnerOptions, SummaryOptions, WholeHome
from tools.verbs.plan import show


def command(
    beam: BeamArguments = None,
    *,
    at: WholeHome,
    summaries: SummaryOptions,
    snapshot: Annotated[
        int | None, typer.Option(help="History snapshot.  [default: the current one]")
    ] = None,
    runner: RunnerOptions,
    device: Annotated[str, typer.Option(help="Torch device of the workers.")] = "cpu",
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> int:
    """Summarise every user's whole history and publish it as one full generation. One task per bucket."""
    from beam_jobs.generation import summarize

    options = summarize.SummarizeOptions(
        **summaries.options(at),
        bundle=str(at.newest_model),
        run_dir=str(summaries.run_dir or at.new_run("summarize")),
        snapshot=snapshot,
        device=device,
    )
    if dry_run:
        show(options, runner.workers, json)
        return 0
    return runs.run(summarize.run, options, runner.arguments(beam), json)
