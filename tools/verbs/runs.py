"""``vista runs``: what ran in this home, newest first: how it ended, what it did and cost; or one run in full."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools import console, invocation
from tools.home import Home
from tools.options import HomeAlone, JsonOption

if TYPE_CHECKING:
    from tools.report.run_history import PastRun


def command(
    run: Annotated[Path | None, typer.Argument(help="One run directory, in full.")] = None,
    *,
    at: HomeAlone,
    last: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    json: JsonOption = False,
) -> int:
    """Runs with their outcome, counts and cost. With a run directory: all of it, and how to go on. Exit code 3 if bad.

    The code is of the one run named; a list always gives 0.
    """
    from tools.report import run_history

    if run is not None:
        if not (run / "run.json").exists() and (at.runs / run / "run.json").exists():
            run = at.runs / run
        if not (run / "run.json").exists():
            raise typer.BadParameter(f"{run}: no run.json there; `vista runs` names the runs of a home")
        return _one(run_history.read(run), at, json)
    if not at.root.is_dir():
        raise typer.BadParameter(f"no folder {at.root}; name the home with --home")
    found = run_history.runs(at.runs, last)
    if json:
        console.json_line([r.as_dict() for r in found])
        return 0
    rows = [
        (
            str(r.path.relative_to(at.runs)) if r.path.is_relative_to(at.runs) else str(r.path),
            r.outcome,
            "-" if r.seconds is None else f"{r.seconds:,.0f} s",
            _did(r.counts),
            r.facts.get("generation") or "-",
        )
        for r in found
    ]
    console.table(f"runs of {at.root}", ("run", "outcome", "took", "did", "made"), rows)
    for r in found:
        if r.bad:
            console.note(f"{r.path.name}: {r.why or r.outcome}; `vista runs {r.path}` has it in full")
    return 0


def _did(counts: Mapping[str, int]) -> str:
    """The largest thing that a run worked through, and what it set aside."""
    what = next((f"{counts[name]:,} {name}" for name in ("users", "events") if counts.get(name)), "-")
    letters = counts.get("dead_letters", 0)
    return what + (f", {letters:,} dead" if letters else "")


def _one(r: PastRun, at: Home, json: bool) -> int:
    from tools.report.health import size

    if json:
        console.json_line({**r.as_dict(), "record": r.facts})
        return 3 if r.bad else 0
    rows: dict[str, object] = {"outcome": r.outcome, "started": console.when(r.started_ms)}
    rows |= {} if r.seconds is None else {"seconds": r.seconds}
    rows |= {"why": r.why} if r.why else {}
    rows |= {"memory": size(peak)} if (peak := r.facts.get("peak_memory_bytes")) else {}
    rows |= {k: v for k, v in r.counts.items() if v}
    rows |= {f"{k} seconds": v for k, v in (r.facts.get("timings") or {}).items()}
    identity = r.facts.get("identity") or {}
    rows |= {f"option {k}": v for k, v in identity.items() if v not in (None, {}, [], "")}
    console.fields(f"{r.job} {r.path}", rows)
    if r.bad and r.job in ("summarize", "refresh", "compact"):
        console.note("It goes on where it was, with the same options, by")
        console.note("    " + invocation.command(*r.verb, "--home", at.root, "--run-dir", r.path))
    return 3 if r.bad else 0
