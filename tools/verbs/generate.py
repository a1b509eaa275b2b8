"""``vista generate``: made-up lives, for trying things and for benchmarks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from tools import console
from tools.options import JsonOption


def command(
    out: Annotated[Path, typer.Argument(help="Folder for the Parquet files; made if missing.")],
    users: Annotated[int, typer.Option(help="Users.")] = 1_000,
    events: Annotated[int, typer.Option(help="Events in all; 0: what the lengths give.")] = 0,
    min_events: Annotated[int, typer.Option(help="Shortest history.")] = 20,
    max_events: Annotated[int, typer.Option(help="Longest history.")] = 50_000,
    held_back_days: Annotated[float, typer.Option(help="Last days, kept apart in later-*.parquet.")] = 0.0,
    string_ids: Annotated[bool, typer.Option("--string-ids", help="Users as strings.")] = False,
    content_width: Annotated[int, typer.Option(help="Floats per item vector; 0 for none.")] = 0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    config: Annotated[
        Path | None, typer.Option(help="JSON with any field of vista.data.generator.GeneratorOptions.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write generated events, impressions and items as Parquet: heavy-tailed lives whose interests return."""
    from vista.config import from_text
    from vista.data.generator import GeneratorOptions, generate

    base = from_text(GeneratorOptions, config.read_text()) if config else GeneratorOptions()
    options = (
        dataclasses.replace(
            base,
            users=users,
            events=events,
            min_events=min_events,
            max_events=max_events,
            held_back_days=held_back_days,
            user_ids="string" if string_ids else "int64",
            content_width=content_width,
            seed=seed,
        )
        if config is None
        else base
    )
    with console.status(f"generating {options.users:,} lives"):
        made = generate(options, out, workers=workers)
    if json:
        return console.json_line(dataclasses.asdict(made))
    console.fields(
        f"generated in {out}",
        {
            "users": made.users,
            "events": made.event_rows,
            "events held back": made.later_rows,
            "impressions": made.impression_rows,
            "items": made.items,
        },
    )
