"""``vista train``: both stages in one go, from the tables to a model bundle."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from tools import console
from tools.home import Home
from tools.options import HOME, HomeOption, JsonOption, ModelOption, WarehouseOption


def command(
    home: HomeOption = HOME,
    warehouse: WarehouseOption = None,
    model: ModelOption = None,
    config: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="JSON with any field of vista.training.train.TrainingConfig; what is given beside it has its say.",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many steps.  [default: 2000]")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=1, help="Stop after so many seconds, and at no step unless --steps says so."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything that is drawn.  [default: 0]")] = None,
    json: JsonOption = False,
) -> None:
    """Train one model for summarising, retrieval and ranking. An interrupted run goes on from its checkpoint."""
    from vista import bundle
    from vista.config import from_text
    from vista.data.tables.warehouse import Warehouse
    from vista.errors import DataError
    from vista.training.train import TrainingConfig, train

    at = Home(home)
    tables = Warehouse(at.tables(warehouse)).open()
    if tables.snapshot() is None:
        raise DataError(
            f"{tables.name}: expected events to learn from, found none; bring logs in with vista ingest"
        )
    settings = from_text(TrainingConfig, config.read_text()) if config else TrainingConfig()
    changes: dict[str, object] = {"model": dataclasses.replace(settings.model, actions=tables.actions)}
    if steps is not None:
        changes["max_steps"] = steps
    if seconds is not None:
        changes |= {"max_seconds": seconds} | ({} if steps is not None else {"max_steps": 0})
    if seed is not None:
        changes["seed"] = seed
    settings = dataclasses.replace(settings, **changes)
    path = train(settings, tables, model or at.model)
    meta, fingerprint = bundle.read_meta(path)
    found = {"bundle": str(path), "fingerprint": fingerprint, **meta.metrics}
    console.json_line(found) if json else console.fields("trained", found)
