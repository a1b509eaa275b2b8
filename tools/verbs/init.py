"""``vista init``: look at logs, guess how they are read, and write that down for the home."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from tools import console, settings
from tools.log_options import WeightOption, weights
from tools.options import DryRunOption, HomeAlone, JsonOption
from tools.outputs import replacing


def command(
    logs: Annotated[list[str], typer.Argument(metavar="LOGS...", help="Files, folders or globs of events.")],
    *,
    at: HomeAlone,
    layout: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Write this layout down, and guess nothing.")
    ] = None,
    weight: WeightOption = None,
    force: Annotated[bool, typer.Option("--force", help="Write a new [log] over one that is there.")] = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> int:
    """Guess how logs are read and write it to HOME/vista.toml, from where every verb takes it. Flags win."""
    import dataclasses

    from beam_jobs.ingest.preview import FoundLogs, look_first
    from vista.data.logs.guessing import Guess
    from vista.data.logs.reading import WrongOption, load

    there = settings.read(at.root)
    if "log" in there.tables and not force:
        raise WrongOption(
            f"{there.path}: expected no [log] table yet, found one; change it by hand, or run vista init --force"
        )
    others: list[FoundLogs] = []
    if layout:
        kind = FoundLogs(tuple(logs), "the layout", [], Guess(load(layout), {"layout": layout}, ()))
    else:
        kind, others = look_first(logs)
    path, columns, found = kind.path, kind.columns, kind.guess
    if found.impressions:
        raise WrongOption(
            f"{path}: expected events, found impressions, by its columns {', '.join(columns)}; name the events too, "
            f"and take these in with vista ingest EVENTS --impressions {shlex.join(kind.logs)}"
        )
    worth, named = weights(weight), found.reading.named_actions()
    unknown = [a for a in worth if a not in named]
    if unknown and found.reading.actions:
        raise WrongOption(
            f"--weight: expected names among {', '.join(named)}, found {unknown[0]}; for example --weight {named[0]}=1"
        )
    reading = dataclasses.replace(found.reading, weights={**found.reading.weights, **worth})
    text = _with_log(there.path, reading.to_toml())
    if not dry_run:
        at.root.mkdir(parents=True, exist_ok=True)
        with replacing(there.path, "--home", lambda _: True) as file:
            file.write(text.encode())
    if json:
        said = {
            "file": str(there.path),
            "looked_at": path,
            "log": reading.to_json(),
            "missing": found.missing,
        }
        not_read = [{"logs": o.logs, "says": o.says()} for o in others]
        console.json_line({**said, "logs": kind.logs, "others": not_read, "why": found.why})
    else:
        console.table(f"guessed from {path}", ("meaning", "because"), list(found.why.items()))
        print(text, end="")
    for other in others:
        console.note(f"not read: {_few(other.logs)} ({other.says()})")
    if found.missing:
        console.note(
            f"not found among {', '.join(columns)}: {', '.join(found.missing)}; add them to {there.path} "
            f"({_examples(found.missing, reading.header)})"
        )
        return 3
    if dry_run:
        console.note(f"this would be written to {there.path}; nothing was")
        return 0
    console.note(
        f"written to {there.path}; look with: vista ingest --dry-run {_few(kind.logs)} --home {at.root}"
    )
    console.note("what an action is worth in a score is for you to say: [log.weights]")
    return 0


def _few(logs: tuple[str, ...]) -> str:
    return shlex.join(logs[:20]) + (f" and {len(logs) - 20} more" if len(logs) > 20 else "")


def _examples(missing: tuple[str, ...], header: tuple[str, ...]) -> str:
    place = "{} in place of a '-' in header" if header else "[log.columns] {} = 'NAME'"
    lines = [place.format(m) for m in missing if m != "action"]
    if "timestamp_ms" in missing:
        lines.append("or [log] time_from = 'order', where rows are in order and have no times")
    return "; ".join([*lines, *(["[log] action_is = 'view'"] if "action" in missing else [])])


def _with_log(path: Path, toml: str) -> str:
    """The file's text with this ``[log]`` in place of one that is there.

    Raises:
        WrongOption: the file spells its tables in a way that this cannot keep.
    """
    import tomllib

    from vista.data.logs.reading import WrongOption

    lines = [f"[log.{line[1:]}" if line.startswith("[") else line for line in toml.splitlines()]
    new = "\n".join(["[log]", *lines]) + "\n"
    try:
        old = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return new
    kept, inside = [], False
    for line in old.splitlines():
        if line.lstrip().startswith("["):
            inside = line.lstrip().startswith(("[log]", "[log."))
        if not inside:
            kept.append(line)
    text = "\n".join(kept).rstrip() + ("\n\n" if any(kept) else "") + new
    try:
        right = tomllib.loads(text) == tomllib.loads(old) | tomllib.loads(new)
    except tomllib.TOMLDecodeError:
        right = False
    if not right:
        raise WrongOption(
            f"{path}: expected its log in tables of the form [log] and [log.NAME], found another spelling; take it out "
            f"by hand and run vista init again"
        )
    return text
