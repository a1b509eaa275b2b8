"""``vista items``: bring the items that came after training into the catalogue, the clusters and the index."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tools import console
from tools.options import DryRunOption, HomeOfModel, JsonOption
from tools.serving import open_index


class ItemWork(StrEnum):
    refresh = "refresh"


def command(
    what: Annotated[
        ItemWork,
        typer.Argument(
            help="refresh: find the items of the tables that training did not know, and the newer names."
        ),
    ],
    *,
    at: HomeOfModel,
    index: Annotated[
        str | None,
        typer.Option(help="Kind of item index: exact, hnsw or ivf.  [default: as it is, else exact]"),
    ] = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> int:
    """New items can be recommended from then on, without training or summarising anew; the model stays the same.

    One with content (vista ingest --items) is placed by it; one without is known by a hash of its id alone.
    """
    from vista import bundle as bundles
    from vista.data.tables.warehouse import Warehouse
    from vista.serving.catalogue import refresh_items

    found = refresh_items(at.model, Warehouse(at.tables).open(), dry_run)
    if dry_run:
        console.told("would find", {"bundle": str(at.model), **dataclasses.asdict(found)}, json)
        return 0
    loaded = bundles.load(at.model, serve=True)
    made = open_index(loaded, at.index, index or _kind(at.index))
    said = {"bundle": str(at.model), "fingerprint": loaded.fingerprint, **dataclasses.asdict(found)}
    console.told("items", {**said, "index": made.kind}, json)
    if found.hashed_only:
        remedy = "this model reads no content; vista train takes in what the tables have"
        if loaded.config.embedding.content_width:
            remedy = "give them content with vista ingest --items, or run vista train"
        console.note(f"{found.hashed_only:,} of {found.new:,} new items have only hashed vectors: {remedy}")
    if found.left_out:
        text = "items of the tables have neither events nor content and are left out"
        console.note(f"{found.left_out:,} {text}")
    return 0


def _kind(path: Path) -> str:
    from vista.errors import VistaError
    from vista.serving.index import kind_at

    try:
        return kind_at(path)
    except VistaError:
        return "exact"
