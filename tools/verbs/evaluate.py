"""``vista evaluate``: how good a model is on the newest, held-out requests."""

from __future__ import annotations

from typing import Annotated

import typer

from tools import console, evaluations
from tools.options import HomeOfModel, JsonOption


def command(
    *,
    at: HomeOfModel,
    after: Annotated[
        int | None,
        typer.Option(help="Judge requests from this time on, ms.  [default: what training held out]"),
    ] = None,
    slates: Annotated[int, typer.Option(min=1, help="Requests judged.")] = 5_000,
    seed: Annotated[int, typer.Option(help="Of the sample and the intervals.")] = 0,
    json: JsonOption = False,
) -> None:
    """Ranking, retrieval and calibration metrics with 95 % intervals over users; split by time.

    The last result is kept beside the bundle, in MODEL.training/evaluation.json, for `vista report`.
    """
    import torch

    from vista.data.tables.warehouse import Warehouse
    from vista.training.evaluate import evaluate

    torch.set_num_threads(1)
    tables = Warehouse(at.tables).open()
    with console.status("evaluating"):
        found = evaluate(at.model, tables, after_ms=after, slates=slates, seed=seed)
    evaluations.keep(at.model, found)
    if json:
        return console.json_line(found)
    rows = [(name, m["value"], m["low"], m["high"]) for name, m in found["measures"].items()]
    title = (
        f"{found['slates']:,} requests of {found['users']:,} users after {console.when(found['after_ms'])}"
    )
    console.table(title, ("metric", "value", "low", "high"), rows)
    console.note(found["verdict"])
    if found["sampled"]:
        console.note("no impressions were logged: candidates were sampled by popularity within the surface")
