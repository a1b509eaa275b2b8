"""``vista report``: one self-contained HTML page of everything there is to look at."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools import console
from tools.home import Home
from tools.options import (
    HOME,
    DryRunOption,
    HomeOption,
    JsonOption,
    ModelOption,
    StoreOption,
    WarehouseOption,
    there,
)

if TYPE_CHECKING:
    from tools.report.page import Section


def command(
    home: HomeOption = HOME,
    warehouse: WarehouseOption = None,
    model: ModelOption = None,
    store: StoreOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write.  [default: HOME/report.html]", show_default=False),
    ] = None,
    study: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="JSON lines of `vista study` or `vista bench`, beside HOME/studies. May be repeated.",
        ),
    ] = None,
    users: Annotated[
        int, typer.Option(min=1, help="Users looked up for the distributions, at most.")
    ] = 2_000,
    diff: Annotated[
        str | None,
        typer.Option(
            metavar="GENERATION", help="Also what changed since this one, as `vista diff` tells it."
        ),
    ] = None,
    explain: Annotated[
        str | None, typer.Option(metavar="USER", help="Also this user, as `vista explain` tells it.")
    ] = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Write one HTML page, no network and no script: health, freshness, store, lookups, model, runs.

    What a page needs that was not measured yet: `vista evaluate` makes the quality by slices.
    """  # fmt: skip
    from tools.report.assemble import assemble
    from tools.report.page import render

    at = Home(home)
    there(at, warehouse=warehouse, store=store, model=model)
    target = out or at.root / "report.html"
    if not at.root.is_dir():
        raise typer.BadParameter(f"no folder {home}; name the home with --home")
    if target.exists() and 'content="vista report"' not in _head(target):
        raise typer.BadParameter(f"{target} is there and is no report of ours; name another with --out")
    start = time.perf_counter()
    page = assemble(
        at, warehouse=at.tables(warehouse), model=model or at.model, store=store or at.store, studies=study or (),
        users=users, more=_asked(at, at.tables(warehouse), model or at.model, store or at.store, diff, explain),
    )  # fmt: skip
    text = render(page)
    seconds = time.perf_counter() - start
    if not dry_run:
        write(target, text)
    found = {"report": str(target), "bytes": len(text.encode()), "seconds": round(seconds, 2),
             "sections": [s.name for s in page.sections if s.figures], "healthy": page.health.code == 0,
             "dry_run": dry_run}  # fmt: skip
    console.json_line(found) if json else console.fields("report", found)


def _asked(
    at: Home, warehouse: str | dict[str, str], model: Path, store: Path, diff: str | None, explain: str | None
) -> list[Section]:
    """Sections that were asked for."""
    from tools.report import asked
    from tools.verbs.explain import explained

    found = [] if diff is None else [asked.difference(store, diff)]
    if explain is not None:
        found.append(asked.user(explained(at, explain, warehouse=warehouse, model=model, store=store)))
    return found


def write(target: Path, text: str) -> None:
    """Replace a file in one step."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _head(path: Path) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(2_000)
