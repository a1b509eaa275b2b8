"""Batches of users on their way to the model: counted and timed, without those who failed before or have left."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vista.data.events import UserBatch


@dataclass
class Meter:
    """Wall seconds by step and counts of one task."""

    seconds: dict[str, float] = field(default_factory=lambda: {"read": 0.0, "model": 0.0, "write": 0.0})
    counts: dict[str, int] = field(default_factory=dict)
    cpu_model: float = 0.0
    watermark_ms: int = 0

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def add(self, name: str, n: int) -> None:
        self.counts[name] = self.counts.get(name, 0) + n


def in_order(
    leaving: list[Any], users: Any, rows: np.ndarray, meter: Meter
) -> Iterator[tuple[list[Any], np.ndarray]]:
    """Rows of a batch to write, cut where users who leave come between them; these are taken off ``leaving``.

    One that is in the batch stays if its row is written; else it leaves, and was counted with the batch.
    """
    if not leaving or not len(users):
        yield [], rows
        return
    kept, there, last = {plain(users[i]) for i in rows}, {plain(u) for u in users}, plain(users[-1])
    due = list(itertools.takewhile(lambda user: user <= last, leaving))
    del leaving[: len(due)]
    count_gone(meter, sum(user not in there for user in due))
    due = [user for user in due if user not in kept]
    written = [plain(users[i]) for i in rows]
    while due:
        cut = bisect.bisect_left(written, due[0])
        until = bisect.bisect_left(due, written[cut]) if cut < len(written) else len(due)
        yield [], rows[:cut]
        yield due[:until], rows[:0]
        rows, written, due = rows[cut:], written[cut:], due[until:]
    yield [], rows


def count_gone(meter: Meter, users: int) -> None:
    """Users that leave without having been read."""
    meter.add("users", users)
    meter.add("expired", users)


class BucketFeed:
    """Counts and times the batches on their way to the model, leaves out failed users, and knows who was fed
    but not answered yet.

    Args:
        before: also leave out users whose last event is before; where whole histories come, a user in one batch is
            told by it. Who comes in several is told when it is answered.
    """

    def __init__(
        self,
        batches: Iterator[UserBatch],
        meter: Meter,
        failed: dict[Any, tuple[str, str]],
        before: int | None = None,
    ):
        self._batches, self._meter, self._failed, self._before = batches, meter, failed, before
        self._waiting: list[Any] = []
        self._continues = False
        self.reading = False

    def __iter__(self) -> Iterator[UserBatch]:
        while True:
            self.reading = True
            with self._meter.step("read"):
                batch = next(self._batches, None)
            self.reading = False
            if batch is None:
                return
            fresh = list(batch.users[1:] if self._continues else batch.users)
            self._meter.add("users", len(fresh))
            self._meter.add("events", len(batch.events))
            if self._before is not None:
                batch, fresh = self._without_expired(batch, fresh)
            self._continues = batch.continues
            if self._failed:
                keep = np.array([plain(u) not in self._failed for u in batch.users], bool)
                fresh = [u for u in fresh if plain(u) not in self._failed]
                if not keep.all():
                    batch = select_users(batch, np.flatnonzero(keep))
            self._waiting += fresh
            if len(batch.users):
                yield batch

    def _without_expired(self, batch: UserBatch, fresh: list[Any]) -> tuple[UserBatch, list[Any]]:
        """The batch without users that are in it from first to last event, and whose last is too old."""
        events, first = batch.events, int(self._continues)
        whole = len(batch.users) - int(batch.continues)
        if whole <= first:
            return batch, fresh
        last = events.columns["time"][np.maximum(events.offsets[1:] - 1, 0)]
        last = np.where(events.lengths > 0, last, 0)
        old = last < self._before
        old[:first] = old[whole:] = False
        expired = {plain(batch.users[i]) for i in np.flatnonzero(old)} - set(self._failed)
        if not expired:
            return batch, fresh
        self._meter.add("expired", len(expired))
        kept = np.array([plain(u) not in expired for u in batch.users], bool)
        return select_users(batch, np.flatnonzero(kept)), [u for u in fresh if plain(u) not in expired]

    def answered(self, n: int) -> None:
        del self._waiting[:n]

    def waiting(self) -> list[Any]:
        return [plain(u) for u in self._waiting]


def select_users(batch: UserBatch, rows: np.ndarray) -> UserBatch:
    """The users at ``rows`` of a batch; it continues if its last user stays and continues."""
    last_stays = len(rows) > 0 and rows[-1] == len(batch.users) - 1
    return UserBatch(take(batch.users, rows), batch.events.select(rows), batch.continues and last_stays)


def take(users: Any, rows: np.ndarray) -> Any:
    return users[rows] if isinstance(users, np.ndarray) else [users[i] for i in rows]


def plain(user: Any) -> int | str:
    return user if isinstance(user, str) else int(user)
