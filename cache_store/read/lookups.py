"""What a lookup of a store does: which generation, as of when, what of a missing user, and that it is counted."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from cache_store.errors import MissingUsers, SchemaError
from cache_store.format.keys import Users, as_users
from cache_store.format.layout import StoreFormat
from cache_store.read.counters import LookupCounters
from cache_store.read.options import moments
from cache_store.read.snapshot import Lookup, RawLookup, Snapshot, Status
from cache_store.read.views import Views

AsOf = int | Sequence[int] | np.ndarray
"""Milliseconds: one time, or int64 [B]."""

_Found = TypeVar("_Found", Lookup, RawLookup)


class Lookups:
    """The part of a store that looks users up; :class:`cache_store.store.Store` is its face."""

    format: StoreFormat
    max_age_ms: int | None
    counters: LookupCounters
    _views: Views
    _pinned: Snapshot | None
    _missing: str | np.ndarray
    _clock: Callable[[], int]

    def _current(self, now_ms: int) -> Snapshot:
        return self._views.current(now_ms, self._pinned)

    def _counted(self, users: Users, read: Callable[[Snapshot, int], _Found]) -> _Found:
        start = time.perf_counter()
        try:
            now = self._clock()
            live = self._current(now)
            found = read(live, now)
            self._raise_missing(users, found.status)
        except Exception:
            self.counters.add("errors")
            raise
        seconds, published = time.perf_counter() - start, live.chain[0].manifest.published_ms
        self.counters.observe(found.status, live.schema.record_bytes, seconds, published)
        return found

    def _lookup(
        self, live: Snapshot, now: int, users: Users, out: np.ndarray | None, as_of: AsOf | None
    ) -> Lookup:
        if as_of is None:
            return live.lookup(users, out, self._fill, now, self.max_age_ms)
        times = moments(as_of)
        if times.ndim:
            return self._lookup_as_of_rows(users, out, times, live, now)
        snapshot = self._views.as_of(int(times))
        if snapshot is None:
            return live.nothing(users, out, self._fill)
        found = snapshot.lookup(users, out, self._fill, now, self.max_age_ms)
        return snapshot.without_future(found, times, self._fill)

    def _lookup_raw(
        self, live: Snapshot, now: int, users: Users, out: np.ndarray | None, as_of: int | None
    ) -> RawLookup:
        if as_of is None:
            return live.lookup_raw(users, out, now, self.max_age_ms)
        time = moments(as_of)
        if time.ndim:
            raise SchemaError(f"as_of: expected one time, found shape {time.shape}")
        snapshot = self._views.as_of(int(time))
        if snapshot is None:
            return live.nothing_raw(users, out)
        return snapshot.without_future(snapshot.lookup_raw(users, out, now, self.max_age_ms), time)

    def _lookup_as_of_rows(
        self, users: Users, out: np.ndarray | None, times: np.ndarray, live: Snapshot, now: int
    ) -> Lookup:
        ids = as_users(users, self.format.user_kind)
        if times.shape != (len(ids),):
            raise SchemaError(f"as_of: expected one time or {len(ids)}, found shape {times.shape}")
        distinct, which = np.unique(times, return_inverse=True)
        snapshots = [self._views.as_of(int(t)) for t in distinct]
        names = np.array([s.name if s else "" for s in snapshots], object)
        whole = live.nothing(ids, out, self._fill)
        row_names = names[which] if len(ids) else np.zeros(0, object)
        for name in sorted(set(row_names.tolist()) - {""}):
            rows = np.flatnonzero(row_names == name)
            snapshot = next(s for s in snapshots if s is not None and s.name == name)
            part = snapshot.lookup(ids[rows], None, self._fill, now, self.max_age_ms)
            part = snapshot.without_future(part, times[rows], self._fill)
            for column in ("tokens", "status", "event_count", "last_event_ms", "summarized_ms"):
                getattr(whole, column)[rows] = getattr(part, column)
        return dataclasses.replace(whole, generation=row_names)

    @property
    def _fill(self) -> np.ndarray | None:
        return None if isinstance(self._missing, str) else self._missing

    def _raise_missing(self, users: Users, status: np.ndarray) -> None:
        if isinstance(self._missing, str) and self._missing == "raise" and (status == Status.MISSING).any():
            ids = as_users(users, self.format.user_kind)[status == Status.MISSING].tolist()
            raise MissingUsers(
                f"{len(ids)} users are not in the store, first {ids[0]!r}; run `vista refresh`, or open the store "
                f"with missing='zeros' or a cold-start token",
                ids,
            )
