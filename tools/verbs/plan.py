"""``vista plan``: what a summarize or refresh would cost, before it runs."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from tools import console
from tools.options import ExpireOption, JsonOption, LineOption, MemoryOption, WholeHome, as_ms

if TYPE_CHECKING:
    from beam_jobs.generation.summarize import SummarizeOptions


class PlannedJob(StrEnum):
    summarize = "summarize"
    refresh = "refresh"


def command(
    job: Annotated[PlannedJob, typer.Argument(help="Which job.")] = PlannedJob.summarize,
    *,
    at: WholeHome,
    line: LineOption = "main",
    memory_events: MemoryOption = 262_144,
    expire_after: ExpireOption = None,
    workers: Annotated[int, typer.Option(min=1, help="Workers it would run on.")] = 1,
    json: JsonOption = False,
) -> None:
    """Users, events, bytes, minutes and memory of a job, counted and measured on samples; changes nothing."""
    from beam_jobs.generation.refresh import RefreshOptions
    from beam_jobs.generation.summarize import SummarizeOptions

    options = (SummarizeOptions if job is PlannedJob.summarize else RefreshOptions)(
        warehouse=at.tables,
        bundle=str(at.newest_model if job is PlannedJob.summarize else at.model),
        store=str(at.store),
        run_dir=str(at.runs / "plan"),
        line=line,
        max_events_in_memory=memory_events,
        expire_after_ms=as_ms(expire_after),
    )
    show(options, workers, json)


def show(options: SummarizeOptions, workers: int, json: bool) -> None:
    """What a job with these options would do; `--dry-run` of the jobs as well."""
    from beam_jobs.generation import plan

    with console.status("measuring"):
        found = plan.plan(options, workers)
    if json:
        return console.json_line(dataclasses.asdict(found))
    shown = {
        name.replace("_", " "): value for name, value in dataclasses.asdict(found).items() if name != "notes"
    }
    shown["minutes"] = found.minutes if found.minutes >= 0.1 else "less than 0.1, and the runner's start"
    console.fields("plan", shown)
    for text in found.notes:
        console.note(text)
