"""Vectors of items in NumPy's files, as Parquet with a row per item.

``NAME.npz`` holds both: an array of ids [M] and one of vectors [M, W]. ``NAME.npy`` holds vectors alone; their ids
stand in ``NAME.ids.npy`` or ``NAME.ids.txt`` (one a line), or in the file that ``--item-column item_id=FILE`` names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from vista.data import paths
from vista.data.logs.reading import Reading
from vista.data.logs.schema import BROKEN, LINE, UnreadableFile, said, write_rows

ROWS = 65_536
IDS = ("item_id", "ids", "item_ids", "id", "items")
VECTORS = ("vector", "vectors", "embedding", "embeddings", "embed")


def ids_file(path: str, reading: Reading) -> str:
    """Where the ids of a ``.npy`` stand, whether or not there is such a file."""
    if named := reading.columns.get("item_id"):
        return named
    stem = os.path.splitext(path)[0]
    found = [stem + ending for ending in (".ids.npy", ".ids.txt")]
    return next((name for name in found if paths.exists(name)), found[0])


def as_rows(path: str, target: str, reading: Reading, most: int | None = None) -> None:
    """Write (the first ``most``) vectors with their ids as Parquet, under the names that the reading asks for.

    Raises:
        UnreadableFile: no ids, not as many as vectors, or arrays that are neither.
    """
    try:
        ids, vectors = _pair(path, reading)
    except (*paths.UNREADABLE, KeyError, MemoryError) as error:
        raise UnreadableFile(
            f"{path}: expected arrays of numbers as numpy.save writes them, found: {said(error)}; write them "
            f" again, or leave the file out of vista ingest --items"
        ) from error
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu" or ids.ndim != 1 or ids.dtype.kind not in "iuUS":
        raise UnreadableFile(
            f"{path}: expected ids [M] of numbers or texts and vectors [M, W] of numbers, found {ids.dtype} "
            f"{list(ids.shape)} and {vectors.dtype} {list(vectors.shape)}; for example vista ingest --items "
            f"{path} --item-column item_id=ids.npy"
        )
    if len(ids) != len(vectors):
        raise UnreadableFile(
            f"{path}: expected an id for each of {len(vectors)} vectors, found {len(ids)} ids; write both anew, then "
            f"run vista ingest again"
        )
    names = [reading.columns.get(m, m) for m in ("item_id", "vector")]
    ids, vectors = ids[:most], vectors[:most]
    starts = range(0, max(len(ids), 1), ROWS)
    write_rows(target, (_batch(ids[a : a + ROWS], vectors[a : a + ROWS], a, names) for a in starts))


def _batch(ids: np.ndarray, vectors: np.ndarray, start: int, names: list[str]) -> pa.RecordBatch:
    n, width = vectors.shape
    with np.errstate(over="ignore"):
        flat = np.ascontiguousarray(vectors, np.float32).ravel()
    if ids.dtype.kind == "S":
        told = pa.array(ids.tolist(), pa.binary())
    else:
        told = pa.array(ids.tolist(), pa.string()) if ids.dtype.kind == "U" else pa.array(np.array(ids))
    columns: dict[str, pa.Array] = {
        names[0]: told,
        names[1]: pa.FixedSizeListArray.from_arrays(pa.array(flat), width),
        LINE: pa.array(np.arange(start, start + n)),
        BROKEN: pa.nulls(n, pa.string()),
    }
    return pa.record_batch(columns)


def _pair(path: str, reading: Reading) -> tuple[np.ndarray, np.ndarray]:
    if path.lower().endswith(".npz"):
        with paths.open_input(path) as file, np.load(file, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        ids = _named(path, arrays, "item_id", 1, IDS, reading)
        return ids, _named(path, arrays, "vector", 2, VECTORS, reading)
    named = ids_file(path, reading)
    if not paths.exists(named):
        raise UnreadableFile(
            f"{path}: expected the ids of its vectors in {named}, found no such file; for example vista ingest --items "
            f"{path} --item-column item_id=ids.npy"
        )
    if named.lower().endswith(".npy"):
        return _loaded(named), _loaded(path)
    with paths.open_input(named) as file:
        lines = file.read().decode().splitlines()
    numbers = all(line.isdecimal() and str(int(line)) == line for line in lines)
    return np.array(lines, np.int64 if numbers else str), _loaded(path)


def _loaded(path: str) -> np.ndarray:
    if paths.is_local(path):
        return np.load(paths.local_path(path), mmap_mode="r", allow_pickle=False)
    with paths.open_input(path) as file:
        return np.load(file, allow_pickle=False)


def _named(
    path: str, arrays: Mapping[str, Any], meaning: str, axes: int, likely: tuple[str, ...], reading: Reading
) -> np.ndarray:
    """The array of a meaning: as the reading names it, by a likely name, or the only one of its shape."""
    name = reading.columns.get(meaning)
    shaped = [n for n, a in arrays.items() if a.ndim == axes]
    names = [name] if name else [n for n in likely if n in shaped] or shaped
    if (name and name not in arrays) or not names or (not name and len(names) > 1 and names == shaped):
        listed = ", ".join(f"{n} {a.dtype} {list(a.shape)}" for n, a in arrays.items())
        raise UnreadableFile(
            f"{path}: expected one array of {'ids [M]' if axes == 1 else 'vectors [M, W]'}"
            f"{f' called {name!r}' if name else ''}, found {listed or 'none'}; for example vista ingest --items {path} "
            f"--item-column {meaning}={shaped[0] if shaped else likely[0]}"
        )
    return np.asarray(arrays[names[0]])
