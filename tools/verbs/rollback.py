"""``vista rollback``: make an earlier generation of a line live again."""

from __future__ import annotations

from typing import Annotated

import typer

from tools import console
from tools.options import DryRunOption, HomeOfStore, JsonOption, LineOption


def command(
    *,
    at: HomeOfStore,
    line: LineOption = "main",
    to: Annotated[
        str | None, typer.Option(help="Generation.  [default: the one before the live one]")
    ] = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Go back to an earlier generation of a line, in one atomic step."""
    from cache_store import Store
    from cache_store.format import lines

    opened = Store(at.store, line=line)
    pointer = lines.live(opened.layout, line)
    if dry_run:
        to = lines.rollback_target(opened.layout, line, pointer, to)
        found = {"line": line, "was": pointer.live, "live": to, "dry_run": True}
    else:
        found = {"line": line, "was": pointer.live, "live": opened.rollback(to)}
    console.told("would roll back" if dry_run else "rolled back", found, json)
