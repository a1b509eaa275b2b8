"""``vista study``: what a summary is worth, measured by ranking; one JSON line."""

from __future__ import annotations

from typing import Annotated

import typer

from tools import console
from tools.bench import harness
from tools.options import HOME, HomeOption, WarehouseOption
from tools.parameters import typed
from tools.verbs.bench import measure


def command(
    name: Annotated[str, typer.Argument(help="Which study; `vista study list` names them.")],
    home: HomeOption = HOME,
    warehouse: WarehouseOption = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small sizes: a smoke test, no figure to quote.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print only the JSON line.")] = False,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", metavar="KEY=VALUE", help="A parameter; may be repeated."),
    ] = None,
) -> None:
    """Measure what summaries are worth and print one JSON line: figures with spread, target, and whether it is met.

    `vista study pays --home HOME` asks the tables of HOME whether a summary pays there, in ten minutes
    (`-p minutes=30` for more), and answers on one screen.
    """
    if name != "pays":
        return measure("study", harness.STUDIES, name, quick, json, param)
    from tools.studies.pays import screen

    params = typed(harness.function(name), param or ())
    report = harness.run(name, quick=quick, home=str(home), warehouse=warehouse, **params)
    if not json:
        console.table(*screen(report))
        for text in report["notes"]:
            console.note(text)
    print(harness.line(report), flush=True)
