"""``vista status``: whether all is well, on one screen; what is live, how old it is, what ran last."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tools import console, invocation
from tools.home import Home
from tools.options import JsonOption, WholeHome, there

if TYPE_CHECKING:
    from tools.report.health import Health

WIDTH = 80


def command(
    *,
    at: WholeHome,
    max_lag_hours: Annotated[
        float, typer.Option(min=0, help="The store may be behind the tables for so long.")
    ] = 26.0,
    max_event_age_hours: Annotated[
        float | None, typer.Option(min=0, help="The newest event may be so old.  [default: any age]")
    ] = None,
    watch: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0.5, help="Do not end: look again this often; ^C ends."),
    ] = None,
    prometheus: Annotated[
        Path | None, typer.Option(help="Also write this file for the textfile collector of Prometheus.")
    ] = None,
    last: Annotated[int, typer.Option(min=0, help="Runs shown.")] = 3,
    json: JsonOption = False,
) -> int:
    """Say first whether all is well, else what is wrong and the next command. Exit code 0 if healthy.

    Exit code 3: it serves, but somebody should look. 4: what is served, or should be, is at stake. 2: nothing is there.
    """
    from tools.report import health

    limits = health.AgeLimits(max_lag_hours, max_event_age_hours)
    there(at)
    while True:
        found = health.look(at, limits=limits, last=last, keep=True)
        if not found.there:
            raise typer.BadParameter(
                f"nothing at {at.root}: no tables, model, store or runs; name the home with --home, or make one with "
                f"`vista ingest --home {at.root}` (to see everything at once: `vista demo`)"
            )
        if prometheus is not None:
            from tools import metrics_text

            metrics_text.write(prometheus, found)
        if watch is not None and console.out.is_terminal:
            console.out.clear()
        console.json_line(found.as_dict()) if json else _screen(found, at)
        if watch is None:
            return found.code
        time.sleep(watch)


def _screen(found: Health, at: Home) -> None:
    for line, style in _verdict(found, at):
        # A command stays in one piece, to be copied; the terminal breaks it where it must.
        console.line(line, style, width=len(line) + 1 if line.startswith("  next: ") else WIDTH)
    console.line("")
    rows = [*_store(found), *_tables(found), *_model(found), *_runs(found)]
    console.grid(rows, width=WIDTH)


def _verdict(found: Health, at: Home) -> list[tuple[str, str | None]]:
    store = found.store or {}
    if not found.problems:
        if "live" in store:
            lag = (store.get("lag") or {}).get("events")
            behind = "" if lag is None else f", {lag:,} events behind the tables"
            text = f"healthy: generation {store['live']} serves {store['users']:,} users{behind}"
            return [(text, "bold green")]
        step = "ingest" if not found.warehouse else "train" if not found.model else "summarize"
        return [
            ("not serving yet: there is no store", "bold yellow"),
            ("  next: " + invocation.command(step, "--home", at.root), None),
        ]
    lines: list[tuple[str, str | None]] = []
    for p in found.problems:
        word, style = ("WRONG", "bold red") if p.code == 4 else ("look", "bold yellow")
        lines.append((f"{word}: {p.what}", style))
        lines += [(f"  next: {p.command}", None), (f'  docs/operations.md, "{p.paragraph}"', None)]
    return lines


def _store(found: Health) -> list[tuple[str, str]]:
    from tools.report.health import size

    store = found.store
    if store is None:
        return [("store", "none; `vista summarize` makes one")]
    rows = [("store", f"{store['path']}, read by {store['read by']}, {store['readers']} readers now")]
    by_name = {g["generation"]: g for g in store["generations"]}
    for name, live in store["lines"].items():
        g = by_name.get(live)
        some = " ".join(map(str, store["some users"].get(name, ())))
        text = f"{live}"
        text += "" if g is None else f" {g['kind']}, {g['users']:,} users in it, {size(g['bytes'])}"
        rows.append((f"line {name}", text + (f"; such as {some}" if some else "")))
    if "live" in store:
        rows.append(("users", f"{store['users']:,} of line main, depth {store['depth']}"))
        if letters := store["dead letters"]:
            rows.append(("dead letters", f"{letters:,} of {store['live']}: MISSING, or served older"))
        rows += _clocks(store["clocks"])
        if lag := store["lag"]:
            text = lag["why"] if lag["events"] is None else f"{lag['events']:,} events"
            text += f" since {ago(lag['since_ms'])}" if lag["since_ms"] else ""
            text += f"; {lag['new_users']:,} new users would be MISSING" if lag["new_users"] else ""
            rows.append(("behind tables", text))
    need, free = store.get("a full run needs bytes"), f"{size(store['free bytes'])} left"
    rows.append(("disk", free if need is None else f"{free}; a full run writes about {size(need)}"))
    kept = [g["generation"] for g in store["generations"]]
    return [*rows, ("generations", f"{len(kept)} kept: {', '.join(kept[-5:])}")]


def _clocks(clocks: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("newest event", f"{console.when(clocks['newest_event_ms'])}, {ago(clocks['newest_event_ms'])}")]
    made = clocks.get("summarized_ms")
    if made:
        rows.append(("summarised", f"{console.when(made['median'])} for the median of {made['users']} users; oldest "
                     f"{ago(made['oldest'])}, newest {ago(made['newest'])}"))  # fmt: skip
    return [*rows, ("published", f"{console.when(clocks['published_ms'])}, {ago(clocks['published_ms'])}")]


def _tables(found: Health) -> list[tuple[str, str]]:
    from tools.report.health import size

    t = found.warehouse
    if t is None:
        return [("tables", "none; `vista ingest` makes them")]
    return [("tables", f"{t['events']:,} events, {t['items']:,} items, {t['buckets']} buckets, {t['files']} files, "
             f"{size(t['bytes'])}; actions {t['actions'] or 'none'}")]  # fmt: skip


def _model(found: Health) -> list[tuple[str, str]]:
    if found.model is None:
        return [("model", "none; `vista train` makes one")]
    return [("model", f"{found.model['fingerprint'][:12]}, {found.model['verdict']}")]


def _runs(found: Health) -> list[tuple[str, str]]:
    rows = []
    for n, run in enumerate(found.runs):
        took = "" if run.seconds is None else f" in {run.seconds:,.0f} s"
        rows.append(("last runs" if n == 0 else "", f"{run.job} {run.outcome}{took}, {ago(run.started_ms)}"))
    return rows


def ago(ms: int) -> str:
    """How long ago a time was, in its largest unit."""
    seconds = time.time() - ms / 1000
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if abs(seconds) >= 2 * length:
            return f"{abs(seconds) / length:,.0f} {unit} {'ago' if seconds > 0 else 'ahead'}"
    return "now"
