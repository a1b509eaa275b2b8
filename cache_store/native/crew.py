"""Threads that share the copying of one batch.

One core cannot copy scattered records as fast as the memory gives them: each page's first bytes are waited for. NumPy
lets go of the interpreter while it copies, so a second thread waits for other pages meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

MOST = 2
"""Threads used where none are asked for: two reach the speed of one long copy on the machines measured."""


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Crew:
    """The calling thread and up to ``threads - 1`` helpers. Safe for threads, after a fork, and through pickle.

    Args:
        threads: at least 1; None for 2, or 1 where the process may use one core only.

    Raises:
        ValueError: fewer than 1.
    """

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads: expected at least 1, found {threads}")
        self.threads = threads or min(MOST, usable_cores())
        self._pool: ThreadPoolExecutor | None = None
        self._pid = os.getpid()

    def each(self, count: int, work: Callable[[int], None]) -> None:
        """Call ``work(i)`` once for each i below ``count``, in any order; return when all are done.

        The caller never waits for a helper that has not begun: it takes pieces until none are left.

        Raises:
            What ``work`` raises; other pieces may have been done.
        """
        pieces = iter(range(count))

        def run() -> None:
            for i in pieces:
                work(i)

        extra = min(self.threads, count) - 1
        hired = [self._helpers().submit(run) for _ in range(extra)]
        try:
            run()
        finally:
            # Not begun: cancelled. Begun: it writes into the caller's array and must end first.
            for one in hired:
                if not one.cancel():
                    one.result()

    def _helpers(self) -> ThreadPoolExecutor:
        # A fork copies the pool, but not its threads.
        if self._pool is None or self._pid != os.getpid():
            self._pool, self._pid = ThreadPoolExecutor(self.threads - 1, "cache-store-copy"), os.getpid()
        return self._pool

    def __getstate__(self) -> dict[str, Any]:
        return {"threads": self.threads, "_pool": None, "_pid": self._pid}
