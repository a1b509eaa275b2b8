"""``vista report``: one self-contained HTML page of everything there is to look at."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools import console
from tools.home import Home
from tools.options import DryRunOption, JsonOption, WholeHome, there
from tools.outputs import refuse_foreign, replacing

if TYPE_CHECKING:
    from tools.report.page import Section


def command(
    *,
    at: WholeHome,
    out: Annotated[Path | None, typer.Option(help="The file to write.  [default: HOME/report.html]")] = None,
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

    there(at)
    target = out or at.root / "report.html"
    if not at.root.is_dir():
        raise typer.BadParameter(f"no folder {at.root}; name the home with --home")
    refuse_foreign(target, "--out", _ours)
    start = time.perf_counter()
    page = assemble(at, studies=study or (), users=users, more=_asked(at, diff, explain))
    if not (page.health.there or study or (at.root / "studies").is_dir()):
        raise typer.BadParameter(
            f"nothing at {at.root}: no tables, model, store or runs; name the home with --home"
        )
    text = render(page)
    seconds = time.perf_counter() - start
    if not dry_run:
        write(target, text)
    found = {"report": str(target), "bytes": len(text.encode()), "seconds": round(seconds, 2),
             "sections": [s.name for s in page.sections if s.figures], "healthy": page.health.code == 0,
             "dry_run": dry_run}  # fmt: skip
    console.told("report", found, json)


def _asked(at: Home, diff: str | None, explain: str | None) -> list[Section]:
    """Sections that were asked for."""
    from tools.report import asked
    from tools.verbs.explain import explained

    found = [] if diff is None else [asked.difference(at.store, diff)]
    if explain is not None:
        found.append(asked.user(explained(at, explain)))
    return found


def write(target: Path, text: str) -> None:
    """Replace a report in one step."""
    with replacing(target, "--out", _ours) as file:
        file.write(text.encode())


def _ours(path: Path) -> bool:
    with open(path, encoding="utf-8", errors="replace") as file:
        return 'content="vista report"' in file.read(2_000)
