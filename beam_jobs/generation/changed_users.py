"""The input of a refresh task: new events where a state can go on, whole histories where it cannot.

    added files ──▶ changed users ──┬─ state ok, events after its boundary ──▶ new events, state
                                    └─ late event, or state unreadable ──────▶ whole history, no state
    users asked for again ───────────────────────────────────────────────────▶ whole history, no state

Both kinds come out as one stream in key order, batch by batch, so a bucket of any size streams through.
An event is late if it comes before the boundary up to which the state has folded its user's history in.
A copy of an event folded in is late too, and the whole history is read without it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from beam_jobs.generation.bucket_task import BucketTask, Input
from beam_jobs.generation.feed import Meter, plain, select_users
from cache_store import Store, as_users
from cache_store.errors import Damaged, PublishConflict
from cache_store.read.found import HeaderFacts
from vista.data.events import Events, UserBatch
from vista.data.tables.reading import read_bucket
from vista.stage1.state import StateError, UserState, event_key

LOOKUP_USERS = 1_024


@dataclass(frozen=True)
class RefreshSource:
    """The changed users of a bucket.

    Attributes:
        store, line, parent: where the states are; ``parent`` is the generation they come from.
        cap: ``summarizer.max_events`` of the model.
        oldest_ms: users summarised before this are recomputed, too; None for no limit.
        complete: the parent has every user of its snapshot; else one that it lacks is read from its first event.
    """

    store: str
    line: str
    parent: str
    cap: int
    oldest_ms: int | None = None
    complete: bool = True

    def gone(self, task: BucketTask, before_ms: int) -> list[Any]:
        """Users of the bucket in the parent whose last event there is before ``before_ms``, in key order."""
        return _users_whose(self, task, lambda facts: facts.last_event_ms < before_ms)

    def open(
        self, task: BucketTask, max_events: int, meter: Meter, users: Sequence[Any] | None = None
    ) -> Input:
        reader = _Reader(self, task, max_events, meter, users)
        return reader.batches(), reader.states


@dataclass
class _Reader:
    source: RefreshSource
    task: BucketTask
    max_events: int
    meter: Meter
    users: Sequence[Any] | None
    _states: dict[Any, UserState] = field(default_factory=dict)

    def states(self, users: Any) -> list[UserState | None]:
        """States of users that :meth:`batches` has handed out; each user is asked for once."""
        return [self._states.pop(plain(user), None) for user in users]

    def batches(self) -> Iterator[UserBatch]:
        task = self.task
        wanted = None if self.users is None else set(self.users)
        again = sorted(u for u in {*task.again, *self._too_old()} if wanted is None or u in wanted)
        only = None if wanted is None else as_users(sorted(wanted))
        carried, dropping = False, False  # the first user goes on from the batch before; it is recomputed
        added = read_bucket(task.added, max_rows=self.max_events, users=only) if task.added else ()
        for batch in added:
            last = plain(batch.users[-1])
            due = [u for u in again if u <= last]
            again = again[len(due) :]
            whole = set(due) | self._load(batch, int(carried), set(due))
            keep = np.array([plain(u) not in whole for u in batch.users], bool)
            if dropping:
                keep[0] = False
            carried = batch.continues
            dropping = carried and not keep[-1]
            yield from merged(select_users(batch, np.flatnonzero(keep)), self._whole(sorted(whole)))
        yield from self._whole(again)

    def _too_old(self) -> list[Any]:
        """Users of the bucket whose summary was made before ``oldest_ms``."""
        oldest = self.source.oldest_ms
        if oldest is None:
            return []
        return _users_whose(self.source, self.task, lambda facts: facts.summarized_ms < oldest)

    def _load(self, batch: UserBatch, first: int, due: set[Any]) -> set[Any]:
        """Fetch the states of the batch's users from ``first`` on; returns the users to recompute."""
        users = batch.users[first:]
        recompute: set[Any] = set()
        if not len(users):
            return recompute
        store = worker_store(self.source.store, self.source.line, self.source.parent)
        for i, (user, data) in enumerate(zip(users, _states_of(store, users), strict=True), start=first):
            user = plain(user)
            if user in due:
                continue
            try:
                state = None if data is None else UserState.from_bytes(data)
            except StateError:
                self.meter.add("states_unreadable", 1)
                recompute.add(user)
                continue
            if state is None:
                self.meter.add("new", 1)
                # all its events are in the added files, where the parent holds every other user
                if not self.source.complete:
                    recompute.add(user)
            elif self._late(state, batch.events, i):
                self.meter.add("late", 1)
                recompute.add(user)
            else:
                self.meter.add("resumed", 1)
                self._states[user] = state
        return recompute

    def _late(self, state: UserState, events: Events, user: int) -> bool:
        row = int(events.offsets[user])
        if state.boundary is not None and event_key(events, row) < state.boundary:
            return True
        cap = self.source.cap
        return bool(cap) and state.total + int(events.lengths[user]) > 2 * cap

    def _whole(self, users: list[Any]) -> Iterator[UserBatch]:
        if users:
            self.meter.add("recomputed", len(users))
            yield from read_bucket(self.task.files, max_rows=self.max_events, users=as_users(users))


