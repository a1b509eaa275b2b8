"""``vista push``: copy a generation, and every one below it, to an object store or another folder."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from tools import console
from tools.options import DryRunOption, HomeOfStore, JsonOption, LineOption, pairs

OPTION_HELP = "Option of the fsspec filesystem (endpoint, profile, ...). May be repeated."


def command(
    url: Annotated[
        str, typer.Argument(help="Where to: any fsspec URL, e.g. s3://bucket/cache, or a folder.")
    ],
    *,
    at: HomeOfStore,
    line: LineOption = "main",
    generation: Annotated[str | None, typer.Option(help="Generation.  [default: the live one]")] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Then delete remote generations that no remote line needs.")
    ] = False,
    option: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help=OPTION_HELP)] = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Copy a generation by digest, then point the remote line at it. An interrupted push goes on."""
    from cache_store import Store
    from cache_store.remote import copy as remote

    storage = pairs(option, "--option")
    if dry_run:
        from cache_store.remote import preview

        would = dataclasses.asdict(
            preview.of_push(Store(at.store, line=line), generation, url, storage or None)
        )
        return console.told("would push", {**would, "dry_run": True}, json)
    with console.status(f"pushing to {url}"):
        report = remote.push(Store(at.store, line=line), generation, url, storage_options=storage or None)
        swept = remote.sweep(url, storage or None) if sweep else []
    found = {**dataclasses.asdict(report), "swept": swept}
    console.told("pushed", found, json)
