"""Many requests at once become one lookup: whoever comes while one is read is in the next.

Nobody waits for company: a request that finds the store idle is read at once. Under load the batches grow by
themselves, and with them the share of the work that is done once for all.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from cache_store.flight.asking import Busy

T = TypeVar("T")


@dataclass
class _Waiting(Generic[T]):
    users: np.ndarray
    found: T | None = None
    rows: slice | None = None
    error: Exception | None = None
    done: bool = False


class Coalescer(Generic[T]):
    """Joins what threads ask for.

    Args:
        read: looks up users [n]; called by one thread at a time.
        most: users of one lookup, unless one request alone has more.
        most_waiting: users that may wait; who comes then is refused.
    """

    def __init__(self, read: Callable[[np.ndarray], T], most: int, most_waiting: int) -> None:
        self._read, self._most, self._most_waiting = read, most, most_waiting
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._queue: deque[_Waiting[T]] = deque()
        self._users = 0

    def ask(self, users: np.ndarray) -> tuple[T, slice]:
        """What was read, and which rows of it are of these users.

        Raises:
            Busy, and whatever ``read`` raises.
        """
        mine: _Waiting[T] = _Waiting(users)
        with self._lock:
            if self._users and self._users + len(users) > self._most_waiting:
                raise Busy(
                    f"{self._users} users wait to be looked up; ask again a little later, or ask another server"
                )
            self._queue.append(mine)
            self._users += len(users)
        while not mine.done:
            with self._reading:
                if not mine.done:
                    self._turn()
        if mine.error is not None:
            raise mine.error
        assert mine.found is not None and mine.rows is not None
        return mine.found, mine.rows

    def _turn(self) -> None:
        batch: list[_Waiting[T]] = []
        total = 0
        with self._lock:
            while self._queue and (not batch or total + len(self._queue[0].users) <= self._most):
                batch.append(self._queue.popleft())
                total += len(batch[-1].users)
        try:
            users = batch[0].users if len(batch) == 1 else np.concatenate([w.users for w in batch])
            found = self._read(users)
        except Exception as error:
            for waiting in batch:
                waiting.error = error
        else:
            at = 0
            for waiting in batch:
                waiting.found, waiting.rows = found, slice(at, at + len(waiting.users))
                at += len(waiting.users)
        finally:
            with self._lock:
                self._users -= total
            for waiting in batch:
                waiting.done = True
