"""Addressed memory: a count sketch with time. The candidate reads its own buckets by its own keys.

A user's memory is ``total`` buckets x ``horizons`` masses. The buckets are ``rows`` hash rows of ``buckets``
each, then ``clusters`` buckets addressed by the item's cluster. An event adds 1 to its K = rows (+ 1) buckets
at every horizon, and every mass decays: by ``2 ** (-dt / half_life)`` with the time horizons, by ``2 **
(-events / half_life)`` with the count horizons. Updates are sums, so they are exact for any split and can be
merged; in time horizons they do not depend on the order of events of one timestamp.

Masses are kept relative to the user's *last event* (its time, its number). Exponents are therefore never
positive, and timestamps of decades in milliseconds do no harm: differences are taken in int64 before anything
becomes a float.

Layout of one user, in floats: bucket after bucket, the horizons of a bucket side by side; then zeros up to
``tokens`` x D. Served with the 8-bit ``log8`` codec, kept in float32.

Unknown items (absent from the fitted clusters) take the cluster ``hash(item) mod clusters``: some cluster,
always the same one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from vista.config import ModelConfig
from vista.data.events import Events
from vista.embedding.catalogue_column import ItemTable
from vista.errors import DataError
from vista.jagged import owners_of
from vista.ops.hashing import bucket_numpy, bucket_torch, buckets_torch

_ROW_SALT = 0x510
_CLUSTER_SALT = 0xC105
_MS_PER_DAY = 86_400_000.0
_EVENTS_PER_BLOCK = 1 << 19
_LEAST_MASS = 2.0**-12
"""Just below the least mass that log8 tells from zero."""


@dataclass(slots=True)
class SlotState:
    """Masses of U users as of each one's last event.

    Attributes:
        mass: float32 [U, total, horizons].
        last_ms: int64 [U], time of the last event; meaningless where ``count`` is 0.
        count: int64 [U], events folded in.
    """

    mass: np.ndarray
    last_ms: np.ndarray
    count: np.ndarray

    @property
    def users(self) -> int:
        return len(self.count)


class SlotMemory(nn.Module):
    """The masses: update, merge, serve, read. Nothing here is learned; the fitted clusters are buffers."""

    decay_per_ms: torch.Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        s = config.slots
        self.width = config.width
        self.rows, self.buckets, self.clusters = s.rows, s.buckets, s.clusters
        self.half_lives_ms = np.array(s.half_lives_days, np.float64) * _MS_PER_DAY
        self.half_lives_events = np.array(s.half_lives_events, np.float64)
        self.horizons = s.horizons
        self.key_count = s.rows + (1 if s.clusters else 0)
        self.total = s.rows * s.buckets + s.clusters if s.enabled else 0
        self.tokens = -(-self.total * self.horizons // self.width)
        self.cluster_of = ItemTable((), torch.int32)
        decay = np.concatenate([1.0 / self.half_lives_ms, np.zeros(len(self.half_lives_events))])
        # per ms, float64: the exponent of a decade is then exact to 1e-13
        self.register_buffer("decay_per_ms", torch.from_numpy(decay), persistent=False)

    @property
    def features(self) -> int:
        """F, what :meth:`read` gives per candidate: K x horizons."""
        return self.key_count * self.horizons

    # --- keys

    def set_clusters(self, items: np.ndarray, cluster: np.ndarray) -> None:
        """Clusters of the catalogue (int64 [M], int [M]), from :func:`vista.stage1.clusters.fit_clusters` for one.

        Raises:
            DataError: a cluster outside [0, clusters), or an item twice.
        """
        cluster = np.asarray(cluster)
        if len(cluster) and (cluster.min() < 0 or cluster.max() >= self.clusters):
            raise DataError(
                f"item clusters: expected 0 to {self.clusters - 1} (slots.clusters), "
                f"found {cluster.min()} to {cluster.max()}; fit them with the same configuration"
            )
        self.cluster_of.set(items, cluster.astype(np.int32))

    def keys(self, item: torch.Tensor) -> torch.Tensor:
        """Buckets of each item, int64 [..., K], each in [0, total)."""
        found = buckets_torch(item, range(_ROW_SALT, _ROW_SALT + self.rows), self.buckets)
        found += torch.arange(self.rows, device=item.device) * self.buckets
        if self.clusters:
            row, known = self.cluster_of(item)
            cluster = bucket_torch(item, _CLUSTER_SALT, self.clusters)
            if len(self.cluster_of):
                cluster = torch.where(known, self.cluster_of.values[row].long(), cluster)
            found = torch.cat([found, cluster.unsqueeze(-1) + self.rows * self.buckets], -1)
        return found

    def _keys_numpy(self, item: np.ndarray) -> list[np.ndarray]:
        found = [bucket_numpy(item, _ROW_SALT + r, self.buckets) + r * self.buckets for r in range(self.rows)]
        if self.clusters:
            cluster = bucket_numpy(item, _CLUSTER_SALT, self.clusters)
            if len(self.cluster_of):
                ids = self.cluster_of.ids.cpu().numpy()
                row = np.minimum(np.searchsorted(ids, item), len(ids) - 1)
                cluster = np.where(ids[row] == item, self.cluster_of.values.cpu().numpy()[row], cluster)
            found.append(cluster + self.rows * self.buckets)
        return found

    # --- state

    def empty(self, users: int) -> SlotState:
        """State of ``users`` users without events."""
        mass = np.zeros((users, self.total, self.horizons), np.float32)
        return SlotState(mass, np.zeros(users, np.int64), np.zeros(users, np.int64))

    def decay(self, elapsed_ms: np.ndarray, later: np.ndarray) -> np.ndarray:
        """Factors float64 [..., horizons] of masses that are ``elapsed_ms`` and ``later`` events old."""
        by_time = np.exp2(-(np.asarray(elapsed_ms, np.float64)[..., None] / self.half_lives_ms))
        by_count = np.exp2(-(np.asarray(later, np.float64)[..., None] / self.half_lives_events))
        return np.concatenate([by_time, by_count], axis=-1)

    def update(self, state: SlotState, events: Events) -> SlotState:
        """State after ``events`` (U histories in contract order, none older than the state's last event).

        An event that is older than the user's last one counts as if it came with the last one: callers that
        must be exact detect late events before (``Summary.late``).
        """
        state = SlotState(state.mass.copy(), state.last_ms.copy(), state.count.copy())
        self.fold(state, events)
        return state

    def fold(self, state: SlotState, events: Events) -> None:
        """:meth:`update` in place: a state is 100 KB per user, and copies of a bucket of users add up."""
        lengths = events.lengths
        touched = lengths > 0
        last = state.last_ms.copy()
        ends = events.offsets[1:][touched] - 1
        newest = events.time[ends]
        last[touched] = np.where(state.count[touched] > 0, np.maximum(newest, state.last_ms[touched]), newest)
        old = np.flatnonzero(touched & (state.count > 0))
        factor = self.decay(last[old] - state.last_ms[old], lengths[old]).astype(np.float32)
        for u, by in zip(old.tolist(), factor, strict=True):
            state.mass[u] *= by
        state.last_ms[:] = last
        state.count += lengths
        self._add(state.mass, events, last)

    def _add(self, mass: np.ndarray, events: Events, last: np.ndarray) -> None:
        """Add the events' own masses, each decayed to its user's ``last``; in place."""
        size = self.total * self.horizons
        flat = mass.reshape(-1)
        # whole users per block, so that a user's sum never depends on its neighbours
        for a, b in _blocks(events.offsets, _EVENTS_PER_BLOCK):
            start, stop = int(events.offsets[a]), int(events.offsets[b])
            if start == stop:
                continue
            lengths = events.lengths[a:b]
            user = owners_of(lengths)
            elapsed = np.maximum(last[a:b][user] - events.time[start:stop], 0)
            later = events.offsets[a + 1 : b + 1][user] - 1 - np.arange(start, stop)
            weight = self.decay(elapsed, later)
            base = user * size
            keys = self._keys_numpy(events.item[start:stop])
            place = np.concatenate([base + key * self.horizons for key in keys])
            # sums in float64 over the buckets that occur, then one float32 addition each
            if len(place) * 4 < (b - a) * size // self.horizons:
                where, inverse = np.unique(place, return_inverse=True)
            else:
                where, inverse = None, place // self.horizons
            for h in range(self.horizons):
                repeated = np.tile(weight[:, h], len(keys))
                if where is None:
                    cells = (b - a) * self.total
                    added = np.bincount(inverse, repeated, minlength=cells)
                    flat[a * size + h : b * size : self.horizons] += added.astype(np.float32)
                else:
                    added = np.bincount(inverse, repeated, minlength=len(where))
                    flat[a * size + where + h] += added.astype(np.float32)

    def merge(self, older: SlotState, newer: SlotState) -> SlotState:
        """State of the events of ``older`` followed by those of ``newer`` (U users each)."""
        some = newer.count > 0
        last = np.where(some, newer.last_ms, older.last_ms)
        last = np.where(some & (older.count > 0), np.maximum(newer.last_ms, older.last_ms), last)
        mass = newer.mass.copy()
        back = older.count > 0
        factor = self.decay(last[back] - older.last_ms[back], newer.count[back])
        mass[back] += older.mass[back] * factor[:, None, :].astype(np.float32)
        return SlotState(mass, last, older.count + newer.count)

    # --- served form

    def serve(self, state: SlotState) -> np.ndarray:
        """Masses at each user's last event as tokens, float32 [U, tokens, D]; the tail is zero.

        Shares memory with ``state`` where nothing has to be padded.
        """
        if self.total * self.horizons == self.tokens * self.width:
            return state.mass.reshape(state.users, self.tokens, self.width)
        out = np.zeros((state.users, self.tokens * self.width), np.float32)
        out[:, : self.total * self.horizons] = state.mass.reshape(state.users, self.total * self.horizons)
        return out.reshape(state.users, self.tokens, self.width)

    def read(
        self, slots: torch.Tensor, elapsed_ms: torch.Tensor, user_of: torch.Tensor, item: torch.Tensor
    ) -> torch.Tensor:
        """What each candidate finds under its own keys.

        Args:
            slots: [U, tokens, D], as served.
            elapsed_ms: [U], from the user's last summarised event to now (negative counts as 0).
            user_of: int64 [B], row of each candidate's user.
            item: int64 [B].

        Returns:
            float32 [B, F], F = K x horizons: masses >= 0 aged to now, key-major. Count horizons do not age:
            events after the summary are not in it.
        """
        size = self.total * self.horizons
        cells = slots.flatten(1)[:, :size].unflatten(1, (self.total, self.horizons))
        found = cells[user_of.unsqueeze(-1), self.keys(item)].float()
        elapsed = elapsed_ms.clamp(min=0).to(torch.float64)
        aged = torch.exp2(-(elapsed.unsqueeze(-1) * self.decay_per_ms)).float()
        return (found * aged[user_of].unsqueeze(1)).flatten(1)


def recency(mass: torch.Tensor) -> torch.Tensor:
    """How lately, by what each horizon kept of the first one's mass, [..., horizons] -> [..., horizons - 1].

    1 is just now; it falls by 1/12 per half-life to 0, which also stands for never. A logarithm: old masses
    are tiny, but their ratios still tell the age, as far as the 8-bit codes reach.
    """
    first = mass[..., :1]
    left = (mass[..., 1:] / first.clamp_min(_LEAST_MASS)).clamp(_LEAST_MASS, 1.0)
    return (1 + left.log2() / 12) * (first > 0)


def _blocks(offsets: np.ndarray, limit: int) -> list[tuple[int, int]]:
    """Runs of whole users with at most ``limit`` events each (a larger user is a run of its own)."""
    runs, a, users = [], 0, len(offsets) - 1
    while a < users:
        b = int(np.searchsorted(offsets, offsets[a] + limit, side="right")) - 1
        b = min(max(b, a + 1), users)
        runs.append((a, b))
        a = b
    return runs
