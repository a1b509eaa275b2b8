"""``vista study``: what a summary is worth, measured by ranking; one JSON line."""

from __future__ import annotations

from typing import Annotated

import typer

from tools.bench import harness
from tools.verbs.bench import measure


def command(
    name: Annotated[str, typer.Argument(help="Which study; `vista study list` names them.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Small sizes: a smoke test, no figure to quote.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print only the JSON line.")] = False,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", metavar="KEY=VALUE", help="A parameter; may be repeated."),
    ] = None,
) -> None:
    """Measure what summaries are worth and print one JSON line: figures with spread, target, and whether it is met."""
    measure("study", harness.STUDIES, name, quick, json, param)
