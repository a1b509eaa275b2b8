"""``vista generate``: made-up lives, for trying things and for benchmarks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from tools import console
from tools.options import DryRunOption, JsonOption

WRITES = ("events-*.parquet", "impressions-*.parquet", "later-*.parquet", "items.parquet", "options.json")


def command(
    out: Annotated[Path, typer.Argument(help="Folder for the Parquet files; made if missing.")],
    users: Annotated[int | None, typer.Option(help="How many users.  [default: 1000]")] = None,
    events: Annotated[
        int | None, typer.Option(help="Events in all.  [default: what the lengths give]")
    ] = None,
    min_events: Annotated[int | None, typer.Option(help="Shortest history.  [default: 20]")] = None,
    max_events: Annotated[int | None, typer.Option(help="Longest history.  [default: 50000]")] = None,
    held_back_days: Annotated[
        float | None, typer.Option(min=0, help="Last days, kept apart in later-*.parquet.  [default: 0]")
    ] = None,
    string_ids: Annotated[bool, typer.Option("--string-ids", help="User ids as strings.")] = False,
    content_width: Annotated[
        int | None, typer.Option(help="Floats per item vector.  [default: none]")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same files.  [default: 0]")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that write.")] = 1,
    config: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="JSON with any field of vista.data.generator.GeneratorOptions; what is given beside it has its say.",
        ),
    ] = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Write generated events, impressions and items as Parquet: heavy-tailed lives whose interests return."""
    from vista.config import from_file, to_text
    from vista.data.generator import UNFINISHED, GeneratorOptions, generate
    from vista.small_text import small_text

    base = from_file(GeneratorOptions, config) if config else GeneratorOptions()
    given: dict[str, Any] = {
        "users": users, "events": events, "min_events": min_events, "max_events": max_events,
        "held_back_days": held_back_days, "user_ids": "string" if string_ids else None,
        "content_width": content_width, "seed": seed,
    }  # fmt: skip
    options = dataclasses.replace(base, **{name: value for name, value in given.items() if value is not None})
    if dry_run:
        would = {"out": str(out), **dataclasses.asdict(options)}
        return console.told("would generate", {**would, "dry_run": True}, json)
    there = sorted(path.name for name in WRITES for path in out.glob(name))
    begun = out / UNFINISHED
    goes_on = begun.exists() and small_text(begun) == to_text(options)
    if there and not goes_on:
        raise typer.BadParameter(f"{out} holds {there[0]} already; choose another folder, or move it away")
    with console.status(f"generating {options.users:,} lives"):
        made = generate(options, out, workers=workers)
    if json:
        return console.json_line(dataclasses.asdict(made))
    rows = {
        "users": made.users, "events": made.event_rows, "events held back": made.later_rows,
        "impressions": made.impression_rows, "items": made.items,
    }  # fmt: skip
    console.fields(f"generated in {out}", rows)
