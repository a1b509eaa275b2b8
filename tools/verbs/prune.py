"""``vista prune``: delete generations, table snapshots and files that nothing needs, and what crashes left."""

from __future__ import annotations

import dataclasses
import time
from typing import Annotated, Any

import typer

from tools import console
from tools.options import DryRunOption, HomeOfData, JsonOption, there


def command(
    *,
    at: HomeOfData,
    keep: Annotated[
        int, typer.Option(min=1, help="Earlier generations kept per line, to go back to and for as-of reads.")
    ] = 2,
    staging_hours: Annotated[
        float,
        typer.Option(
            min=0, help="Leave unfinished runs, snapshots and files of the tables that are younger than this."
        ),
    ] = 24.0,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Delete generations that no line keeps and no reader has in use, then what only they needed of the tables."""
    from beam_jobs.run.leftovers import prune_runs, prune_unplaced
    from cache_store import Store
    from cache_store.format.layout import holds_store
    from vista.data.tables.pruning import prune
    from vista.data.tables.warehouse import Warehouse

    tables = Warehouse(there(at).tables)
    has_tables, path = tables.exists(), at.store
    found: dict[str, Any] = {"dry_run": dry_run}
    kept: set[int] = set()
    if holds_store(path) or not has_tables:
        opened = Store(path)
        report = opened.prune(keep, int(staging_hours * 3_600_000), dry_run)
        found |= dataclasses.asdict(report)
        stay = [m for m in opened.generations() if m.generation in report.kept]
        kept = {int(m.table_snapshot) for m in stay if m.table_snapshot is not None}
    before_ms = int(time.time() * 1000 - staging_hours * 3_600_000)
    if has_tables:
        pruned = prune(tables.open(), kept, before_ms, dry_run)
        found["tables"] = {part: len(getattr(pruned, part)) for part in ("snapshots", "files", "metadata")}
    found["runs"] = prune_runs(at.runs, before_ms, dry_run)
    found["unplaced"] = prune_unplaced(at.root, before_ms, dry_run)
    if json:
        return console.json_line(found)
    rows: dict[str, object] = {}
    if "generations" in found:
        rows = {
            "generations": ", ".join(found["generations"]) or "none",
            "unfinished runs": ", ".join(found["staging"]) or "none",
            "remains of crashes": len(found["remains"]),
            "bytes": found["bytes"],
        }
    rows |= {f"tables: {name}": n for name, n in found.get("tables", {}).items()}
    rows |= {"runs": len(found["runs"]), "left by killed writers": len(found["unplaced"])}
    console.fields("would prune" if dry_run else "pruned", rows)
    if "kept" in found:
        console.table("kept", ("generation", "why"), list(found["kept"].items()))
