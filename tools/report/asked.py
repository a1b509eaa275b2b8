"""Sections that are on the page only if asked for: what differs from another generation, and one user explained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools import console
from tools.report.page import Exhibit, Section

if TYPE_CHECKING:
    from cache_store.change.compare import Comparison

QUANTILES = ("10 %", "median", "90 %", "99 %", "most")


def difference(store: Path, before: str, sample: int = 4_096) -> Section:
    """What ``vista diff BEFORE`` says of the live generation.

    Raises:
        StoreError
    """
    from cache_store import Store
    from cache_store.change.compare import compare

    opened = Store(store)
    known = opened.lines()
    found: Comparison = compare(opened.layout, known.get(before, before), known["main"], sample)
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
    r, history, held = found["record"], found.get("history") or {}, found.get("held") or {}
    rows: list[tuple[str, Any]] = [("status", r["status"]), ("events seen", r["events"])]
    for name in ("last_event_ms", "summarized_ms", "published_ms"):
        if r[name]:
            rows.append((name.removesuffix("_ms").replace("_", " "), console.when(r[name])))
    rows.append(("record of generation", r["generation"] or "none"))
    if history:
        rows.append(("events in the tables", history["events"]))
    exhibits = [Exhibit("explain-record", f"User {r['user']}", "", "", ("", "value"), rows)]
    if history.get("items"):
        often = [(i["name"] or str(i["item"]), i["times"]) for i in history["items"]]
        exhibits.append(
            Exhibit("explain-history", "Most often in the history", "", "", ("item", "times"), often)
        )
    horizons = ["all" if h is None else f"half in {h:,.0f}" for h in held.get("half_lives_events") or ()]
    for part, title in (("items", "Weighs most in the summary"), ("clusters", "Clusters that weigh most")):
        if held.get(part):
            named = [_name(part, entry) for entry in held[part]]
            table = [(n, *map(float, e["masses"])) for n, e in zip(named, held[part], strict=True)]
            exhibits.append(Exhibit(f"explain-{part}", title, "", "", (part[:-1], *horizons), table))
    return Section("explain", "One user explained", "What vista explain tells.", exhibits)


def _name(part: str, entry: Mapping[str, Any]) -> str:
    if part == "clusters":
        return f"cluster {entry['cluster']}"
    return str(entry["name"] or entry["item"])
