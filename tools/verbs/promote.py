"""``vista promote``: take the generation of one line live on another."""

from __future__ import annotations

from typing import Annotated

import typer

from tools import console
from tools.options import DryRunOption, HomeOfStore, JsonOption


def command(
    generation: Annotated[
        str | None, typer.Argument(help="Generation.  [default: the live one of --from-line]")
    ] = None,
    *,
    at: HomeOfStore,
    from_line: Annotated[str, typer.Option("--from-line", help="Line it was built in.")] = "main",
    line: Annotated[str, typer.Option("--line", help="Line it becomes live on.")] = "main",
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Make a generation live on a line, in one atomic step; `vista rollback` takes it back."""
    from cache_store import Store
    from cache_store.format import lines

    if generation is None and from_line == line:
        raise typer.BadParameter("name a generation, or a --from-line other than --line")
    opened = Store(at.store, line=from_line)
    if dry_run:
        found = {
            "line": line,
            "live": lines.promotable(opened.layout, from_line, generation),
            "dry_run": True,
        }
    else:
        found = {"line": line, "live": opened.promote(onto=line, generation=generation)}
    console.told("would promote" if dry_run else "promoted", found, json)
