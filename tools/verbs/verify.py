"""``vista verify``: read every byte of the store once and name whatever is not as it should be."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from tools import console
from tools.options import HomeOfStore, JsonOption


def command(
    *,
    at: HomeOfStore,
    generation: Annotated[str | None, typer.Option(help="Only this one, and the pointers.")] = None,
    json: JsonOption = False,
) -> int:
    """Check files, digests, indexes, records and states. Exit code 4 if anything is wrong."""
    from cache_store import Store

    with console.status("verifying"):
        report = Store(at.store).verify(generation)
    if json:
        console.json_line({**dataclasses.asdict(report), "ok": report.ok})
    else:
        console.fields(
            "verified",
            {
                "generations": ", ".join(report.generations) or "none",
                "records": report.records,
                "states": report.states,
                "bytes": report.bytes,
                "problems": len(report.problems),
            },
        )
        for problem in report.problems:
            console.note(str(problem))
    return 0 if report.ok else 4
