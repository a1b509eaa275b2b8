"""``vista prune``: delete generations that nothing needs, and what crashes left."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from tools import console
from tools.home import Home
from tools.options import HOME, HomeOption, JsonOption, StoreOption


def command(
    home: HomeOption = HOME,
    store: StoreOption = None,
    keep: Annotated[int, typer.Option(min=1, help="Earlier generations kept per line.")] = 2,
    staging_hours: Annotated[
        float, typer.Option(help="Remove unfinished runs untouched for so long.")
    ] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    json: JsonOption = False,
) -> None:
    """Delete generations that no line keeps and no reader has in use."""
    from cache_store import Store

    report = Store(store or Home(home).store).prune(keep, int(staging_hours * 3_600_000), dry_run)
    if json:
        return console.json_line({**dataclasses.asdict(report), "dry_run": dry_run})
    console.fields(
        "would prune" if dry_run else "pruned",
        {
            "generations": ", ".join(report.generations) or "none",
            "unfinished runs": ", ".join(report.staging) or "none",
            "remains of crashes": len(report.remains),
            "bytes": report.bytes,
        },
    )
    console.table("kept", ("generation", "why"), list(report.kept.items()))
