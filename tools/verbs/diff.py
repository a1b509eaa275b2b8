"""``vista diff``: what differs between two generations: who came, who went, how far summaries moved."""

from __future__ import annotations

from typing import Annotated

import typer

from tools import console
from tools.options import HomeOfStore, JsonOption, LineOption


def command(
    before: Annotated[str, typer.Argument(metavar="A", help="A generation, or a line for its live one.")],
    after: Annotated[
        str | None, typer.Argument(metavar="B", help="Another.  [default: what is live on --line]")
    ] = None,
    *,
    at: HomeOfStore,
    line: LineOption = "main",
    sample: Annotated[int, typer.Option(min=1, help="Users whose records are read, at most.")] = 4_096,
    json: JsonOption = False,
) -> None:
    """Users added, gone and changed from A to B; drift of tokens and of masses, also by length of history."""
    from tools.report.asked import QUANTILES, compared

    found = compared(at.store, before, line if after is None else after, sample)
    if json:
        return console.json_line(found.as_dict())
    rows: dict[str, object] = {
        "users": f"{found.users[0]:,} to {found.users[1]:,}",
        "added": f"{found.added:,}, such as {_some(found.examples['added'])}" if found.added else 0,
        "gone": f"{found.gone:,}, such as {_some(found.examples['gone'])}" if found.gone else 0,
        "changed": f"{found.changed:,} of {found.sampled:,} that were read; {found.grown:,} with more events",
        "model": "the same" if found.same_model else "another: drift says nothing",
    }
    console.fields(f"from generation {found.before} to {found.after}", rows)
    console.table("drift, |b - a| / |a|", ("group", *QUANTILES), [(g, *v) for g, v in found.drift.items()])
    console.table("mass, log2 |b| / |a|", ("group", *QUANTILES), [(g, *v) for g, v in found.mass.items()])
    columns = ("events", "users", "median drift", "90 %")
    console.table("drift by length of history", columns, [tuple(row.values()) for row in found.by_length])


def _some(users: list[object]) -> str:
    return ", ".join(map(str, users[:3]))
