"""How the result of a job is shown: the same table for ingest, summarize and refresh."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools import console

if TYPE_CHECKING:
    from beam_jobs.run_record import RunRecord


def report(record: RunRecord, json: bool) -> int:
    """Print the record and return the exit code of the run."""
    if json:
        console.json_line(record.as_dict())
    else:
        rows: dict[str, object] = {"run": record.path}
        if record.generation:
            rows["generation"] = record.generation
        rows |= {name.replace("_", " "): value for name, value in record.counts.items()}
        if record.finished_ms is not None:
            rows["seconds"] = (record.finished_ms - record.started_ms) / 1000
        rows["peak memory MB"] = record.peak_memory_bytes // 2**20
        rows |= {f"{name} digest": value for name, value in record.digests.items()}
        console.fields(record.job, rows)
        for text in record.notes:
            console.note(text)
        if record.counts.get("dead_letters"):
            console.note(
                f"{record.counts['dead_letters']:,} dead letters: {record.path}/dead-letters.parquet says which and why"
            )
    return int(record.exit_code or 0)
