"""``vista pull``: bring a pushed generation here and make it live."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from tools import console
from tools.options import DryRunOption, HomeOfStore, JsonOption, LineOption, pairs
from tools.verbs.push import OPTION_HELP


def command(
    url: Annotated[str, typer.Argument(help="Where from: the URL of a push.")],
    *,
    at: HomeOfStore,
    line: LineOption = "main",
    from_line: Annotated[
        str | None, typer.Option("--from-line", help="Remote line.  [default: the same name]")
    ] = None,
    generation: Annotated[
        str | None, typer.Option(help="Remote generation.  [default: the live one of the remote line]")
    ] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help=OPTION_HELP)] = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Copy a generation here, verify every file, publish it to a line. An interrupted pull goes on."""
    from cache_store.remote import copy as remote

    storage = pairs(option, "--option") or None
    if dry_run:
        from cache_store import Store
        from cache_store.format.layout import holds_store
        from cache_store.remote import preview

        there = Store(at.store, line=line) if holds_store(at.store) else None
        would = dataclasses.asdict(
            preview.of_pull(
                url, there, line, remote_line=from_line, generation=generation, storage_options=storage
            )
        )
        return console.told("would pull", {**would, "dry_run": True}, json)
    with console.status(f"pulling from {url}"):
        report = remote.pull(
            url,
            remote.store_like(url, at.store, storage, line=line),
            line,
            remote_line=from_line,
            generation=generation,
            storage_options=storage,
        )
    found = dataclasses.asdict(report)
    console.told("pulled", found, json)
