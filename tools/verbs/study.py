"""``vista study``: what a summary is worth, measured by ranking; one JSON line."""

from __future__ import annotations

from typing import Annotated

import typer

from tools import console
from tools.bench import harness
from tools.options import HomeOfTables
from tools.parameters import typed
from tools.verbs.bench import MeasureOptions, measure


def command(
    name: Annotated[str, typer.Argument(help="Which study; `vista study list` names them.")],
    *,
    at: HomeOfTables,
    asked: MeasureOptions,
) -> None:
    """Measuring what summaries are worth and print one JSON line: figures with spread, target, and whether it is met.

    `vista study pays --home HOME` asks the tables of HOME whether a summary pays there, in ten minutes
    (`-p minutes=30` for more), and answers on one screen.
    """
    if name != "pays":
        return measure("study", harness.STUDIES, name, asked)
    from tools.studies.pays import screen

    params = typed(harness.function(name), asked.param or ())
    report = harness.run(name, quick=asked.quick, home=str(at.root), warehouse=at.named_warehouse, **params)
    if not asked.json:
        console.table(*screen(report))
        for text in report["notes"]:
            console.note(text)
    print(harness.line(report), flush=True)
