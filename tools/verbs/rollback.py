"""``vista rollback``: make an earlier generation of a line live again."""

from __future__ import annotations

from typing import Annotated

import typer

from tools import console
from tools.home import Home
from tools.options import HOME, DryRunOption, HomeOption, JsonOption, LineOption, StoreOption


def command(
    home: HomeOption = HOME,
    store: StoreOption = None,
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

    opened = Store(store or Home(home).store, line=line)
    pointer = lines.live(opened.layout, line)
    if dry_run:
        to = lines.rollback_target(opened.layout, line, pointer, to)
        found = {"line": line, "was": pointer.live, "live": to, "dry_run": True}
    else:
        found = {"line": line, "was": pointer.live, "live": opened.rollback(to)}
    console.json_line(found) if json else console.fields(
        "would roll back" if dry_run else "rolled back", found
    )
