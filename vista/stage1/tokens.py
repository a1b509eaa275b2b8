"""Exact tokens: the items that matter most to a user and counters of all clusters, each with its masses.

Full attention over events whose keys are items uses nothing but how often each item came, by age: a sum over events is
a sum over distinct items with log counts. So that is kept, in tables (``tables``): the K items with the most
recency-weighted mass by their ids, and every cluster of the catalogue. Every event reaches its cluster's counter, so
what is dropped from the items is not lost.

One record, two ways to read it. *Addressed*: a candidate finds its own entry and its cluster's. *As a sequence*: the
heaviest items, then the clusters with what no item of the sequence stands for, as tokens ``[S, D]`` with masses; the
vectors come from whoever reads, here from the model's item encoder and a vector per cluster.

In a record, by groups of ``tokens`` x D places of four bytes (or one, in log8): ``items``, K ids ascending, each over
two places (codec ``int64``: bits, not numbers); ``masses``, K x H; ``last``, K x 3, each item's newest touch: how many
events ago (1 is the newest), how many hours before the user's newest event, and 2^(a - 11) for action a, the highest
of the event (0 for none; log8 holds powers of two exactly); ``clusters``, clusters x H; ``clusters_last``, clusters x
2, events and hours as in ``last``. Where a record tells only the heaviest clusters (``tokens.clusters_told``), the
group ``cluster_numbers`` says which, two bytes each, ascending. Unused entries have mass 0 and come last. Records until
version 0.2 have no newest touches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vista.config import ModelConfig
from vista.embedding.catalogue_column import ItemTable
from vista.embedding.encoders import ItemEncoder
from vista.errors import DataError
from vista.ops.hashing import bucket_numpy, bucket_torch
from vista.ops.upload import uploaded
from vista.stage1.tables import Entries, Tables
from vista.stage1.tables_torch import NO_KEY, TableRows, floats, heaviest

_CLUSTER_SALT = 0xC105
_UNKNOWN = -1e4
ITEMS, MASSES, LAST, CLUSTERS, CLUSTERS_LAST = "items", "masses", "last", "clusters", "clusters_last"
NUMBERS = "cluster_numbers"
BITS = (ITEMS, NUMBERS)
"""Groups that hold whole numbers, as bits."""
_FACTS = {ITEMS: 3, CLUSTERS: 2}
"""Number, second and, of items, action mask of an entry's newest event; as many places of a record."""
_NO_ACTION = 11


class Held(NamedTuple):
    """A record's exact tokens, read back.

    Attributes:
        item: int64 [U, K], ascending.
        mass: float32 [U, K, H], 0 where an entry is unused.
        cluster: float32 [U, clusters, H].
        last: float32 [U, K, 3], of the newest touch: events ago, hours before the user's newest event, and 2^(a - 11)
            for action a; [U, K, 0] in records that do not hold it.
        cluster_last: float32 [U, clusters, 2], the first two of these; 0 where nothing was touched.
    """

    item: Tensor
    mass: Tensor
    cluster: Tensor
    last: Tensor
    cluster_last: Tensor


class End(NamedTuple):
    """Where a history stands when its record is read.

    Attributes:
        events: int64 [U], how many so far.
        second: int64 [U], of the newest one.
    """

    events: np.ndarray
    second: np.ndarray


class Sequence(NamedTuple):
    """Tokens to attend to, heaviest first: items, then clusters.

    Attributes:
        vector: [U, S, D], unit length; 0 where nothing is known of a cluster.
        mass: float32 [U, S, H], 0 where there is no token.
        item: int64 [U, S_i], ids of the first S_i tokens.
        place: int64 [U, S - S_i], clusters of the others.
        last: float32 [U, S, 2], events and hours since each token's newest touch; [U, S, 0] where records do not tell.
    """

    vector: Tensor
    mass: Tensor
    item: Tensor
    place: Tensor
    last: Tensor


