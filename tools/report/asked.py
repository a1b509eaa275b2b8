"""Sections that are on the page only if asked for: what differs from another generation, and one user explained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools import console
from tools.report.page import Exhibit, Section

if TYPE_CHECKING:
    from cache_store.change.compare import Comparison

QUANTILES = ("10 %", "median", "90 %", "99 %", "most")


def compared(store: Path, before: str, after: str = "main", sample: int = 4_096) -> Comparison:
    """Two generations, each by its own name or by that of a line for its live one.

    Raises:
        StoreError
    """
    from cache_store import Store
    from cache_store.change.compare import compare

    opened = Store(store)
    live = opened.lines()
    return compare(opened.layout, live.get(before, before), live.get(after, after), sample)


def difference(store: Path, before: str) -> Section:
    """What ``vista diff BEFORE`` says of the live generation.

    Raises:
        StoreError
    """
    found = compared(store, before)
    says = (
        f"Of {found.sampled:,} users that were read in both, {found.changed:,} have another record and {found.grown:,} "
        f"more events." + ("" if found.same_model else " Another model made them: drift says nothing.")
    )
    counts = [("users before", found.users[0]), ("users now", found.users[1]), ("added", found.added),
              ("gone", found.gone), ("in both", found.kept)]  # fmt: skip
    exhibits = [
        Exhibit("diff-users", f"Users from {found.before} to {found.after}", says, "", ("", "users"), counts),
        _drift("diff-drift", "Drift of tokens", "|b - a| / |a| over the users read.", found.drift),
        _drift("diff-mass", "Change of masses", "log2 of |b| / |a| over the users read.", found.mass),
    ]
    if found.by_length:
        columns = ("events", "users", "median drift", "90 %")
        rows = [tuple(row.values()) for row in found.by_length]
        exhibits.append(Exhibit("diff-length", "Drift by length of history", "", "", columns, rows))
    return Section("diff", f"What changed since {found.before}", "What vista diff tells.", exhibits)


def _drift(name: str, title: str, says: str, groups: Mapping[str, Any]) -> Exhibit:
    return Exhibit(name, title, says, "", ("group", *QUANTILES), [(g, *v) for g, v in groups.items()])


def user(found: Mapping[str, Any]) -> Section:
    """What ``vista explain USER`` found."""
    apart = ("live generation", "file", "offset", "state bytes", "not yet seen")
    rows = [(name, value) for name, value in record_rows(found).items() if name not in apart]
    title = f"User {found['record']['user']}"
    exhibits = [Exhibit("explain-record", title, "", "", ("", "value"), rows)]
    for part, title, columns, table in user_tables(found):
        exhibits.append(Exhibit(f"explain-{part}", title.capitalize(), "", "", columns, table))
    return Section("explain", "One user explained", "What vista explain tells.", exhibits)


def record_rows(found: Mapping[str, Any]) -> dict[str, Any]:
    """Name to value of a user's record, as people read it."""
    r, history = found["record"], found.get("history")
    rows: dict[str, Any] = {"status": r["status"], "events seen": r["events"]}
    for name in ("last_event_ms", "summarized_ms", "published_ms"):
        if r[name]:
            rows[name.removesuffix("_ms").replace("_", " ")] = console.when(r[name])
    rows |= {"live generation": r["live"], "record of generation": r["generation"] or "none",
             "file": r["file"] or "none", "offset": r["offset"], "state bytes": r["state_bytes"]}  # fmt: skip
    if history:
        rows["events in the tables"] = history["events"]
        rows["not yet seen"] = max(history["events"] - r["events"], 0)
    return rows


def user_tables(
    found: Mapping[str, Any],
) -> Iterator[tuple[str, str, Sequence[str], Sequence[tuple[Any, ...]]]]:
    """What a user has most of in the history and in the summary, where there is any: part, title, columns, rows."""
    history, held = found.get("history") or {}, found.get("held") or {}
    if history.get("items"):
        often = [(i["name"] or str(i["item"]), i["times"]) for i in history["items"]]
        yield "history", "most often in the history", ("item", "times"), often
    horizons = ["all" if h is None else f"half in {h:,.0f}" for h in held.get("half_lives_events") or ()]
    if held.get("items"):
        rows = [(i["name"] or str(i["item"]), *map(float, i["masses"])) for i in held["items"]]
        yield "items", "weighs most in the summary", ("item", *horizons), rows
    if held.get("clusters"):
        rows = [(f"cluster {c['cluster']}", *map(float, c["masses"])) for c in held["clusters"]]
        yield "clusters", "clusters that weigh most", ("cluster", *horizons), rows
