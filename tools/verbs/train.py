"""``vista train``: both stages in one go, from the tables to a model bundle."""

from __future__ import annotations

import dataclasses
import itertools
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from tools import console, trackers
from tools.options import DryRunOption, HomeOfModel, JsonOption

INTERRUPTED = 130
"""What a shell calls a program that Ctrl-C ended."""

STEPS = (1 / 12, 1.0, 6.0, 24.0, 48.0, 168.0, 720.0)
"""Hours that refreshes may be said to be apart."""


def command(
    *,
    at: HomeOfModel,
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
    seconds: Annotated[float | None, typer.Option(min=1, help="Stop after so many seconds.")] = None,
    refresh_hours: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            help="How far refreshes are apart: summaries in training are up to so old.  [default: as HOME's "
            "generations are; up to 64 events where there are fewer than three]",
        ),
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

    out = at.next_model
    if at.named_model is not None and out.exists():
        raise BundleError(
            f"{out}: expected no file or folder of that name, found one; name another by `vista train --model`, "
            "or none: the next bundle is then put beside the live one"
        )
    if at.named_model is None and at.models:
        console.note(
            f"{at.model} stays as it is and live; this trains {out} beside it, and `vista summarize` takes it live"
        )

    from vista import bundle
    from vista.config import from_file
    from vista.data.tables.warehouse import Warehouse
    from vista.errors import DataError
    from vista.training.examples import ExampleConfig
    from vista.training.train import TrainingConfig, train
    from vista.training.verdict import verdict

    tables = Warehouse(at.tables).open()
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
    hours = refresh_hours
    if hours is None and settings.examples.lags == ExampleConfig().lags:
        hours = hours_apart(at.store)
        told = "so old are summaries in training (--refresh-hours says otherwise)"
        if hours is not None:
            console.note(f"generations of {at.store} are up to {hours:g} h apart: {told}")
    if hours is not None:
        aged = {"lag_jitter_events": 0, "lag_jitter_ms": round(hours * 3_600_000)}
        changes["examples"] = dataclasses.replace(settings.examples, **aged)
    settings = dataclasses.replace(settings, **changes)
    kept = out.with_name(f"{out.name}.training")
    if dry_run:
        plan = {
            "bundle": str(out), "goes on from a checkpoint": (kept / "checkpoint.pt").exists(), "tables": tables.name,
            "events": sum(f.rows for files in tables.bucket_files().values() for f in files),
            "actions": ", ".join(tables.actions), "max steps": settings.max_steps or None,
            "max epochs": settings.epochs or None, "max seconds": settings.max_seconds or None, "refresh hours": hours,
            "seed": settings.seed,
        }  # fmt: skip
        return console.told("would train", plan, json)
    asked = {"bundle": str(out), "tables": tables.name, "config": str(config), "seed": str(settings.seed)}
    try:
        with trackers.tracker(log_to, kept, asked) if log_to else nullcontext() as row:
            path = train(settings, tables, out, note=console.note, on_row=row)
    except KeyboardInterrupt as stopped:
        there = f"the same command goes on from {kept / 'checkpoint.pt'}"
        begun = there if (kept / "checkpoint.pt").exists() else "nothing to go on from, nothing changed"
        console.note(str(stopped) or f"stopped; {begun}")
        raise typer.Exit(INTERRUPTED) from None
    meta, fingerprint = bundle.read_meta(path)
    found = {"bundle": str(path), "fingerprint": fingerprint, "verdict": verdict(meta.metrics)}
    console.told("trained", {**found, **meta.metrics}, json)


def hours_apart(store: Path) -> float | None:
    """Hours between generations of the store, by their newest events: the step of ``STEPS`` at or above the median, so
    that one more generation seldom changes what an interrupted run goes on with. None where there are not three."""
    from cache_store import Store
    from cache_store.errors import StoreError

    if not (store / "FORMAT").exists():
        return None
    try:
        with Store.open(store) as opened:
            newest = sorted({m.watermark_ms for m in opened.generations() if m.watermark_ms})
    except StoreError:
        return None  # whoever opens it next says what is wrong
    if len(newest) < 3:
        return None
    gaps = sorted(b - a for a, b in itertools.pairwise(newest))
    hours = gaps[len(gaps) // 2] / 3_600_000
    return next((step for step in STEPS if hours <= step), STEPS[-1])
