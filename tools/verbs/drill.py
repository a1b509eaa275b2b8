"""``vista drill``: what the store survives; each drill has options of its own (``vista drill NAME --help``)."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated

import typer

from tools import console

DRILLS = {
    "crash": ("drill", "work is killed at every step, and done again, while readers look on"),
    "race": ("race", "several processes change one store at once"),
    "corruption": ("corruption", "every byte of every kind of file is altered, and what readers say of it"),
    "storage": ("storage", "disks that are full or read-only"),
    "storm": ("storm", "readers that fork, pickle and die while generations come and go"),
    "serving": ("serving", "`vista serve` under load while generations come, killed and started again"),
    "reseal": ("reseal", "files edited by one who can seal them again, then every verb and read"),
    "home": ("reseal_home", "the same of run records, states, bundles, pools and item indexes"),
    "logs": (
        "logs",
        "logs that nobody would write on purpose: every row is kept or set aside, or the file refused",
    ),
    "histories": ("histories", "random histories of a home with killed jobs, beside a set of rows"),
    "verbs": ("verbs", "every verb that writes is killed, most the first time it is done, and done again"),
    "missing": ("missing", "every kind of file of a home is gone, one at a time, and what each verb says"),
    "soak": ("soak", "an hour of a home that is fed, followed, pruned and made to forget, under readers"),
    "mutate": ("mutate", "faults seeded in a copy of the packages: whether a test notices"),
    "sanitize": ("sanitize", "the compiled part under AddressSanitizer and UBSan, with guard pages"),
}
"""Name to module of ``tools.drills`` and what it does."""


def command(
    name: Annotated[str, typer.Argument(help="Which drill; `vista drill list` names them.")],
    options: Annotated[
        list[str] | None, typer.Argument(help="Its options, as `--seed 7`, or `--help`.")
    ] = None,
) -> None:
    """Break things on purpose and tell what did not hold; the exit code is 1 if something did not."""
    if name == "list":
        rows = [(n, what) for n, (_, what) in DRILLS.items()]
        console.json_line(dict(rows)) if options == ["--json"] else console.table(
            "drill", ("name", "what it does"), rows
        )
        return
    if name not in DRILLS:
        raise typer.BadParameter(f"no drill {name!r}; expected one of {', '.join(DRILLS)}")
    module = importlib.import_module(f"tools.drills.{DRILLS[name][0]}")
    sys.argv = [f"vista drill {name}", *(options or [])]
    module.main()
