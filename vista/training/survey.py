"""What one streaming pass over the histories tells before training: items, when to split, how items cluster.

Popularity and clusters come from the training period alone, so the held-out period stays unseen; the list of
items covers both, because the index has to offer every one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import xxhash

from vista import bundle
from vista.data.events import Events
from vista.data.tables.items import ItemCounts
from vista.errors import DataError
from vista.stage1.clusters import fit_clusters
from vista.training.examples import PopularItems
from vista.training.loader import Source

if TYPE_CHECKING:
    from vista.model import VistaModel


@dataclass(frozen=True)
class Catalogue:
    """Items of the histories, and the time at which the held-out period begins.

    Attributes:
        item: int64 [I], ascending.
        surface: int32 [I], where most of an item's events happened.
        events: int64 [I], in both periods.
        rows: (item, surface, events) arrays of the training period, one row per (item, surface).
        split_ms: slates at or after it are held out; None holds nothing out.
        sample: histories of the training period for fitting clusters, at most ``sample_events`` events.
        users, total: counts of users and events.
    """

    item: np.ndarray
    surface: np.ndarray
    events: np.ndarray
    rows: tuple[np.ndarray, np.ndarray, np.ndarray]
    split_ms: int | None
    sample: Events
    users: int
    total: int

    def popular(self) -> PopularItems:
        """Sampler of negatives by popularity within the surface, of the training period."""
        item, surface, count = self.rows
        return PopularItems(item, surface, count)

    def table(self, names: dict[int, str | None] | None = None) -> pa.Table:
        """The bundle's catalogue."""
        found = [str((names or {}).get(i) or i) for i in self.item.tolist()]
        return bundle.items_table(self.item, self.surface, self.events, found)

    def digest(self) -> str:
        """32 hex digits: same items, counts and split."""
        digest = xxhash.xxh3_128(str((self.split_ms, self.users, self.total)).encode())
        for column in (self.item, self.surface, self.events):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def fit(self, model: VistaModel) -> None:
        """What a model takes from a look at the histories before training: its slots the clusters of items that
        are used together, its seeds (of kind ``places``) where the items are.

        Histories too short to tell leave clusters by hash, which is what unknown items get anyway.
        """
        if not len(self.sample):
            return
        model.summarizer.start(self.sample)
        if not model.config.slots.enabled or not model.config.slots.clusters:
            return
        try:
            items, cluster = fit_clusters(self.sample, model.config.slots.clusters, seed=model.config.seed)
        except DataError:
            return
        model.slots.set_clusters(items, cluster)


def survey(
    source: Source,
    held_out: float,
    seed: int = 0,
    split_ms: int | None = None,
    sample_events: int = 2_000_000,
    sample_user: int = 4_096,
) -> Catalogue:
    """One or two passes over ``source``: the time split first (where asked for), then counts and a sample.

    Args:
        held_out: newest share of events that is held out; 0 holds nothing out.
        split_ms: where the held-out period begins, if that is decided already.
        sample_events: events kept for clusters: whole users, drawn bucket by bucket until it is full.
        sample_user: newest events of one user that the sample takes.
    """
    split = time_split(source, held_out, seed) if held_out and split_ms is None else split_ms
    counted: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    early: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    sample: list[Events] = []
    users = total = held = 0
    for bucket in np.random.default_rng([seed, 7]).permutation(source.buckets()):
        for piece in source.pieces(int(bucket)):
            events = piece.events
            users += events.users - piece.continues
            total += len(events)
            before = np.ones(len(events), bool) if split is None else events.time < split
            counted.append(ItemCounts.count(events.item, events.surface).rows)
            early.append(ItemCounts.count(events.item[before], events.surface[before]).rows)
            if held < sample_events:
                part = _newest(events, before, sample_user, sample_events - held)
                sample.append(part)
                held += len(part)
        if len(counted) > 64:
            counted, early = [_added(counted)], [_added(early)]
    item, surface, events_ = _added(counted)
    whole = ItemCounts.of(item, surface, events_)
    return Catalogue(
        whole.item, whole.surface, whole.events, _added(early), split, Events.concat(sample), users, total
    )


def time_split(source: Source, held_out: float, seed: int = 0, most: int = 1 << 20) -> int | None:
    """Time in ms before which ``1 - held_out`` of the events happened; exact up to ``most`` events, else from
    a sample."""
    rng = np.random.default_rng([seed, 8])
    keys, times = np.zeros(0), np.zeros(0, np.int64)
    for bucket in source.buckets():
        for piece in source.pieces(bucket):
            keys = np.concatenate([keys, rng.random(len(piece.events))])
            times = np.concatenate([times, piece.events.time])
            if len(keys) > 2 * most:
                kept = np.argpartition(keys, most)[:most]
                keys, times = keys[kept], times[kept]
    if not len(times):
        return None
    return int(np.quantile(times, 1 - held_out, method="lower"))


def _added(
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not rows:
        return np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int64)
    return ItemCounts.of(*(np.concatenate(column) for column in zip(*rows, strict=True))).rows


def _newest(events: Events, keep: np.ndarray, per_user: int, most: int) -> Events:
    """The newest ``per_user`` kept events of each user, of the first users that fit into ``most`` events."""
    seen = np.concatenate([[0], np.cumsum(keep)])
    # Kept events are a prefix of a user's history: a split in time cuts its end off.
    stops = events.offsets[:-1] + seen[events.offsets[1:]] - seen[events.offsets[:-1]]
    starts = np.maximum(events.offsets[:-1], stops - per_user)
    fits = np.searchsorted(np.cumsum(stops - starts), most, side="right")
    return events.slices(starts[:fits], stops[:fits])
