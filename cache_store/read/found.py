"""What a lookup gives: tokens as NumPy arrays with their facts, and the same for Arrow and pandas."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache_store.errors import SchemaError
from cache_store.format import shown
from cache_store.format.record import RecordSchema, Table

if TYPE_CHECKING:
    import pandas
    import pyarrow


class Status(IntEnum):
    """What a row of a lookup is.

    FRESH: as published and within the age limit. STALE: as published, older than the age limit. MISSING: the store
    has no such user. CORRUPT: the record fails a check; its tokens are those of a missing user.
    """

    FRESH = 0
    STALE = 1
    MISSING = 2
    CORRUPT = 3


class Heaviest(NamedTuple):
    """What B users did, heaviest first.

    Attributes:
        items: int64 [B, n], ids; -1 where there is none.
        log_mass: float32 [B, n], log of how many events an item stands for, by recency; -inf where there is none.
        masses: float32 [B, n, H], by horizon.
    """

    items: NDArray[np.int64]
    log_mass: NDArray[np.float32]
    masses: NDArray[np.float32]


def heaviest(keys: NDArray[np.int64], masses: NDArray[np.float32], deciding: int, count: int) -> Heaviest:
    """The ``count`` heaviest entries of each row by one horizon, of equal ones the first (int64 [B, E], [B, E, H])."""
    weight, entries = masses[..., deciding], keys.shape[1]
    n = min(count, entries)
    # bits of floats that are not negative are in their order; the place below makes all of them different
    key = np.ascontiguousarray(weight).view(np.int32).astype(np.int64) << 24
    key += entries - np.arange(entries)
    if n < entries:
        top = np.argpartition(key, entries - n, axis=1)[:, entries - n :]
        top = np.take_along_axis(top, np.argsort(np.take_along_axis(key, top, 1), axis=1)[:, ::-1], 1)
    else:
        top = np.argsort(key, axis=1)[:, ::-1]
    chosen = np.take_along_axis(masses, top[..., None], 1)
    there = chosen[..., deciding] > 0
    with np.errstate(divide="ignore"):
        log_mass = np.log(chosen[..., deciding])
    return Heaviest(np.where(there, np.take_along_axis(keys, top, 1), -1), log_mass, chosen)


class HeaderFacts(NamedTuple):
    """What the headers of B records say, in the caller's order; as in :class:`Lookup`."""

    status: NDArray[np.uint8]
    event_count: NDArray[np.int64]
    last_event_ms: NDArray[np.int64]
    summarized_ms: NDArray[np.int64]


@dataclass(frozen=True, repr=False)
class Lookup(shown.Shown):
    """What a lookup of B users gives, in the caller's order.

    Attributes:
        tokens: float32 [B, S, D].
        status: uint8 [B], values of :class:`Status`.
        event_count: int64 [B]; 0 where missing or corrupt, as the two times.
        last_event_ms: int64 [B], time of the last event that the summary has seen.
        summarized_ms: int64 [B].
        generation: name of the newest generation of the chain that was read; "" where none was old enough for an
            as-of read; object [B] of such names where each row has a time of its own.
        users: int64 [B] or object [B] of str, as asked for.
        schema: of the records.
    """

    tokens: NDArray[np.float32]
    status: NDArray[np.uint8]
    event_count: NDArray[np.int64]
    last_event_ms: NDArray[np.int64]
    summarized_ms: NDArray[np.int64]
    generation: str | np.ndarray
    users: np.ndarray
    schema: RecordSchema

    @property
    def groups(self) -> dict[str, np.ndarray]:
        """Groups of tokens by name, float32 [B, S_g, D], views; those of codec ``int64`` as the numbers they hold,
        int64 [B, n], copied."""
        keys = {t.keys: t.entries for t in self.schema.tables if t.keys}
        numbers = {t.numbers: t.entries for t in self.schema.tables if t.numbers}
        found: dict[str, np.ndarray] = {}
        for group in self.schema.groups:
            rows = self.tokens[:, self.schema.slices[group.name]]
            if group.codec == "int64":
                flat = rows.reshape(len(rows), -1)
                places = flat.shape[1] // 2
                rows = np.ascontiguousarray(flat[:, : 2 * places]).view(np.int64)
                rows = rows[:, : keys.get(group.name, places)]
                if group.name in numbers:
                    rows = rows.view(np.uint16)[:, : numbers[group.name]].astype(np.int64)
            found[group.name] = rows
        return found

    def masses(self, table: Table) -> NDArray[np.float32]:
        """Masses of a table of ``schema.tables``, float32 [B, entries, H]; 0 is no entry. Where only some clusters are
        told, entry n is cluster ``groups[table.numbers][:, n]``."""
        flat = self.tokens[:, self.schema.slices[table.masses]].reshape(len(self.tokens), -1)
        return flat[:, : table.entries * table.horizons].reshape(-1, table.entries, table.horizons)

    def heaviest(self, count: int) -> Heaviest:
        """The ``count`` items (or all that a record holds) that weigh most with each user, of equal ones the first.

        Raises:
            SchemaError: the records have no table of items.
        """
        table = next((t for t in self.schema.tables if t.keys), None)
        if table is None:
            raise SchemaError(
                f"heaviest: expected records with a table of items, found groups {list(self.schema.slices)}; run "
                f"`vista train` and `vista summarize` with this version"
            )
        return heaviest(self.groups[table.keys], self.masses(table), table.deciding, count)

    def to_arrow(self) -> pyarrow.RecordBatch:
        """All of it as one record batch (docs/serve-protocol.md); needs ``pyarrow``. Polars reads it by ``from_arrow``.

        Raises:
            MissingExtra
        """
        from cache_store.read.columns import of_groups

        return of_groups(self)

    def to_pandas(self) -> pandas.DataFrame:
        """A row a user, with its id as index and a column for each group; needs ``pandas``.

        Raises:
            MissingExtra
        """
        from cache_store.read.columns import frame

        return frame(self, [s.name for s in Status])

    def _shown(self) -> dict[str, object]:
        counts = np.bincount(self.status, minlength=len(Status)).tolist()
        name = self.generation if isinstance(self.generation, str) else "by row"
        told = ", ".join(f"{n:,} {s.name}" for s, n in zip(Status, counts, strict=False) if n)
        return {
            "users": f"{len(self.status):,}",
            "": told or "none",
            "tokens": " x ".join(map(str, self.tokens.shape)),
            "groups": ", ".join(self.schema.slices),
            "generation": name or "none",
        }


@dataclass(frozen=True)
class RawLookup:
    """Records as stored, for a device that decodes them itself.

    Attributes:
        rows: uint8 [B, row_bytes]; the record begins at byte 16 of a row, its fields at ``schema.dtype`` offsets
            from there. Rows that are neither FRESH nor STALE are zero.
        Others as in :class:`Lookup`.
    """

    rows: NDArray[np.uint8]
    status: NDArray[np.uint8]
    event_count: NDArray[np.int64]
    last_event_ms: NDArray[np.int64]
    summarized_ms: NDArray[np.int64]
    generation: str

    def decoded(self, tokens: NDArray[np.float32], users: np.ndarray, schema: RecordSchema) -> Lookup:
        """With the tokens of its records, float32 [B, S, D], of these users."""
        facts = (self.status, self.event_count, self.last_event_ms, self.summarized_ms)
        return Lookup(tokens, *facts, self.generation, users, schema)
