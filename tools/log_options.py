"""How logs are read: from flags, ``--layout`` and the ``[log]`` table of ``vista.toml``; a look before it is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tools import console, settings
from tools.home import Home
from tools.options import pairs

if TYPE_CHECKING:
    from beam_jobs.ingest.options import IngestOptions
    from vista.data.logs.reading import Reading

WeightOption = Annotated[
    list[str] | None,
    typer.Option(
        "--weight",
        metavar="ACTION=NUMBER",
        help="What an action is worth in a score; below 0 it counts against the item. May be repeated.",
    ),
]


def given_reading(
    home: Home, layout: str | None, *, actions: Sequence[str] | None = None, **given: Any
) -> Reading:
    """What the flags say, over the layout, or over what ``vista.toml`` says where no layout is named.

    Raises:
        WrongOption: names the option or the file.
    """
    from vista.data.logs.reading import ActionColumn, Reading, WrongOption, load

    found = settings.read(home.root)
    base = Reading.of(found.tables.get("log", {}), f"{found.path}: [log]")
    if layout is not None:
        base = load(layout)
    words = [word.partition("=") for word in actions or ()]
    told = [ActionColumn.of(name, says, "--action-column") for name, _, says in words]
    twice = sorted(name for name, n in Counter(a.name for a in told).items() if n > 1)
    if twice:
        raise WrongOption(
            f"--action-column: expected each action once, found {twice[0]!r} twice; for example "
            f"--action-column like=is_like --action-column share=is_share"
        )
    values = {name: value for name, value in given.items() if value is not None}
    return Reading(actions=tuple(told), **values).over(base)


def weights(words: Sequence[str] | None) -> dict[str, float]:
    """``--weight`` as numbers.

    Raises:
        WrongOption: a value that is none.
    """
    from vista.data.logs.reading import WrongOption

    found = {}
    for name, value in pairs(words, "--weight").items():
        try:
            found[name] = float(value)
        except ValueError:
            raise WrongOption(
                f"--weight: action {name!r}: expected a number, found {value!r}; for example --weight {name}=1"
            ) from None
    return found


def git_history(words: Sequence[str], home: Home) -> str:
    """A log of the repositories' history, written to ``HOME/logs``."""
    from vista.data.logs.git_history import write

    target = home.root / "logs" / f"git-{'-'.join(Path(w).resolve().name for w in words)}.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    write(words, target)
    return str(target)


def show_dry_run(options: IngestOptions, json: bool) -> int:
    """Print what ``--dry-run`` finds; exit code 3 where one of the rows looked at would be set aside."""
    from beam_jobs.ingest.preview import Look, preview

    looks = preview(options)
    code = 3 if any(look.letters for look in looks) else 0
    if json:
        console.json_line([look.as_json() for look in looks])
        return code
    kinds: dict[Any, list[Look]] = {}
    for look in looks:
        kinds.setdefault((look.of, tuple(look.columns), tuple(look.unused)), []).append(look)
    for first, *others in kinds.values():
        console.table(f"{first.path}  ({first.of})", ("meaning", "column", "type", "read as"), first.columns)
        if first.unused:
            console.note(f"not read: {', '.join(first.unused)}")
        if others:
            console.note(f"read alike: {', '.join(look.path for look in others)}")
        kind = "items" if first.of == "items" else "events"
        console.table(f"first of {first.rows:,} rows looked at, as {kind}", first.names, first.events)
        for look in (first, *others):
            where = f" of {look.path}" if others else ""
            for letter in look.letters:
                console.note(
                    f"would be set aside: row {letter.row}{where}, {letter.reason}: {letter.values[:200]}"
                )
    console.note("nothing was changed; leave out --dry-run to ingest")
    return code
