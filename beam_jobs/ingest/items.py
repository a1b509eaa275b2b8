"""What item files say: names, categories, texts and vectors, from the files to the tables of items and of content.

    item files ──read_items──▶ chunk files by item shard: titles, content ──build_items──▶ one file per table and shard

Of an item that is told of several times the last row has its say, field by field; how many rows were overruled is
counted (``items_repeated``).
"""

from __future__ import annotations

import posixpath
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.ingest.read import as_table
from beam_jobs.ingest.spill import Spilled, read_pieces
from beam_jobs.ingest.units import (
    IngestSettings,
    ItemShard,
    Routed,
    by_item,
    finished,
    handed_on,
    inputs_digest,
    write_unit,
)
from beam_jobs.ingest.vocabulary import batch_rows, text_columns
from beam_jobs.run.record import DEAD_LETTER_SCHEMA
from vista.data.arrow import write_table
from vista.data.logs.importer import check_items
from vista.data.logs.schema import LogFile, UnreadableFile, WrongType, batches, open_source
from vista.data.paths import is_full
from vista.data.tables import content
from vista.data.tables.items import ItemCounts, chosen

SHARD_BYTES = 1 << 28
"""Of vectors in one item shard, about."""


def vector_width(sources: Sequence[LogFile], present: int) -> int:
    """Floats of an item's vector: those of the tables, else what most vectors of the files have; 0 where none has one.

    Raises:
        WrongType: most vectors of a file have another width than the others.
    """
    expected, where = present, "the tables"
    for source in sources:
        if source.kinds.get("vector", "null") == "null" or not source.rows:
            continue
        found = _widths(source)
        if not found:
            continue
        width = found.most_common(1)[0][0]
        if expected and width != expected:
            raise WrongType(
                f"{source.path}: column {source.names['vector']!r} (vector): expected vectors of {expected} numbers as "
                f"in {where}, found {width} in row {_first(source, width)}; make all by one encoder, or leave the "
                f"file out of vista ingest --items"
            )
        if not expected:
            expected, where = width, source.path
    return expected


def _widths(source: LogFile) -> Counter[int]:
    found: Counter[int] = Counter()
    with open_source(source.data) as file:
        for batch in file.iter_batches(65_536, columns=[source.names["vector"]]):
            column = batch.column(0)
            if pa.types.is_fixed_size_list(column.type):
                return Counter({column.type.list_size: 1})
            found.update(pc.list_value_length(column).drop_null().to_pylist())
    del found[0]
    return found


def _first(source: LogFile, width: int) -> int:
    """Number of the first row with a vector of a width."""
    row = 0
    with open_source(source.data) as file:
        for batch in file.iter_batches(65_536, columns=[source.names["vector"]]):
            lengths = pc.fill_null(pc.list_value_length(batch.column(0)), 0).to_numpy(zero_copy_only=False)
            if (lengths == width).any():
                return row + int(np.argmax(lengths == width))
            row += len(lengths)
    return row


def tells_content(sources: Sequence[LogFile]) -> bool:
    """Whether item files have more than names."""
    return any(source.kinds.get(name, "null") != "null" for source in sources for name in content.FIELDS)


def read_items(sources: Sequence[LogFile], settings: IngestSettings) -> list[Routed]:
    """Read, check and spill what item files say.

    Raises:
        UnreadableFile: pages of a file cannot be read.
    """
    if not sources:
        return []
    name, inputs = "read-items", inputs_digest([asdict(source) for source in sources], settings)
    if done := finished(settings, name, inputs):
        return list(handed_on([done]))
    start = time.monotonic()
    routed: list[Routed] = []
    letters: list[pa.Table] = []
    for i, source in enumerate(sources):
        row = 0
        try:
            with open_source(source.data, text_columns(source)) as file:
                wanted = list(dict.fromkeys(source.names.values()))
                for batch in batches(file, batch_rows(file, settings.chunk_rows), wanted):
                    found = check_items(batch, source, row, settings.vector_width)
                    letters.append(as_table(found.letters, source.path))
                    columns, chunk = {"item": found.item, "name": found.name}, f"{i:05d}-{row:012d}.arrow"
                    routed += by_item("titles", columns, chunk, settings)
                    if found.content:
                        columns = {"item_id": found.item, **_whole(found.content, len(found.item))}
                        routed += by_item("content", columns, chunk, settings)
                    row += batch.num_rows
        except (OSError, ValueError, pa.ArrowException) as error:
            if is_full(error):
                raise
            raise UnreadableFile(
                f"{source.path}: expected {source.rows} readable rows, found {row}, then: {error}; replace the file "
                f"and run vista ingest again"
            ) from error
    dead = pa.concat_tables([DEAD_LETTER_SCHEMA.empty_table(), *letters])
    settings.directory.write_dead_letters(name, dead)
    counts = {"rows": sum(s.rows for s in sources), "dead": dead.num_rows}
    write_unit(settings, name, inputs, routed, counts, start)
    return routed


def _whole(columns: dict[str, pa.Array], rows: int) -> dict[str, pa.Array]:
    """All columns of the table, nulls for what a file does not tell."""
    return {
        f.name: columns.get(f.name, pa.nulls(rows, f.type))
        for f in content.ARROW_SCHEMA
        if f.name != "item_id"
    }


def build_items(task: ItemShard, settings: IngestSettings) -> dict[str, int]:
    """Add up the items of a shard over all buckets, with what item files say of them, and write a file per table."""
    pieces = task.values
    inputs = inputs_digest([asdict(p) for p in pieces], settings)
    if finished(settings, task.name, inputs) is not None:
        return {}
    start = time.monotonic()
    by_tag = {tag: [p for p in pieces if p.tag == tag] for tag in ("counts", "names", "titles", "content")}
    counted = list(read_pieces(by_tag["counts"]))
    parts = [[b.column(n).to_numpy() for b in counted] for n in ("item", "surface", "events")]
    kinds = (np.int64, np.int32, np.int64)
    item, surface, events = (np.concatenate([np.zeros(0, k), *p]) for p, k in zip(parts, kinds, strict=True))
    # titles in the order of files and rows, the last first; names of the logs, which are ids, behind them
    titles = [
        b.take(pa.array(np.arange(b.num_rows)[::-1])) for b in read_pieces(_in_order(by_tag["titles"]))
    ][::-1]
    named = [*titles, *read_pieces(by_tag["names"])]
    names = None
    if named:
        table = pa.Table.from_batches(named)
        names = chosen(table["item"].to_numpy(), table["name"])
    total = ItemCounts.of(item, surface, events, names)
    file = f"{settings.commit:08d}-{settings.run}-{task.number:05d}.parquet"
    files = [total.write(posixpath.join(settings.roots["items"], "data", file))]
    told = list(read_pieces(_in_order(by_tag["content"])))
    if told:
        table = content.merged(pa.Table.from_batches(told).cast(content.ARROW_SCHEMA))
        files.append(write_table(table, posixpath.join(settings.roots["content"], "data", file)))
    titled = np.concatenate([np.zeros(0, np.int64), *(b.column("item").to_numpy() for b in titles)])
    counts = {
        "items": len(total),
        "item_events": int(total.events.sum()),
        "items_told": len(table) if told else 0,
        "items_repeated": len(titled) - len(np.unique(titled)),
        "vectors": len(table) - table["vector"].null_count if told else 0,
    }
    write_unit(settings, task.name, inputs, [], counts, start, files)
    return {}


def _in_order(pieces: Sequence[Spilled]) -> list[Spilled]:
    return sorted(pieces, key=lambda p: p.path)
