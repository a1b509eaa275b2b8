"""Items that came after a model was trained: retrieved and ranked without training anew, and later names of others.

    BUNDLE.items.parquet   item_id, name, surface, events, row (content row, or null), cluster (or null)

The file lies beside the bundle, which never changes, and names its fingerprint; ``vista items refresh`` replaces it in
one step. It is for serving alone: vectors in the index and of recent events, and whose counter a candidate reads.
Stage 1 does not see it. States and records are what the bundle's weights made of the events, before a refresh as after
it, so nothing has to be summarised anew; in them a new item counts under the cluster that its hash gives it, until the
next training. Where the file is gone, items are those that training knew.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from vista.errors import BundleError
from vista.small_text import replacing

if TYPE_CHECKING:
    from vista.model import VistaModel

FORMAT = "vista-new-items 1"
SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.int64(), False),
        pa.field("name", pa.string(), False),
        pa.field("surface", pa.int32(), False),
        pa.field("events", pa.int64(), False),
        pa.field("row", pa.list_(pa.float32())),
        pa.field("cluster", pa.int32()),
    ]
)


@dataclass(frozen=True)
class NewItems:
    """What the file holds.

    Attributes:
        table: of :data:`SCHEMA`, ascending by ``item_id``; items that the bundle's catalogue has too bring a name.
        mark: 16 hex digits, same for the same rows.
    """

    table: pa.Table
    mark: str

    @staticmethod
    def path(bundle: str | Path) -> Path:
        """Where the file of a bundle lies."""
        bundle = Path(bundle)
        return bundle.with_name(f"{bundle.name}.items.parquet")

    @staticmethod
    def read(bundle: str | Path, fingerprint: str) -> NewItems | None:
        """The new items of a bundle; None where it has none.

        Raises:
            BundleError: not readable, of another format, or of another bundle.
        """
        path = NewItems.path(bundle)
        if not path.exists():
            return None
        try:
            table = pq.read_table(path)
            told = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
            whole = table.select(SCHEMA.names).cast(SCHEMA)
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise BundleError(
                f"{path}: expected items of {FORMAT!r}, found {error}; run `vista items refresh`"
            ) from error
        if told.get("format") != FORMAT or told.get("fingerprint") != fingerprint:
            raise BundleError(
                f"{path}: expected {FORMAT!r} of model {fingerprint}, found {told.get('format')!r} of "
                f"{told.get('fingerprint')}; run `vista items refresh`"
            )
        return NewItems(whole.replace_schema_metadata(None), told.get("mark", ""))

    @staticmethod
    def write(bundle: str | Path, fingerprint: str, table: pa.Table) -> NewItems:
        """Put rows of :data:`SCHEMA` in the place of those that are there, in one step."""
        path = NewItems.path(bundle)
        table = table.sort_by("item_id").cast(SCHEMA)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, SCHEMA) as stream:
            stream.write_table(table.combine_chunks())
        mark = xxhash.xxh3_64_hexdigest(memoryview(sink.getvalue()))
        told = {"format": FORMAT, "fingerprint": fingerprint, "mark": mark}
        with replacing(path) as file:
            pq.write_table(table.replace_schema_metadata(told), file)
        return NewItems(table, mark)

    def over(self, items: pa.Table) -> pa.Table:
        """The bundle's catalogue with these in it: names replaced, items added; ascending by ``item_id``."""
        mine = self.table.select(items.schema.names)
        ids, new = items["item_id"].to_numpy(), mine["item_id"].to_numpy()
        renamed = np.isin(ids, new)
        names = items["name"].to_numpy(zero_copy_only=False).copy()
        names[renamed] = mine["name"].take(pa.array(np.searchsorted(new, ids[renamed]))).to_pylist()
        known = items.set_column(items.schema.get_field_index("name"), "name", pa.array(names, pa.string()))
        added = mine.filter(pa.array(~np.isin(new, ids)))
        return pa.concat_tables([known.cast(items.schema), added.cast(items.schema)]).sort_by("item_id")

    def apply(self, model: VistaModel) -> None:
        """Let a model that serves know them: their content, and the clusters that they read.

        Raises:
            BundleError: content rows of another width than the model's.
        """
        ids, rows = self.table["item_id"].to_numpy(), self.table["row"]
        told = rows.is_valid().to_numpy()
        encoder = model.items
        if told.any():
            flat = rows.filter(pa.array(told)).combine_chunks().flatten().to_numpy()
            width = 0 if encoder.content is None else encoder.content.values.shape[1]
            if encoder.content is None or encoder.alone is None or len(flat) != width * told.sum():
                raise BundleError(
                    f"new items: expected content rows of width {width}, found {len(flat) // int(told.sum())}; run "
                    f"`vista items refresh`"
                )
            before = encoder.content.ids.cpu().numpy(), encoder.content.values.cpu().numpy()
            seen = np.zeros(len(before[0]), bool)
            if len(encoder.alone):
                seen = encoder.alone.values.cpu().numpy()
            items = np.concatenate([before[0], ids[told]])
            content = np.concatenate([before[1], flat.reshape(-1, width)])
            encoder.set_content(items, content, np.concatenate([seen, np.ones(int(told.sum()), bool)]))
        placed = self.table["cluster"].is_valid().to_numpy()
        if placed.any() and model.tokens.enabled and model.tokens.clusters:
            model.tokens.set_newer(ids[placed], self.table["cluster"].filter(pa.array(placed)).to_numpy())
