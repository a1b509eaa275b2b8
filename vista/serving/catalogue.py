"""Items that came after training found in the tables, placed, and written beside the bundle (vista/new_items.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from vista import bundle as bundles
from vista.data.arrow import lists
from vista.data.tables.items import ItemCounts
from vista.data.tables.warehouse import Warehouse
from vista.embedding.content import content_rows
from vista.model import VistaModel
from vista.new_items import SCHEMA, NewItems
from vista.small_text import replacing
from vista.stage1.clusters import company, joined
from vista.training.loader import WarehouseSource
from vista.training.survey import survey

VECTORS = "items.npz"


@dataclass(frozen=True)
class Refreshed:
    """What :func:`refresh_items` found.

    Attributes:
        items: in the catalogue now.
        new: of them, those that came after training.
        with_content: of the new ones, those that the model reads content of.
        hashed_only: of the new ones, those of which it knows nothing but a hash of their id, until the next training.
        placed: of the new ones, those that read the counter of a cluster of items that they resemble.
        renamed: known items with another name than at training.
        left_out: items of the tables with neither events nor content.
    """

    items: int
    new: int
    with_content: int
    hashed_only: int
    placed: int
    renamed: int
    left_out: int


def refresh_items(path: str | Path, warehouse: Warehouse, dry_run: bool = False) -> Refreshed:
    """Find the items of the tables that a bundle's training did not know, and write them beside it.

    A new item with content joins the cluster of those that it resembles by it, one without that of those that it is
    used beside; what has neither is told apart by its hash. Done again it starts from the bundle, so an item whose
    content came meanwhile is placed anew.

    Args:
        dry_run: only count; nothing is written.

    Raises:
        BundleError, DataError: see their texts.
    """
    loaded = bundles.load(path)
    model, trained = loaded.model, loaded.path / "items.parquet"
    catalogue = bundles.read_items(trained)
    known = catalogue["item_id"].to_numpy()
    counts, e = warehouse.read_items(), model.config.embedding
    told, rows = content_rows(warehouse.read_content(), e.content_width - e.words_width, e.words_width)
    used = counts.item[counts.events > 0]
    new = np.setdiff1d(np.union1d(used, told), known)
    mine = np.isin(told, new)
    told, rows = told[mine], rows[mine]
    cluster = _clusters(model, new, told, rows, np.isin(new, used), warehouse)
    renamed = _renamed(catalogue, counts)
    whole = np.union1d(known, new)
    if not dry_run:
        table = pa.concat_tables([_table(new, counts, told, rows, cluster), renamed])
        found = NewItems.write(loaded.path, loaded.fingerprint, table)
        found.apply(model)
        publish(loaded.path, model, found.over(catalogue))
    return Refreshed(
        items=len(whole),
        new=len(new),
        with_content=len(told),
        hashed_only=len(new) - len(told),
        placed=int((cluster >= 0).sum()),
        renamed=len(renamed),
        left_out=len(np.setdiff1d(np.union1d(counts.item, told), whole)),
    )


def publish(path: Path, model: VistaModel, items: pa.Table) -> None:
    """Write ``BUNDLE.items.npz``: the bundle's ``vectors.npz`` with the new items, for readers without a model."""
    with replacing(path.with_name(f"{path.name}.{VECTORS}")) as file:
        bundles.publish_vectors(file, model, items)


def _clusters(
    model: VistaModel,
    new: np.ndarray,
    told: np.ndarray,
    rows: np.ndarray,
    used: np.ndarray,
    warehouse: Warehouse,
) -> np.ndarray:
    """int32 [N]: the cluster that each new item joins, -1 for that of its hash."""
    found = np.full(len(new), -1, np.int32)
    tokens, encoder = model.tokens, model.items
    if not (tokens.enabled and tokens.clusters and len(tokens.cluster_of) and len(new)):
        return found
    items, cluster = tokens.cluster_of.ids.cpu().numpy(), tokens.cluster_of.values.cpu().numpy()
    if len(told) and encoder.content is not None:
        before = encoder.content.ids.cpu().numpy(), encoder.content.values.cpu().numpy()
        both = np.concatenate([before[0], told]), np.concatenate([before[1], rows])
        _take(found, new, *joined(items, cluster, *both))
    if (used & (found < 0)).any():
        sample = survey(WarehouseSource.of(warehouse), 0.0, model.config.seed).sample
        more = joined(items, cluster, *company(sample, seed=model.config.seed))
        rest = np.where(found < 0, new, new.min() - 1)
        _take(found, rest, *more)
    return found


def _take(found: np.ndarray, new: np.ndarray, items: np.ndarray, cluster: np.ndarray) -> None:
    order = np.argsort(items)
    at = order[np.minimum(np.searchsorted(items, new, sorter=order), len(items) - 1)]
    found[:] = np.where((items[at] == new) & (found < 0), cluster[at], found)


def _table(
    new: np.ndarray, counts: ItemCounts, told: np.ndarray, rows: np.ndarray, cluster: np.ndarray
) -> pa.Table:
    at = np.minimum(np.searchsorted(counts.item, new), max(len(counts) - 1, 0))
    counted = counts.item[at] == new if len(counts) else np.zeros(len(new), bool)
    known = [counts.name[k] if there else None for k, there in zip(at, counted, strict=True)]
    names = [name or str(item) for name, item in zip(known, new, strict=True)]
    lengths = np.zeros(len(new), np.int64)
    lengths[np.searchsorted(new, told)] = rows.shape[1]
    surface, events = np.zeros(len(new), np.int32), np.zeros(len(new), np.int64)
    surface[counted], events[counted] = counts.surface[at[counted]], counts.events[at[counted]]
    columns = {
        "item_id": pa.array(new, pa.int64()),
        "name": pa.array(names, pa.string()),
        "surface": pa.array(surface),
        "events": pa.array(events),
        "row": lists(lengths, pa.array(rows.ravel(), pa.float32()), lengths == 0),
        "cluster": pa.array(cluster, mask=cluster < 0),
    }
    return pa.table(columns).cast(SCHEMA)


def _renamed(catalogue: pa.Table, counts: ItemCounts) -> pa.Table:
    """Rows of items of the catalogue that have another name now."""
    ids, names = catalogue["item_id"].to_numpy(), catalogue["name"].to_numpy(zero_copy_only=False)
    at = np.minimum(np.searchsorted(counts.item, ids), max(len(counts) - 1, 0))
    now = counts.name[at] if len(counts) else names
    same = counts.item[at] == ids if len(counts) else np.zeros(len(ids), bool)
    changed = np.flatnonzero([bool(s and n and n != was) for s, n, was in zip(same, now, names, strict=True)])
    rows = catalogue.take(pa.array(changed))
    columns = {n: rows[n] for n in ("item_id", "surface", "events")}
    columns |= {n: pa.nulls(len(changed), SCHEMA.field(n).type) for n in ("row", "cluster")}
    columns["name"] = pa.array(now[changed], pa.string())
    return pa.table(columns).select(SCHEMA.names).cast(SCHEMA)