def _users_whose(
    source: RefreshSource, task: BucketTask, wanted: Callable[[HeaderFacts], np.ndarray]
) -> list[Any]:
    """Users of the bucket in the parent, by the headers of their records."""
    store = worker_store(source.store, source.line, source.parent)
    users = store.users(task.bucket)
    found: list[Any] = []
    for start in range(0, len(users), LOOKUP_USERS):
        part = users[start : start + LOOKUP_USERS]
        found += [plain(u) for u in part[wanted(store.facts(part))]]
    return found


_stores: dict[tuple[str, str, str], Store] = {}
_stores_lock = threading.Lock()


def worker_store(path: str, line: str, parent: str) -> Store:
    """The store at generation ``parent``, opened once per worker process.

    Raises:
        PublishConflict: the line has moved on; the run could not be published either.
    """
    key = (path, line, parent)
    with _stores_lock:
        if key not in _stores:
            while _stores:
                _stores.popitem()[1].close()
            store = Store.open(path, line=line)
            if store.manifest.generation != parent:
                found = store.manifest.generation
                store.close()
                raise PublishConflict(
                    f"{path}: expected line {line} at generation {parent}, found {found}; another publisher was "
                    f"faster: start vista refresh anew with another run directory"
                )
            _stores[key] = store
        return _stores[key]


def _states_of(store: Store, users: np.ndarray) -> list[bytes | None]:
    """State of each user; no bytes (which no state has) where the stored one is damaged."""
    try:
        return store.states(users)
    except Damaged:
        pass
    found: list[bytes | None] = []
    for i in range(len(users)):
        try:
            found += store.states(users[i : i + 1])
        except Damaged:
            found.append(b"")
    return found


def merged(fresh: UserBatch, whole: Iterator[UserBatch]) -> Iterator[UserBatch]:
    """Users of ``fresh`` and of the batches ``whole`` in key order; no user is in both.

    Up to the smaller of the two last users everything is known, and goes out as one batch.
    """
    for batch in whole:
        below, rows = int(np.searchsorted(fresh.users, batch.users[-1])), np.arange(len(fresh.users))
        before, fresh = select_users(fresh, rows[:below]), select_users(fresh, rows[below:])
        yield _interleaved(before, batch)
    if len(fresh.users):
        yield fresh


def _interleaved(first: UserBatch, second: UserBatch) -> UserBatch:
    """Both as one batch; the last user is the second's, which alone may continue."""
    if not len(first.users):
        return second
    users = np.concatenate([first.users, second.users])
    order = np.argsort(users, kind="stable")
    events = Events.concat([first.events, second.events]).select(order)
    return UserBatch(users[order], events, second.continues)
