"""``vista forget``: remove users from the tables, every kept generation, states and dead letters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tools import console
from tools.options import DryRunOption, HomeOfData, JsonOption, OptionGroup, Runner, parse_users, there

if TYPE_CHECKING:
    from vista.data.tables.warehouse import Warehouse


def command(
    users: Annotated[list[str], typer.Argument(help="User ids.")],
    *,
    at: HomeOfData,
    runner: Annotated[Runner, OptionGroup(Runner, ("workers", "engine", "address"))],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Remove users everywhere below HOME. Cannot be undone; doing it again does nothing more.

    Copies elsewhere (pushed generations, the raw logs, backups) are yours to clean.
    """
    from beam_jobs.tables import forget
    from cache_store import Store
    from cache_store.format.layout import holds_store
    from vista.data.tables.warehouse import Warehouse

    tables, stored = there(at).tables, at.store
    if not isinstance(tables, dict):
        _settled(tables)
    has_tables, has_store = Warehouse(tables).exists(), holds_store(stored)
    if not has_tables and not has_store:
        raise typer.BadParameter(f"no tables at {tables} and no store at {stored}; name them, or --home")
    store = Store(stored) if has_store else None  # damage is told before anybody is removed anywhere
    kind = store.format.user_kind if store and not has_tables else Warehouse(tables).open().user_kind
    ids = parse_users(users, kind)
    if dry_run:
        return _preview(ids, Warehouse(tables) if has_tables else None, stored if has_store else None, json)
    if not yes and not json:
        places = [place for place, held in ((tables, has_tables), (stored, has_store)) if held]
        where = " and ".join(console.safe(str(place)) for place in places)
        typer.confirm(f"Remove {len(set(ids))} users from {where} for good?", abort=True, err=True)
    elsewhere = runner != Runner()
    options = forget.ForgetOptions(
        users=ids,
        warehouse=tables if has_tables else None,
        stores=(str(stored),) if has_store else (),
        runs=(str(at.runs),) if at.runs.exists() else (),
        run_dir=str(at.new_run("forget")) if elsewhere else None,
    )
    record = forget.run(options, runner.arguments() if elsewhere else ())
    if json:
        return console.json_line(record.as_dict())
    rows: dict[str, object] = {
        f"table {name}": f"{done.rows:,} rows, in {done.files_rewritten} files"
        for name, done in record.tables.items()
    }
    for name, done in record.stores.items():
        removed = ", ".join(f"{n} in {g}" for g, n in done.generations.items()) or "none"
        rows |= {f"{name}: records": removed, f"{name}: states": done.states}
    rows["dead letters"] = sum(record.letters.values())
    for name, cleaned in record.runs.items():
        rows[f"{name}: working files of"] = ", ".join(cleaned.spills) or "none"
        if cleaned.under_way:
            rows["under way"] = f"{', '.join(cleaned.under_way)}: forget again when they have ended"
    console.fields("forgotten", rows)


def _settled(tables: str) -> None:
    """A copied or moved home is made its own first: its files are to lose the users, and those of no other home."""
    from vista.data.tables.folder import WarehouseMoved, check_at_home
    from vista.data.tables.relocating import relocate

    try:
        check_at_home(tables)
    except WarehouseMoved:
        text = "it now stands on its own, that place is not touched"
        console.note(f"{tables} was copied or moved from {relocate(tables).old}; {text}")


def _preview(ids: list[Any], tables: Warehouse | None, store: Path | None, json: bool) -> None:
    """How many events and summaries would go."""
    from cache_store.change.forget import held
    from cache_store.format.layout import Layout
    from tools import histories

    found: dict[str, Any] = {"dry_run": True, "users": len(set(ids))}
    if tables is not None:
        found["events"] = histories.count(tables, sorted(set(ids)))
    if store is not None:
        found["generations"] = held(Layout(store), ids)
    if json:
        return console.json_line(found)
    rows = {"users": found["users"], "events in the tables": found.get("events", 0)}
    rows |= {f"summaries in {name}": n for name, n in found.get("generations", {}).items()}
    console.fields("would forget", rows)
