"""``vista config``: what ``vista.toml`` of a home says, what holds for a verb, and where that comes from."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tools import console, settings
from tools.options import HomeAlone, JsonOption
from tools.verbs import VERBS


def command(
    verb: Annotated[
        str | None, typer.Argument(help="Every option of this verb.  [default: what the file sets]")
    ] = None,
    *,
    at: HomeAlone,
    show: Annotated[bool, typer.Option("--show", help="Show it; this verb does nothing else.")] = True,
    json: JsonOption = False,
) -> None:
    """Show what HOME/vista.toml sets, or with a verb all of its options: value, and where from. Flags win over both."""
    from tools.command_line import command as command_of

    if verb is not None and verb not in VERBS:
        raise typer.BadParameter(f"expected a verb, found {verb!r}; `vista --help` names them")
    found = settings.read(at.root)
    verbs = [verb] if verb else [v for v in VERBS if v in found.verbs or found.common]
    rows: list[dict[str, Any]] = []
    for name in verbs:
        made = command_of(name)
        given, defaults = found.defaults(name, made), {p.name: p.default for p in made.params}
        for option, parameter in settings.option_names(made).items():
            if parameter in given:
                row = {"value": given[parameter], "from": str(found.path)}
            elif verb is not None:
                row = {"value": defaults[parameter], "from": "built in"}
            else:
                continue
            rows.append({"verb": name, "option": option, **row})
    for table, values in found.tables.items():
        if verb in (None, "ingest"):
            rows += [{"verb": "ingest", "option": f"[{table}] {k}", "value": v, "from": str(found.path)}
                     for k, v in values.items()]  # fmt: skip
    if json:
        return console.json_line({"file": str(found.path), "there": found.path.exists(), "options": rows})
    if not found.path.exists():
        console.note(f"{found.path}: not there, so what is built in holds; docs/operations.md has an example")
    if rows:
        console.table(f"settings of {at.root}", list(rows[0]), [list(row.values()) for row in rows])
