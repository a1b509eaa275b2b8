"""``vista forget``: remove users from the tables, every kept generation, states and dead letters."""

from __future__ import annotations

from typing import Annotated

import typer

from tools import console
from tools.home import Home
from tools.options import HOME, HomeOption, JsonOption, StoreOption, WarehouseOption, parse_users


def command(
    users: Annotated[list[str], typer.Argument(help="User ids.")],
    home: HomeOption = HOME,
    warehouse: WarehouseOption = None,
    store: StoreOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: JsonOption = False,
) -> None:
    """Remove users everywhere below HOME. Cannot be undone; doing it again does nothing more.

    Copies elsewhere (pushed generations, the raw logs, backups) are yours to clean.
    """
    from beam_jobs.tables import forget
    from cache_store import Store
    from vista.data.tables.warehouse import Warehouse

    at = Home(home)
    tables = at.tables(warehouse)
    stored = store or at.store
    has_tables, has_store = Warehouse(tables).exists(), (stored / "FORMAT").exists()
    if not has_tables and not has_store:
        raise typer.BadParameter(f"no tables at {tables} and no store at {stored}; name them, or --home")
    kind = Warehouse(tables).open().user_kind if has_tables else Store(stored).format.user_kind
    ids = parse_users(users, kind)
    if not yes and not json:
        typer.confirm(f"Remove {len(ids)} users from {tables} and {stored} for good?", abort=True, err=True)
    record = forget.run(
        forget.ForgetOptions(
            users=ids,
            warehouse=tables if has_tables else None,
            stores=(str(stored),) if has_store else (),
            runs=(str(at.runs),) if at.runs.exists() else (),
        )
    )
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
    console.fields("forgotten", rows)
