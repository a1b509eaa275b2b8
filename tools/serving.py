"""A recommender from what lies on disk: store, bundle and item index of one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tools import console

if TYPE_CHECKING:
    from vista.bundle import Bundle
    from vista.serving.index import ItemIndex


def open_index(bundle: Bundle, path: Path, kind: str = "exact") -> ItemIndex:
    """The index of the bundle's catalogue at ``path``; built and saved where there is none of this model.

    Where it cannot be saved (a read-only home, or something else at that place), it serves from memory, told so.
    """
    from vista.errors import VistaError
    from vista.serving.index import ItemIndex

    if (path / "index.json").exists():
        try:
            index = ItemIndex.load(path, bundle.fingerprint)
            if index.kind == kind and index.catalogue == bundle.catalogue:
                return index
        except VistaError as error:
            console.note(f"{path}: building the index again ({error})")
    with console.status("building the item index"):
        items = bundle.items()["item_id"].to_numpy()
        index = ItemIndex.build(bundle.model, items, kind, fingerprint=bundle.fingerprint)
        index.catalogue = bundle.catalogue
        try:
            index.save(path)
        except (OSError, RuntimeError, VistaError) as error:  # RuntimeError: FAISS cannot write
            console.note(f"the item index is not kept, the next call builds it again: {error}")
    return index
