"""``vista train``: both stages in one go, from the tables to a model bundle."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from tools import console, trackers
from tools.home import Home
from tools.options import HOME, DryRunOption, HomeOption, JsonOption, ModelOption, WarehouseOption

INTERRUPTED = 130
"""What a shell calls a program that Ctrl-C ended."""


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
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many steps.")] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Stop after so many passes over the training period.  [default: 4]"),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=1, help="Stop after so many seconds."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything that is drawn.  [default: 0]")] = None,
    log_to: Annotated[
        str | None,
        typer.Option(metavar="tensorboard:DIR|mlflow:URI", help="Send losses and metrics there as well."),
    ] = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Train one model for summarising, retrieval and ranking. An interrupted run goes on from its checkpoint.

    Where there is a model already, the new one is put beside it (HOME/model/2, ...); `vista summarize` takes it live.
    """
    from vista.errors import BundleError

    at = Home(home)
    out = model or at.next_model
    if model is not None and out.exists():
        raise BundleError(
            f"{out}: expected no file or folder of that name, found one; name another by `vista train --model`, "
            "or none: the next bundle is then put beside the live one"
        )
    if model is None and at.models:
        console.note(
            f"{at.model} stays as it is and live; this trains {out} beside it, and `vista summarize` takes it live"
        )

    from vista import bundle
    from vista.config import from_file
    from vista.data.tables.warehouse import Warehouse
    from vista.errors import DataError
    from vista.training.train import TrainingConfig, train
    from vista.training.verdict import verdict

    tables = Warehouse(at.tables(warehouse)).open()
    if tables.snapshot() is None:
        raise DataError(
            f"{tables.name}: expected events to learn from, found none; bring logs in with vista ingest"
        )
    settings = from_file(TrainingConfig, config) if config else TrainingConfig()
    changes: dict[str, Any] = {"model": dataclasses.replace(settings.model, actions=tables.actions)}
    limits = {"max_steps": steps, "max_epochs": epochs, "max_seconds": seconds}
    if any(limits.values()):
        changes |= {name: value or 0 for name, value in limits.items()}
    if seed is not None:
        changes["seed"] = seed
    settings = dataclasses.replace(settings, **changes)
    kept = out.with_name(f"{out.name}.training")
    if dry_run:
        plan = {
            "bundle": str(out), "goes on from a checkpoint": (kept / "checkpoint.pt").exists(), "tables": tables.name,
            "events": sum(f.rows for files in tables.bucket_files().values() for f in files),
            "actions": ", ".join(tables.actions), "max steps": settings.max_steps, "max epochs": settings.max_epochs,
            "max seconds": settings.max_seconds, "seed": settings.seed,
        }  # fmt: skip
        return console.json_line(plan) if json else console.fields("would train", plan)
    asked = {"bundle": str(out), "tables": tables.name, "config": str(config), "seed": str(settings.seed)}
    try:
        with trackers.tracker(log_to, kept, asked) if log_to else nullcontext() as row:
            path = train(settings, tables, out, note=console.note, on_row=row)
    except KeyboardInterrupt as stopped:
        console.note(str(stopped) or "stopped before the first step: nothing to go on from, nothing changed")
        raise typer.Exit(INTERRUPTED) from None
    meta, fingerprint = bundle.read_meta(path)
    told = verdict(meta.metrics)
    found = {"bundle": str(path), "fingerprint": fingerprint, "verdict": told, **meta.metrics}
    console.json_line(found) if json else console.fields("trained", found)
