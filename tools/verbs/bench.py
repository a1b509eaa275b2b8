"""``vista bench``: measure one thing, both sides in the same run, and print one JSON line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tools import console
from tools.bench import harness
from tools.options import OptionGroup
from tools.parameters import typed

BENCH = Path(harness.__file__).parent


@dataclass(frozen=True)
class Measuring:
    """How something is measured, and what is printed of it."""

    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: a smoke test, no figure to quote.")] = (
        False
    )
    json: Annotated[bool, typer.Option("--json", help="Print only the JSON line.")] = False
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", metavar="KEY=VALUE", help="A parameter; may be repeated."),
    ] = None


MeasureOptions = Annotated[Measuring, OptionGroup(Measuring)]


def command(
    name: Annotated[str, typer.Argument(help="Which benchmark; `vista bench list` names them.")],
    *,
    asked: MeasureOptions,
) -> None:
    """Measuring one thing and print one JSON line: figures with spread, target, and whether it is met."""
    measure("bench", BENCH, name, asked)


def measure(verb: str, folder: Path, name: str, asked: Measuring) -> None:
    """What ``vista bench`` and ``vista study`` have in common."""
    known = harness.names(folder)
    if name == "list":
        known_for = {n: harness.purpose(n, folder) for n in known}
        if asked.json:
            console.json_line(known_for)
        else:
            console.table(verb, ("name", "what it measures"), list(known_for.items()))
        return
    if name not in known:
        raise typer.BadParameter(f"no {verb} {name!r}; expected one of {', '.join(known)}")
    report = harness.run(name, quick=asked.quick, **typed(harness.function(name), asked.param or ()))
    if not asked.json:
        met = {True: "yes", False: "NO", None: ""}
        rows = []
        for key, f in report["figures"].items():
            span = "" if f["low"] is None else f"{console.number(f['low'])} to {console.number(f['high'])}"
            rows.append((key, f["value"], f["unit"], span, console.number(f["target"]), met[f["met"]]))
        console.table(f"{verb} {name}", ("figure", "value", "unit", "quartiles", "target", "met"), rows)
        for text in report["notes"]:
            console.note(text)
    print(harness.line(report), flush=True)
