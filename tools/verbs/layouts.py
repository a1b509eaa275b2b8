"""``vista layouts``: the layouts of known data sets, and what one of them says."""

from __future__ import annotations

from typing import Annotated

import typer

from tools import console
from tools.options import JsonOption


def command(
    name: Annotated[
        str | None, typer.Argument(help="Show this one, as a file to begin one's own from.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the layouts that `vista ingest --layout` knows, or print one of them."""
    from vista.data.logs.reading import layouts, load

    if name is not None:
        found = load(name)
        return console.json_line(found.to_json()) if json else print(found.to_toml(), end="")
    known = layouts()
    if json:
        return console.json_line({n: reading.to_json() for n, reading in known.items()})
    console.table("layouts", ("name", "data set"), [(n, reading.about) for n, reading in known.items()])
    return None
