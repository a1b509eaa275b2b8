"""``vista status --prometheus FILE``: the state of a home in the text format of Prometheus, for its textfile collector.

Readers export what they looked up by themselves (``cache_store.read.counters.collector``); this is what only the home
knows: clocks, lag, runs, the gate's verdicts, bytes. docs/grafana has a dashboard and alert rules for both.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.outputs import replacing
from tools.report.health import Health
from tools.report.run_history import PastRun

Sample = tuple[str, str, dict[str, str], float | int | None]
"""Name, help, labels, value."""


def text(found: Health) -> str:
    """All samples; those without a value are left out."""
    families: dict[str, list[str]] = {}  # the format wants the samples of a family together
    for name, told, labels, value in _samples(found):
        if value is None:
            continue
        rows = families.setdefault(name, [f"# HELP {name} {told}", f"# TYPE {name} gauge"])
        inner = ",".join(f'{k}="{_escaped(v)}"' for k, v in labels.items())
        rows.append(f"{name}{{{inner}}} {value}" if inner else f"{name} {value}")
    return "\n".join(row for rows in families.values() for row in rows) + "\n"


def write(path: Path, found: Health) -> None:
    """Replace the file in one step, as the collector wants it.

    Raises:
        typer.BadParameter: something else is there.
    """
    with replacing(path, "--prometheus", lambda there: there.read_bytes()[:8] == b"# HELP v") as file:
        file.write(text(found).encode())


def _samples(found: Health) -> Iterator[Sample]:
    yield (
        "vista_home_health",
        "0 healthy, 3 somebody should look, 4 what is served is at stake.",
        {},
        found.code,
    )
    told = "1 for each problem; the label is its paragraph of the runbook."
    for p in found.problems:
        yield "vista_home_problem", told, {"paragraph": p.paragraph}, 1
    store: dict[str, Any] = found.store or {}
    clocks, lag = store.get("clocks") or {}, store.get("lag") or {}
    for name, key in (("newest_event", "newest_event_ms"), ("published", "published_ms")):
        told = f"Time of the {name.replace('_', ' ')} of the live generation, seconds since 1970."
        yield f"vista_store_{name}_timestamp_seconds", told, {}, _seconds(clocks.get(key))
    made, since = _seconds((clocks.get("summarized_ms") or {}).get("median")), _seconds(lag.get("since_ms"))
    for name, told, value in (
        ("vista_store_summarized_timestamp_seconds", "Median time of summaries, seconds since 1970.", made),
        ("vista_store_lag_events", "Events of the tables that the live generation lacks.", lag.get("events")),
        ("vista_store_lag_since_timestamp_seconds", "When the first of them was committed.", since),
        ("vista_store_users", "Users of the live generation.", store.get("users")),
        ("vista_store_missing_users", "New users of the tables, MISSING now.", lag.get("new_users")),
        ("vista_store_dead_letters", "Users that the live generation could not hold.", store.get("dead letters")),
        ("vista_store_depth", "Deltas that lie on each other.", store.get("depth")),
        ("vista_store_readers", "Processes that hold a lease.", store.get("readers")),
        ("vista_store_free_bytes", "Left on the store's file system.", store.get("free bytes")),
        ("vista_store_needed_bytes", "About what the next full run writes.", store.get("a full run needs bytes")),
    ):  # fmt: skip
        yield name, told, {}, value
    for g in store.get("generations", []):
        labels = {"generation": g["generation"]}
        yield "vista_generation_bytes", "Bytes of a kept generation.", labels, g["bytes"]
    newest: dict[str, PastRun] = {}
    for run in found.runs:
        newest.setdefault(run.job, run)
    for job, run in newest.items():
        told = "1 if the newest run of a job failed or was stopped."
        yield "vista_run_bad", told, {"job": job}, int(run.bad)
        yield "vista_run_seconds", "Of the newest run of a job.", {"job": job}, run.seconds
        told = "Verdicts of the gate on the newest run of a job."
        for check in (run.facts.get("facts") or {}).get("gate") or ():
            yield "vista_gate_ok", told, {"job": job, "check": str(check["name"])}, int(check["ok"])


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
