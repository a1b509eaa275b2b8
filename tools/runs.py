"""How a job is run and its result shown: the same for ingest, summarize, refresh and compact."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tools import console

if TYPE_CHECKING:
    from beam_jobs.run.record import RunRecord

ALWAYS = ("users", "events", "dead_letters")
"""Counts that are shown also where they are 0."""
INTERRUPTED = 130
REMEDIES = {
    "time_too_early": "--min-time takes earlier ones (ms since 1970; 0 for all of them)",
    "time_too_late": "--max-time takes later ones",
}
"""Of reasons that an option lifts."""


def run(job: Callable[[Any, Sequence[str]], RunRecord], options: Any, args: Sequence[str], json: bool) -> int:
    """Run a job and report it; of one that is stopped by Ctrl-C, how it goes on."""
    try:
        return report(job(options, args), json)
    except KeyboardInterrupt:
        where = Path(options.run_dir)
        kept = f"the same command with --run-dir {shlex.quote(str(where))} goes on where it was"
        console.note(f"stopped; {kept if where.exists() else 'nothing was begun'}")
        raise typer.Exit(INTERRUPTED) from None


def report(record: RunRecord, json: bool) -> int:
    """Print the record and return the exit code of the run."""
    if json:
        console.json_line(record.as_dict())
        return int(record.exit_code or 0)
    rows: dict[str, object] = {"run": record.path}
    if record.generation:
        rows["generation"] = record.generation
    shown = {name: n for name, n in record.counts.items() if n or name in ALWAYS}
    rows |= {name.replace("_", " "): n for name, n in shown.items()}
    if record.finished_ms is not None:
        rows["seconds"] = (record.finished_ms - record.started_ms) / 1000
    rows["peak memory MB"] = record.peak_memory_bytes // 2**20
    rows |= {f"{name} digest": value for name, value in record.digests.items()}
    console.fields(record.job, rows)
    for text in record.notes:
        console.note(text)
    if record.exit_code == 3:
        letters = Path(record.path) / "dead-letters.parquet"
        found = _reasons(letters)
        listed = ", ".join(f"{n:,} {reason}" for reason, n in found.most_common())
        console.note(f"set aside: {listed}; {letters} says which and why (docs/operations.md)")
        for reason in found.keys() & REMEDIES.keys():
            console.note(f"{reason}: {REMEDIES[reason]}")
    return int(record.exit_code or 0)


def _reasons(letters: Path) -> Counter[str]:
    """How many rows or users were set aside for each reason."""
    import pyarrow.parquet as pq

    found: Counter[str] = Counter()
    with pq.ParquetFile(letters) as file:
        for batch in file.iter_batches(columns=["reason", "rows"]):
            for reason, rows in zip(*(c.to_pylist() for c in batch.columns), strict=True):
                found[reason] += max(rows, 1)  # a file whose rows nobody could count stands for one
    return found
