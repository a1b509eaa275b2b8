"""From tables to batches: buckets joined in the worker, visits shuffled across buckets, one pass per visit.

History and impressions are bucketed and sorted by the same user key, so a bucket's two streams are joined by
walking both once; nothing is shuffled on disk and no history is stored twice (request-level deduplication,
Pinterest 2026-04). What is in memory at a time: ``max_rows`` rows of a bucket, the carried end of one user,
and the shuffle buffer of visits.

Order. Buckets are taken in a random order of the epoch; visits leave through a buffer from which a random one
is drawn, so a batch mixes users of several buckets; everything is drawn from ``(seed, epoch)``, so an epoch
can be repeated, and a position in it is just a number of batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import xxhash

from vista.config import _check
from vista.data.events import Events
from vista.data.tables.reading import DataFile, ImpressionBatch, read_bucket, read_impressions
from vista.data.tables.rows import IMPRESSIONS
from vista.data.tables.warehouse import Warehouse
from vista.training.batches import Batch, Visit, collate, visits
from vista.training.examples import ExampleConfig, PopularItems, build_slates


@dataclass(frozen=True)
class Piece:
    """Consecutive users of one bucket in key order.

    Attributes:
        users: int64 [U], or object [U] of str.
        events: U histories in contract order.
        impressions: shown items of the same users, or None where the log has none.
        continues: the last user goes on as the first of the next piece.
    """

    users: np.ndarray
    events: Events
    impressions: Events | None = None
    continues: bool = False


class PieceSource(Protocol):
    """Where pieces come from: the warehouse, or arrays."""

    def buckets(self) -> list[int]: ...

    def pieces(self, bucket: int) -> Iterator[Piece]: ...


@dataclass(frozen=True)
class Arrays:
    """Histories in memory as a source; bucket b holds every ``of``-th user."""

    users: np.ndarray
    events: Events
    impressions: Events | None = None
    of: int = 1

    def buckets(self) -> list[int]:
        return list(range(self.of))

    def pieces(self, bucket: int) -> Iterator[Piece]:
        index = np.arange(bucket, self.events.users, self.of)
        shown = None if self.impressions is None else self.impressions.select(index)
        yield Piece(np.asarray(self.users)[index], self.events.select(index), shown)


@dataclass(frozen=True)
class WarehouseSource:
    """The warehouse as a source: plain file lists, so that workers need no catalog.

    Attributes:
        history, impressions: sorted files by bucket (``Warehouse.bucket_files``); no impressions at all:
        None.
        max_rows: rows of history in memory at a time.
    """

    history: dict[int, list[DataFile]]
    impressions: dict[int, list[DataFile]] | None
    max_rows: int = 1 << 20

    @staticmethod
    def of(warehouse: Warehouse, max_rows: int = 1 << 20, snapshot: int | None = None) -> WarehouseSource:
        """Files of the current tables (or of a history snapshot)."""
        shown = warehouse.bucket_files(kind=IMPRESSIONS)
        return WarehouseSource(warehouse.bucket_files(snapshot), shown or None, max_rows)

    def buckets(self) -> list[int]:
        return sorted(self.history)

    def pieces(self, bucket: int) -> Iterator[Piece]:
        """Bucket join: both streams ascend by user key, so each is walked once.

        A user's impressions are all there in each of its pieces; slates pick theirs by time.
        """
        batches = read_bucket(self.history[bucket], max_rows=self.max_rows)
        if self.impressions is None:
            for batch in batches:
                yield Piece(batch.users, batch.events, None, batch.continues)
            return
        shown = _Shown(read_impressions(self.impressions.get(bucket, []), max_rows=self.max_rows))
        for batch in batches:
            yield Piece(batch.users, batch.events, shown.of(batch.users), batch.continues)


class _Shown:
    """Impressions of ascending users, taken from a stream as they are asked for."""

    def __init__(self, stream: Iterator[ImpressionBatch]) -> None:
        self._stream = stream
        self._users: list[Any] = []
        self._parts: list[Events] = []
        self._done = False

    def of(self, users: np.ndarray) -> Events:
        """Impressions of ``users`` (ascending, at or after those asked for before), as histories of them."""
        wanted = list(users)
        # One user beyond the last wanted one shows that its rows are all here.
        while not self._done and (not self._users or self._users[-1] <= wanted[-1]):
            batch = next(self._stream, None)
            if batch is None:
                self._done = True
                break
            self._add(batch)
        place = {user: i for i, user in enumerate(self._users)}
        found = [self._parts[place[u]] if u in place else Events.empty(1) for u in wanted]
        keep = [i for i, user in enumerate(self._users) if user >= wanted[-1]]
        self._users = [self._users[i] for i in keep]
        self._parts = [self._parts[i] for i in keep]
        return Events.concat(found)

    def _add(self, batch: ImpressionBatch) -> None:
        events = Events(
            batch.offsets,
            batch.item,
            batch.action,
            np.zeros(len(batch.item), np.int32),
            batch.time,
            batch.request,
        )
        for i, user in enumerate(batch.users):
            part = events.user(i)
            if self._users and self._users[-1] == user:
                self._parts[-1] = Events.append(self._parts[-1], part)
            else:
                self._users.append(user)
                self._parts.append(part)


@dataclass(frozen=True)
class LoaderConfig:
    """How examples become batches.

    Attributes:
        slates: K, contexts per batch (a visit is never cut, so a few more may come).
        events: window events per batch; a batch ends when either is reached.
        shuffle_visits: visits held in the shuffle buffer.
        workers: loader processes; each takes its share of the buckets. The order of batches depends on it.
    """

    slates: int = 128
    events: int = 65_536
    shuffle_visits: int = 2_048
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("slates", "events", "shuffle_visits"):
            _check(getattr(self, name) >= 1, f"loader.{name}", "1 or more", getattr(self, name))
        _check(self.workers >= 0, "loader.workers", "0 or more", self.workers)


def owner_numbers(users: np.ndarray) -> np.ndarray:
    """int64 [U], the same number for the same user, never negative; strings by XXH64."""
    users = np.asarray(users)
    if users.dtype.kind in "iu":
        return users.astype(np.int64) & np.int64(2**63 - 1)
    hashed = [xxhash.xxh64_intdigest(str(u).encode()) & (2**63 - 1) for u in users]
    return np.array(hashed, np.int64)


@dataclass(frozen=True)
class Joined:
    """A piece whose first user's earlier events are in front again.

    Attributes:
        owners: int64 [U].
        events, impressions: as in :class:`Piece`.
        carried: int64 [U]; so many events of a user were in the piece before.
        until: int64 [U]; slates at or after this time (ms) belong to a later piece.
    """

    owners: np.ndarray
    events: Events
    impressions: Events | None
    carried: np.ndarray
    until: np.ndarray


FOREVER = np.iinfo(np.int64).max


def rejoined(pieces: Iterable[Piece], keep: int) -> Iterator[Joined]:
    """Carry the last ``keep`` events of a user that spans pieces, so that its later slates have a past.

    A piece's last timestamp may go on in the next one, so its slates wait for it: every slate comes once.
    """
    tail: Events | None = None
    for piece in pieces:
        u = piece.events.users
        if not u:
            continue
        events = piece.events
        carried, until = np.zeros(u, np.int64), np.full(u, FOREVER, np.int64)
        if tail is not None:
            front = Events.of([len(tail)] + [0] * (u - 1), **tail.columns)
            events = Events.append(front, events)
            carried[0] = len(tail)
        tail = None
        if piece.continues:
            last = events.user(u - 1)
            until[-1] = last.time[-1] if len(last) else FOREVER
            tail = last.rows(max(0, len(last) - keep), len(last))
        yield Joined(owner_numbers(piece.users), events, piece.impressions, carried, until)


def visit_stream(
    source: PieceSource,
    buckets: Iterable[int],
    config: ExampleConfig,
    recent: int,
    popular: PopularItems | None,
    seed: tuple[int, ...],
    after_ms: int | None = None,
    before_ms: int | None = None,
) -> Iterator[Visit]:
    """Visits of the given buckets, one after the other; slates with ``after_ms <= time < before_ms`` only.

    Args:
        recent: R of the model.
        seed: with the bucket, decides everything that is drawn.
    """
    reach = max(recent, config.recent_pool)
    for bucket in buckets:
        rng = np.random.default_rng([*seed, bucket])
        keep = config.max_history + reach + config.lag_jitter_events + config.lag_events
        previous_until = 0
        for part in rejoined(source.pieces(bucket), keep):

            def wanted(
                user: np.ndarray, time: np.ndarray, part: Joined = part, since: int = previous_until
            ) -> np.ndarray:
                # Slates before the carried user's last timestamp came out of the piece before.
                keep = (time < part.until[user]) & ((part.carried[user] == 0) | (time >= since))
                keep &= time >= (after_ms if after_ms is not None else time)
                return keep & (time < (before_ms if before_ms is not None else FOREVER))

            slates = build_slates(part.events, config, rng, popular, part.impressions, wanted)
            previous_until = int(part.until[-1])
            yield from visits(part.events, part.owners, slates, config, reach)


def shuffled(stream: Iterable[Visit], buffer: int, rng: np.random.Generator) -> Iterator[Visit]:
    """Every visit once, through a buffer from which a random one leaves."""
    held: list[Visit] = []
    for visit in stream:
        if len(held) < buffer:
            held.append(visit)
            continue
        at = int(rng.integers(len(held)))
        yield held[at]
        held[at] = visit
    for at in rng.permutation(len(held)):
        yield held[at]


def grouped(stream: Iterable[Visit], slates: int, events: int) -> Iterator[list[Visit]]:
    """Consecutive visits until either limit is reached; at least one per group."""
    group: list[Visit] = []
    k = n = 0
    for visit in stream:
        if group and (k + len(visit.slates) > slates or n + len(visit.events) > events):
            yield group
            group, k, n = [], 0, 0
        group.append(visit)
        k += len(visit.slates)
        n += len(visit.events)
    if group:
        yield group


@dataclass(frozen=True)
class Part:
    """What a loader takes of its source.

    Attributes:
        after_ms, before_ms: slates with ``after_ms <= time < before_ms`` only; None is no bound.
        rank, world: this process of a data-parallel run; it takes every ``world``-th bucket.
    """

    after_ms: int | None = None
    before_ms: int | None = None
    rank: int = 0
    world: int = 1


class Loader(torch.utils.data.IterableDataset):
    """Endless epochs of shuffled batches; the position is (epoch, batches taken from it).

    Args:
        source: picklable when ``workers`` > 0 (workers read files by path; they need no catalog).
        part: everything by default.
    """

    def __init__(
        self,
        source: PieceSource,
        examples: ExampleConfig,
        config: LoaderConfig,
        recent: int,
        popular: PopularItems | None,
        seed: int = 0,
        part: Part = Part(),  # noqa: B008  # it is frozen
    ) -> None:
        super().__init__()
        self.source, self.examples, self.config = source, examples, config
        self.recent, self.popular, self.seed = recent, popular, seed
        self.part, self.epoch = part, 0

    def __iter__(self) -> Iterator[Batch]:
        """The batches of ``self.epoch``, this worker's share."""
        info = torch.utils.data.get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        order = np.random.default_rng([self.seed, self.epoch, 1]).permutation(self.source.buckets())
        mine = [int(b) for b in order[self.part.rank :: self.part.world]][worker::workers]
        stream = visit_stream(
            self.source,
            mine,
            self.examples,
            self.recent,
            self.popular,
            (self.seed, self.epoch, 2),
            after_ms=self.part.after_ms,
            before_ms=self.part.before_ms,
        )
        rng = np.random.default_rng([self.seed, self.epoch, 3, self.part.rank, worker])
        mixed = shuffled(stream, self.config.shuffle_visits, rng)
        for group in grouped(mixed, self.config.slates, self.config.events):
            yield collate(group, self.recent, self.examples.recent_pool)

    def batches(self, epoch: int = 0, taken: int = 0) -> Iterator[tuple[int, int, Batch]]:
        """(epoch, batches taken from it including this one, batch), for ever.

        Resuming replays the epoch's reading up to ``taken``, without the model: exact, and cheap beside
        training. Stops when an epoch has no batch at all.
        """
        while True:
            self.epoch = epoch
            loader = torch.utils.data.DataLoader(
                self, batch_size=None, num_workers=self.config.workers, prefetch_factor=None
            )
            count = 0
            for count, batch in enumerate(loader, start=1):
                if count > taken:
                    yield epoch, count, batch
            if count == 0:
                return
            epoch, taken = epoch + 1, 0
