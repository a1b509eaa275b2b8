"""A record's tables as a sequence to attend to: ``[B, S, D]`` with a log mass ``[B, S]``, heaviest first.

    vectors = ItemVectors.read("my-home/model/vectors.npz")       # or .of(ids, your own vectors, ...)
    found = feature(users)
    seen = found.sequence(vectors, tokens=128, places=64)         # seen.tokens, seen.log_mass, seen.items

A table says *what* a user touched and how much of it there is; the vectors are the reader's. Items come first; then
*places*, the clusters of the catalogue, with what no item of the sequence stands for. The softmax that reads them is
``scaled_dot_product_attention`` with the log mass as its mask, or ``vista.ops.weighted_attention``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from cache_store.errors import SchemaError, StoreError
from cache_store.format.record import RecordSchema, Table


@dataclass(frozen=True)
class TokenSequence:
    """What B users did, as at most S tokens each.

    Attributes:
        tokens: [B, S, D], unit vectors; zeros where there is no token.
        log_mass: float32 [B, S], log of how many events a token stands for, weighed by recency; -inf for no token.
        masses: float32 [B, S, H], by horizon.
        items: int64 [B, S_i], ids of the first S_i tokens; some number where there is none (masses of 0).
        places: int64 [B, S - S_i], cluster numbers of the others; the same.
        last: with ``ages=True``, float32 [B, S, 2], of each token's newest touch: how many events ago (1 is the user's
            newest event), and how many hours before that event, which was at ``TokenBatch.last_event_ms``. It means
            nothing where there is no token. Else None.
    """

    tokens: Tensor
    log_mass: Tensor
    masses: Tensor
    items: Tensor
    places: Tensor
    last: Tensor | None = None


class ItemVectors(nn.Module):
    """A table of items: ids, unit vectors, and which cluster each is in. Nothing here is learned.

    ``my-home/model/vectors.npz`` is the bundle's (:meth:`read`), :meth:`with_vectors` puts your own in its place, and
    without a bundle it is ``ItemVectors(ids, vectors, np.full(len(ids), -1), np.zeros((0, D)))``, for ``places=0``.
    A module: ``.to(device)`` as the feature.

    Attributes:
        ids: int64 [M], ascending.
        vectors: float32 [M, D].
        cluster: int64 [M], -1 in none.
        places: float32 [clusters, D], a vector for each cluster.
    """

    ids: Tensor
    vectors: Tensor
    cluster: Tensor
    places: Tensor

    def __init__(self, ids: np.ndarray, vectors: np.ndarray, cluster: np.ndarray, places: np.ndarray) -> None:
        super().__init__()
        ids, vectors = _checked(ids, vectors)
        order = np.argsort(ids, kind="stable")
        if cluster.shape != ids.shape or places.ndim != 2 or places.shape[1] != vectors.shape[1]:
            raise StoreError(
                f"item vectors: expected a cluster for each of {len(ids)} ids and places [clusters, "
                f"{vectors.shape[1]}], found {list(cluster.shape)} and {list(places.shape)}"
            )
        self.register_buffer("ids", torch.from_numpy(ids[order]))
        self.register_buffer("vectors", torch.from_numpy(_unit(vectors)[order]))
        self.register_buffer("cluster", torch.from_numpy(np.asarray(cluster, np.int64)[order]))
        self.register_buffer("places", torch.from_numpy(_unit(places)))

    @staticmethod
    def read(path: str | Path) -> ItemVectors:
        """The file that a bundle publishes: arrays ``ids``, ``vectors``, ``cluster``, ``places``.

        Raises:
            StoreError: no such file, or one without these arrays.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return ItemVectors(file["ids"], file["vectors"], file["cluster"], file["places"])
        except (OSError, KeyError, ValueError, TypeError, AttributeError, BadZipFile) as error:
            raise StoreError(
                f"{path}: expected arrays ids, vectors, cluster and places, found {error}; "
                "run `vista train` with this version, it writes them into the bundle"
            ) from error

    def with_vectors(self, ids: np.ndarray, vectors: np.ndarray) -> ItemVectors:
        """The same clusters with vectors of your own (int64 [M], float32 [M, D']): a cluster has its items' mean.

        Raises:
            StoreError: other shapes, ids that are no whole numbers, or an id twice.
        """
        ids, vectors = _checked(ids, vectors)
        known = self.ids.cpu().numpy()
        row = np.minimum(np.searchsorted(known, ids), max(len(known) - 1, 0))
        there = known[row] == ids if len(known) else np.zeros(len(ids), bool)
        cluster = np.where(there, self.cluster.cpu().numpy()[row] if len(known) else -1, -1)
        places = np.zeros((len(self.places), vectors.shape[1]), np.float32)
        np.add.at(places, cluster[cluster >= 0], _unit(vectors)[cluster >= 0])
        return ItemVectors(ids, vectors, cluster, places)

    def row(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Row of each id and whether it is known, int64 and bool [...]."""
        if not len(self.ids):
            return torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        row = torch.searchsorted(self.ids, ids.contiguous()).clamp_(max=len(self.ids) - 1)
        return row, self.ids[row] == ids

    def cluster_of(self, ids: Tensor) -> Tensor:
        """Cluster of each id, int64 [...]; -1 for none and for what is not in the table."""
        row, known = self.row(ids)
        return torch.where(known, self.cluster[row], -1) if len(self.ids) else row - 1

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors [..., D] of ids int64 [...]; zeros for what is not in the table."""
        if not len(self.ids):
            return self.vectors.new_zeros(*ids.shape, self.vectors.shape[1])
        row, known = self.row(ids)
        return self.vectors[row] * known[..., None]


def sequence(
    schema: RecordSchema,
    groups: dict[str, Tensor],
    numbers: dict[str, Tensor],
    mask: Tensor,
    vectors: ItemVectors,
    tokens: int,
    places: int | None,
    ages: bool,
) -> TokenSequence:
    """See :meth:`cache_store.torch.feature.TokenBatch.sequence`."""
    items, counters = _tables(schema, groups)
    places = tokens // 4 if places is None else places
    if not 0 <= places <= tokens or tokens == 0:
        raise SchemaError(
            f"sequence: expected 1 token or more and 0 to as many places, found tokens={tokens} and places={places}"
        )
    entries = min(items.entries, tokens - places)
    mass = _masses(groups[items.masses], items) * mask[:, None, None]
    top = heaviest(mass[..., items.deciding], entries)
    item = numbers[items.keys][:, : items.entries].gather(1, top)
    mass = _picked(mass, top)
    found, all_masses = vectors(item), mass
    last = [_picked(_last(items, groups), top)] if ages else []
    place = item[:, :0]
    if places:
        if counters is None:
            raise SchemaError(
                "sequence: expected a table of clusters for places, found none; ask for places=0"
            )
        total = counters_of(counters, groups, numbers) * mask[:, None, None]
        number = vectors.cluster_of(item)[..., None]
        told = (mass * (number >= 0)).neg()
        rest = total.scatter_add(1, number.clamp_min(0).expand_as(told), told)
        # masses are rounded to a byte: what is left of a cluster that is told whole is nothing
        rest = torch.where(rest > 0.1 * total, rest, 0.0)
        place = heaviest(rest[..., counters.deciding], min(places, total.shape[1]))
        more = _picked(rest, place)
        if len(vectors.places) < total.shape[1]:
            raise SchemaError(
                f"sequence: expected vectors of {total.shape[1]} clusters, found {len(vectors.places)}; read the "
                "item vectors of the bundle that made the store"
            )
        found, all_masses = torch.cat([found, vectors.places[place]], 1), torch.cat([mass, more], 1)
        last += [_picked(_spread(counters, _last(counters, groups), numbers), place)] if ages else []
    log_mass = all_masses[..., items.deciding].log()
    # of an item that the reader does not know there is nothing to match
    log_mass = log_mass.masked_fill(found.abs().amax(-1) == 0, -torch.inf)
    newest = torch.cat(last, 1) * mask[:, None, None] if ages else None
    return TokenSequence(found, log_mass, all_masses, item, place, newest)


def heaviest(mass: Tensor, count: int) -> Tensor:
    """Places of the ``count`` largest masses of each row [B, E], largest first, of equal ones the first: int64
    [B, count], the same on every device. Masses are 0 or more."""
    place = torch.arange(mass.shape[1], device=mass.device)
    # bits of such floats are in their order; the lower part of the integer makes all of them different
    key = (mass.float().contiguous().view(torch.int32).long() << 24) + (mass.shape[1] - place)
    return key.topk(count, dim=1)[1]


def _tables(schema: RecordSchema, groups: dict[str, Tensor]) -> tuple[Table, Table | None]:
    there = [
        t for t in schema.tables if {t.masses, t.keys or t.masses, t.numbers or t.masses} <= groups.keys()
    ]
    items = next((t for t in there if t.keys), None)
    if items is None:
        raise SchemaError(
            f"sequence: expected records with a table of items, found groups {list(groups)} of "
            f"{[g.name for g in schema.groups]}; look all groups up, or run `vista train` and `vista summarize` with "
            "this version"
        )
    return items, next((t for t in there if not t.keys), None)


def counters_of(table: Table, groups: dict[str, Tensor], numbers: dict[str, Tensor]) -> Tensor:
    """Masses of every cluster, [B, clusters, H], of a table of ``schema.tables`` that has no keys; 0 for those that a
    record does not tell.

    Args:
        groups, numbers: as in :class:`cache_store.torch.feature.TokenBatch`.
    """
    return _spread(table, _masses(groups[table.masses], table), numbers)


def whole_numbers(schema: RecordSchema, name: str, rows: Tensor) -> Tensor:
    """What a group of codec ``int64`` holds, int64 [B, n]: item ids, or of a table's ``numbers`` which cluster each
    entry is.

    Args:
        rows: float32 [B, T, D] as looked up, or the whole numbers int64 [B, ceil(T * D / 2)].
    """
    bits = rows.flatten(1)
    if bits.dtype != torch.int64:
        bits = bits[:, : bits.shape[1] // 2 * 2].contiguous().view(torch.int64)
    for table in schema.tables:
        if table.numbers == name:  # four to a number
            return bits.contiguous().view(torch.int16)[:, : table.entries].long() & 0xFFFF
    return bits


def _masses(group: Tensor, table: Table, columns: int | None = None) -> Tensor:
    """[B, entries, H] of a group's rows [B, T, D]; or so many columns."""
    columns = columns or table.horizons
    return torch.unflatten(
        group.flatten(1)[:, : table.entries * columns], 1, (table.entries, columns)
    ).float()


def _last(table: Table, groups: dict[str, Tensor]) -> Tensor:
    """Events and hours since the newest touch of each entry, [B, entries, 2]."""
    name, columns = ("last", 3) if table.keys else (f"{table.masses}_last", 2)  # of items also the action
    if name not in groups:
        raise SchemaError(
            f"sequence: expected a group {name} for ages=True, found {list(groups)}; leave ages out, or run "
            "`vista train` and `vista summarize` with this version"
        )
    return _masses(groups[name], table, columns)[..., :2]


def _spread(table: Table, told: Tensor, numbers: dict[str, Tensor]) -> Tensor:
    """Of every cluster [B, clusters, n], from what is told of the table's entries."""
    if not table.numbers:
        return told
    # unused entries are zeros of cluster 0: nothing is added to it
    room = told.new_zeros(len(told), table.of, told.shape[2])
    return room.scatter_add_(1, numbers[table.numbers][..., None].expand_as(told), told)


def _picked(values: Tensor, at: Tensor) -> Tensor:
    """Rows ``at`` [B, n] of [B, E, m]: [B, n, m]."""
    return values.gather(1, at[..., None].expand(-1, -1, values.shape[2]))


def _checked(ids: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ids, vectors = np.asarray(ids), np.asarray(vectors)
    if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu") or vectors.shape[:-1] != ids.shape:
        raise StoreError(
            f"item vectors: expected ids int64 [M] and vectors float32 [M, D], found {ids.dtype} {list(ids.shape)} and "
            f"{vectors.dtype} {list(vectors.shape)}; ids of texts: "
            'vista.bundle.load("my-home/model").encode(items=[...])["item"]'
        )
    if len(np.unique(ids)) < len(ids):
        raise StoreError(
            f"item vectors: expected every id once, found {len(np.unique(ids))} of {len(ids)} distinct"
        )
    return ids.astype(np.int64), vectors


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float32)
    unit: np.ndarray = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return unit