class ExactTokens(nn.Module):
    """Layout, keys and reading of exact tokens; and the two tables. The fitted clusters and who is near whom are
    buffers, the clusters' vectors (0 until fitted) are learned.

    Attributes:
        near: int64 [clusters, N], the clusters nearest to each, itself first; N = ``ranker.neighbours``.
        cosine: float32 [clusters, N], theirs; very negative where nothing is known of them.
    """

    near: Tensor
    cosine: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        t = config.tokens
        self.width, self.capacity, self.clusters, self.horizons = (
            config.width,
            t.items,
            t.clusters,
            t.horizons,
        )
        self.half_lives = t.half_lives_events
        self.sequence_items = min(t.sequence - t.places, t.items) if t.enabled else 0
        self.sequence_clusters = min(t.places, t.clusters) if t.enabled else 0
        chunk = config.summarizer.chunk or 256
        lives, self.facts = t.half_lives_events, {n: f * t.last for n, f in _FACTS.items()}
        self.item_table = Tables(t.items, lives, chunk, self.facts[ITEMS]) if t.enabled else None
        self.cluster_table = Tables(t.clusters, lives, chunk, self.facts[CLUSTERS]) if t.clusters else None
        self.told = t.told or t.clusters
        self.told_table = Tables(t.told, lives, chunk, self.facts[CLUSTERS]) if t.told else None
        self.deciding = self.item_table.horizons.deciding if self.item_table else 0
        self.cluster_of = ItemTable((), torch.int32)
        self._newer: tuple[ItemTable, ...] = ()  # in a tuple: no part of the model's weights
        counters = t.clusters if t.enabled else 0
        self.cluster_vectors = nn.Parameter(torch.zeros(counters, config.width))
        self.neighbours = min(config.ranker.neighbours, counters)
        if self.neighbours:
            self.register_buffer("near", torch.arange(counters)[:, None].repeat(1, self.neighbours))
            self.register_buffer("cosine", _alone(counters, self.neighbours))

    @property
    def enabled(self) -> bool:
        return self.item_table is not None

    @property
    def sequence_length(self) -> int:
        """S, tokens of :meth:`sequence`."""
        return self.sequence_items + self.sequence_clusters

    @property
    def rows(self) -> dict[str, int]:
        """Group name to its tokens, S_g."""
        places = {ITEMS: 2 * self.capacity, MASSES: self.capacity * self.horizons}
        places[LAST] = self.capacity * self.facts[ITEMS]
        places[NUMBERS] = -(-self.told // 2) if self.told_table else 0
        places[CLUSTERS] = self.told * self.horizons
        places[CLUSTERS_LAST] = self.told * self.facts[CLUSTERS]
        return {name: -(-n // self.width) for name, n in places.items() if n} if self.enabled else {}

    # --- clusters

    @torch.no_grad()
    def set_clusters(self, items: np.ndarray, cluster: np.ndarray, encoder: ItemEncoder) -> None:
        """Clusters of the catalogue (int64 [M], int [M]); their vectors start at the mean of their items'.

        Raises:
            DataError: a cluster outside [0, clusters), or an item twice.
        """
        cluster = np.asarray(cluster)
        if len(cluster) and (cluster.min() < 0 or cluster.max() >= self.clusters):
            raise DataError(
                f"item clusters: expected 0 to {self.clusters - 1} (tokens.clusters), "
                f"found {cluster.min()} to {cluster.max()}; fit them with the same configuration"
            )
        self.cluster_of.set(items, cluster.astype(np.int32))
        total = torch.zeros_like(self.cluster_vectors)
        for a in range(0, len(items), 1 << 16):
            part = torch.from_numpy(np.asarray(items[a : a + (1 << 16)], np.int64)).to(total.device)
            number = torch.from_numpy(cluster[a : a + (1 << 16)].astype(np.int64)).to(total.device)
            total.index_add_(0, number, encoder.vector(part))
        self.cluster_vectors.copy_(F.normalize(total, dim=-1))
        if self.neighbours:
            self._set_near()

    def _set_near(self) -> None:
        unit = self.cluster_vectors
        known = unit.abs().amax(1) > 0
        self.cosine.copy_(_alone(len(unit), self.neighbours))
        self.near.copy_(torch.arange(len(unit))[:, None])
        for a in range(0, len(unit), 512):
            block = torch.arange(a, min(a + 512, len(unit)), device=unit.device)
            cosine = (unit[block] @ unit.T).masked_fill(~known, _UNKNOWN)
            cosine[torch.arange(len(block)), block] = 2.0  # itself first, whatever rounding says
            value, place = cosine.topk(self.neighbours, dim=1)
            value[:, 0] = 1.0
            told = known[block, None]
            self.near[block] = torch.where(told, place, self.near[block])
            self.cosine[block] = torch.where(told, value, self.cosine[block])

    def set_newer(self, items: np.ndarray, cluster: np.ndarray) -> None:
        """Clusters that candidates read (int64 [M], int [M]) of items that came after training."""
        table = ItemTable((), torch.int32).to(self.cluster_vectors.device)
        table.set(items, cluster.astype(np.int32))
        self._newer = (table,)

    def cluster(self, item: Tensor) -> Tensor:
        """Cluster of each item, int64 [...]; an unknown item's is drawn by hash, always the same."""
        found = bucket_torch(item, _CLUSTER_SALT, self.clusters)
        if len(self.cluster_of):
            row, known = self.cluster_of(item)
            found = torch.where(known, self.cluster_of.values[row].long(), found)
        return found

    def candidate_cluster(self, item: Tensor, found: Tensor) -> Tensor:
        """The cluster whose counter a candidate reads, int64 [...]: that of :meth:`cluster` (``found``), which counted
        the events; for items that came after training the one they resemble (vista/new_items.py)."""
        for newer in self._newer:
            row, known = newer(item)
            found = torch.where(known, newer.values[row].long(), found)
        return found

    def cluster_numpy(self, item: np.ndarray) -> np.ndarray:
        """As :meth:`cluster`, by NumPy."""
        found = bucket_numpy(item, _CLUSTER_SALT, self.clusters)
        if len(self.cluster_of):
            ids = self.cluster_of.ids.cpu().numpy()
            row = np.minimum(np.searchsorted(ids, item), len(ids) - 1)
            found = np.where(ids[row] == item, self.cluster_of.values.cpu().numpy()[row], found)
        return found.astype(np.int64)

    # --- record

    def pack(self, items: Entries, clusters: Entries | None, end: End) -> dict[str, np.ndarray]:
        """Tables of U users as groups of a record, float32 [U, S_g, D]."""
        assert self.item_table is not None
        users, rows, h = items.users, self.rows, self.horizons
        owner = np.repeat(np.arange(users), np.diff(items.offsets))
        place = np.arange(len(items.key)) - items.offsets[owner]
        ids = np.zeros((users, rows[ITEMS] * self.width // 2), np.int64)
        ids[:, : self.capacity] = NO_KEY
        ids[owner, place] = items.key

        def laid(name: str, values: np.ndarray) -> np.ndarray:
            cells = np.zeros((users, self.capacity, values.shape[1]), np.float32)
            cells[owner, place] = values
            found = np.zeros((users, rows[name] * self.width), np.float32)
            found[:, : self.capacity * values.shape[1]] = cells.reshape(
                users, cells.shape[1] * cells.shape[2]
            )
            return found.reshape(users, rows[name], self.width)

        out = {
            ITEMS: ids.view(np.float32).reshape(users, rows[ITEMS], self.width),
            MASSES: laid(MASSES, self.item_table.horizons.floats(items.mass[:h])),
        }
        if self.facts[ITEMS]:
            number, second, action = items.mass[h:]
            ago = [end.events[owner] - number, (end.second[owner] - second) / 3_600, _action_code(action)]
            out[LAST] = laid(LAST, np.stack(ago, 1).astype(np.float32))
        if clusters is not None:
            assert self.cluster_table is not None
            clusters = self.told_table.heaviest(clusters) if self.told_table else clusters
            counters = np.zeros((users, rows[CLUSTERS] * self.width), np.float32)
            owner, at = np.repeat(np.arange(users), np.diff(clusters.offsets)), clusters.key
            if self.told_table:
                at = np.arange(len(owner)) - clusters.offsets[owner]
                numbers = np.zeros((users, 2 * rows[NUMBERS] * self.width), np.uint16)
                numbers[owner, at] = clusters.key
                out[NUMBERS] = numbers.view(np.float32).reshape(users, rows[NUMBERS], self.width)
            found = self.cluster_table.horizons.floats(clusters.mass[:h])
            for k in range(h):
                counters[owner, at * h + k] = found[:, k]
            out[CLUSTERS] = counters.reshape(users, rows[CLUSTERS], self.width)
            if self.facts[CLUSTERS]:
                number, second = clusters.mass[h:]
                last = np.zeros((users, rows[CLUSTERS_LAST] * self.width), np.float32)
                last[owner, 2 * at] = end.events[owner] - number
                last[owner, 2 * at + 1] = (end.second[owner] - second) / 3_600
                out[CLUSTERS_LAST] = last.reshape(users, rows[CLUSTERS_LAST], self.width)
        return out

    def pack_rows(self, items: TableRows, clusters: TableRows | None, end: End) -> dict[str, Tensor]:
        """As :meth:`pack`, of tables on a device and there."""
        assert self.item_table is not None
        # divided by a tensor: a device multiplies by the reciprocal of a number, which rounds otherwise
        newest, second, codes, hour = uploaded(
            [end.events[:, None], end.second[:, None], _action_code(1 << np.arange(31)), np.array([3_600.0])],
            items.key.device,
        )

        def last(rows: TableRows) -> Tensor:
            """[U, K * F]: what is told of the newest event of each entry, 0 where there is none."""
            number, when, *action = rows.mass[self.horizons : -1]
            ago = [(newest - number).double(), (second - when).double() / hour]
            for mask in action:
                top = torch.frexp(mask.double())[1].long() - 1  # -1 for none
                ago.append(codes[top.clamp_min(0)] * (top >= 0))
            return torch.where((rows.mass[-1] > 0)[..., None], torch.stack(ago, -1), 0.0).float().flatten(1)

        found = {ITEMS: items.key.masked_fill(items.mass[-1] == 0, NO_KEY).view(torch.float32)}
        found[MASSES] = floats(self.item_table.horizons, items).flatten(1)
        if self.facts[ITEMS]:
            found[LAST] = last(items)
        if clusters is not None:
            assert self.cluster_table is not None
            if self.told_table:
                clusters = heaviest(self.told_table.horizons, clusters, self.told)
                number = clusters.key * clusters.mass[-1]
                bits = F.pad(number - 65_536 * (number > 32_767), (0, self.told % 2)).to(torch.int16)
                found[NUMBERS] = bits.view(torch.float32)
            found[CLUSTERS] = floats(self.cluster_table.horizons, clusters).flatten(1)
            if self.facts[CLUSTERS]:
                found[CLUSTERS_LAST] = last(clusters)
        shapes = {name: (rows, self.width) for name, rows in self.rows.items()}
        return {
            name: F.pad(found[name], (0, math.prod(shape) - found[name].shape[1])).unflatten(1, shape)
            for name, shape in shapes.items()
        }

    def unpack(self, addressed: Tensor) -> Held:
        """Inverse of :meth:`pack`: the groups side by side, float32 [U, sum of S_g, D]."""
        users, sizes = len(addressed), self.rows
        parts = {
            name: part.flatten(1)
            for name, part in zip(sizes, addressed.split([*sizes.values()], 1), strict=True)
        }
        ids = parts[ITEMS].contiguous().view(torch.int64)[:, : self.capacity]

        def of(name: str, entries: int, columns: int) -> Tensor:
            found = parts[name] if name in parts else addressed.new_zeros(users, 0)
            return found[:, : entries * columns].reshape(users, entries, columns)

        counters = [
            of(CLUSTERS, self.told, self.horizons),
            of(CLUSTERS_LAST, self.told, self.facts[CLUSTERS]),
        ]
        if self.told_table:
            number = parts[NUMBERS].contiguous().view(torch.int16)[:, : self.told, None].long() & 0xFFFF
            number = number.clamp_max(self.clusters - 1)  # whatever a record says, no other memory is written
            # unused entries are zeros of cluster 0: nothing is added to it
            counters = [
                x.new_zeros(users, self.clusters, x.shape[2]).scatter_add_(1, number.expand_as(x), x)
                for x in counters
            ]
        return Held(
            ids.contiguous(),
            of(MASSES, self.capacity, self.horizons),
            counters[0],
            of(LAST, self.capacity, self.facts[ITEMS]),
            counters[1],
        )

    # --- reading

    def sequence(self, held: Held, vectors: Callable[[Tensor], Tensor], ages: bool = True) -> Sequence:
        """The heaviest items of each user, and the clusters with most of what these do not stand for.

        Args:
            vectors: of items int64 [U, S_i], unit length [U, S_i, D]; ``ItemEncoder.vector``.
            ages: also tell how old each is; else ``last`` is empty.
        """

        def picked(values: Tensor, at: Tensor) -> Tensor:
            return values.gather(1, at[..., None].expand(-1, -1, values.shape[2]))

        order = _heaviest(held.mass[..., self.deciding], self.sequence_items)
        item, mass = held.item.gather(1, order), picked(held.mass, order)
        top = order[:, :0]
        last = [picked(held.last[..., : self.facts[CLUSTERS]], order)] if ages else []
        vector = vectors(item) * (mass.amax(-1, keepdim=True) > 0)
        if self.sequence_clusters:
            number = self.cluster(item)[..., None].expand(-1, -1, self.horizons)
            rest = held.cluster.scatter_add(1, number, -mass)
            # what rounding to a byte leaves of a cluster whose items are all told is nothing; zeros have one sign
            rest = rest * (rest > 0.1 * held.cluster) + 0.0
            top = _heaviest(rest[..., self.deciding], self.sequence_clusters)
            centres = F.normalize(F.embedding(top, self.cluster_vectors), dim=-1)
            vector, mass = torch.cat([vector, centres], 1), torch.cat([mass, picked(rest, top)], 1)
            last += [picked(held.cluster_last, top)] if ages else []
        told = torch.cat(last, 1) if ages else mass.new_zeros(*mass.shape[:2], 0)
        return Sequence(vector, mass, item, top, told)


def _alone(clusters: int, neighbours: int) -> Tensor:
    """Cosines of clusters that know none but themselves."""
    return torch.tensor([1.0] + [_UNKNOWN] * (neighbours - 1)).repeat(clusters, 1)


def _action_code(action: np.ndarray) -> np.ndarray:
    """2^(a - 11) for the highest action a of each mask int64 [n], 0 for none: float64 [n]."""
    exponent = np.frexp(action.astype(np.float64))[1]  # of masks below 2^53 exactly
    return np.where(action > 0, np.exp2(exponent - 1.0 - _NO_ACTION), 0.0)


def action_of(code: Tensor) -> Tensor:
    """Number of the action of each code float32 [...] of a record, int64 [...]; -1 for none."""
    return torch.where(code > 0, torch.log2(code).round().long() + _NO_ACTION, -1)


def _heaviest(mass: Tensor, count: int) -> Tensor:
    """Places of the ``count`` largest of each row, int64 [U, count], largest first, of equal ones the first: the same
    on every device. Masses [U, E] are 0 or more."""
    # the bits of such floats are in their order; what is left of an integer makes all of them different
    place = torch.arange(mass.shape[1], device=mass.device)
    key = mass.contiguous().float().view(torch.int32).long().bitwise_left_shift_(24).sub_(place)
    return key.topk(count, dim=1)[1]
