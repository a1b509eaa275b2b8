"""``vista explain``: why one user's summary is as it is, and why an item is where it is for this user."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from tools import console
from tools.home import Home, holds_bundle
from tools.options import JsonOption, LineOption, WholeHome, parse_users, there


def command(
    user: Annotated[str, typer.Argument(help="User id.")],
    *,
    at: WholeHome,
    line: LineOption = "main",
    item: Annotated[
        str | None, typer.Option(help="Also: what a ranking reads for this item, and where it stands.")
    ] = None,
    now: Annotated[
        int | None,
        typer.Option(help="Time of the request, ms.  [default: just after the user's newest event]"),
    ] = None,
    json: JsonOption = False,
) -> int:
    """History, clocks, what weighs most by name, where the record lies; with --item why it is recommended or not.

    Exit code 3 if the store has no such user.
    """
    found = explained(there(at), user, line=line, item=item, now=now)
    missing = found["record"]["status"] in ("MISSING", "CORRUPT")
    console.json_line(found) if json else _show(found)
    return 3 if missing else 0


def explained(
    at: Home, user: str, *, line: str = "main", item: str | None = None, now: int | None = None
) -> dict[str, Any]:
    """``record``, and where they can be told ``history``, ``held`` and ``item``, of one user."""
    from cache_store import Store
    from tools.report import explanation
    from vista import bundle as bundles
    from vista.data.tables.warehouse import Warehouse

    model, tables = at.model, Warehouse(at.tables)
    bundle = bundles.load(model, serve=True) if holds_bundle(model) else None
    there = tables.exists()
    with Store.open(at.store, line=line) as opened:
        (who,) = parse_users([user], opened.format.user_kind)
        found: dict[str, Any] = {"record": explanation.record(opened, who)}
        if there:
            found["history"] = explanation.history(tables.open(), bundle, who)
        served = bundle is not None and bundle.fingerprint == opened.manifest.fingerprint
        if bundle is not None and served:
            found["held"] = explanation.held(opened, bundle, who)
        if item is not None:
            if bundle is None or not served or not there:
                raise typer.BadParameter("--item needs the tables, and the bundle that made the summaries")
            known = int(item) if item.lstrip("-").isdigit() else item
            (wanted,) = bundle.encode(items=[known])["item"].tolist()
            last = found["history"].get("last_ms")
            at_ms = now if now is not None else (last or int(time.time() * 1000)) + 1
            from tools.serving import open_index

            index = open_index(bundle, at.index)
            found["item"] = explanation.item(tables, opened, bundle, index, who, wanted, at_ms)
    return found


def _show(found: dict[str, Any]) -> None:
    from tools.report.asked import record_rows, user_tables

    console.fields(f"user {found['record']['user']}", record_rows(found))
    for part, title, columns, rows in user_tables(found):
        of = f", of {found['held']['kept']:,} items" if part == "items" else ""
        console.table(title + of, columns, rows)
    if "item" in found:
        _show_item(found["item"])


def _show_item(i: dict[str, Any]) -> None:
    last = f", last {console.when(i['last_touch_ms'])}" if i["touched"] else ""
    rows: dict[str, Any] = {
        "touched": f"{i['touched']:,} times{last}",
        "in the summary": "no entry of its own" if i["in_the_summary"] is None else i["in_the_summary"],
        "in the recent events": "yes" if i["in_the_recent_events"] else "no",
        "place among the recommended": i["place"] or "not among them",
    }
    for name, probability in i["probability"].items():
        for action, p in probability.items():
            rows[f"p({action}) {name.replace('_', ' ')}"] = float(p)
    console.fields(f"item {i['name'] or i['item']}", rows)
