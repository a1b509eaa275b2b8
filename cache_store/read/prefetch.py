"""Working ahead of whoever consumes a stream: batch k + 1 is looked up while batch k is used.

    with LookAhead(batches, store.lookup, depth=2) as stream:
        for users, found in stream:
            ...

One thread pulls the batches and does the work, in order; at most ``depth`` results wait. The gathers inside a lookup
release the interpreter, so the thread overlaps with the consumer's own computing. A batch's error is raised where
its result would have come. Whoever stops early, by ``break``, an error or a lost reference, ends the thread.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_DONE, _RESULT, _ERROR = 0, 1, 2


class LookAhead(Generic[T, R]):
    """An iterable of ``(batch, work(batch))`` that works ahead in a thread; every ``iter`` is one pass.

    It holds no thread and no queue of its own, so it travels through fork, spawn and pickle as its parts do; a thread
    begins with ``iter`` in whichever process that happens.

    Args:
        batches: any iterable, a DataLoader for one. It is iterated in the thread.
        work: called in the thread, one batch after the other; ``store.lookup`` for one.
        depth: results that may wait for the consumer; 1 or more.

    Raises:
        ValueError: ``depth`` is below 1.
    """

    def __init__(self, batches: Iterable[T], work: Callable[[T], R], depth: int = 2) -> None:
        if depth < 1:
            raise ValueError(f"depth: expected 1 or more, found {depth}")
        self.batches, self.work, self.depth = batches, work, depth
        self._started: list[_Worker] = []

    def __iter__(self) -> Pass[T, R]:
        started: Pass[T, R] = Pass(self.batches, self.work, self.depth)
        self._started = [w for w in self._started if w.thread.is_alive()] + [started.worker]
        return started

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def close(self) -> None:
        """End the threads of all passes that are still under way in this process."""
        for worker in self._started:
            worker.end()
        self._started = []

    def __enter__(self) -> LookAhead[T, R]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"batches": self.batches, "work": self.work, "depth": self.depth}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class Pass(Iterator[tuple[T, R]]):
    """One pass over the batches. Ends its thread when it is exhausted, closed or forgotten."""

    def __init__(self, batches: Iterable[T], work: Callable[[T], R], depth: int) -> None:
        self.worker = _Worker(batches, work, depth)
        # The thread holds the worker, never this object, so that forgetting the pass can end it.
        weakref.finalize(self, self.worker.stop)
        self._over = False
        self.worker.thread.start()

    def __iter__(self) -> Pass[T, R]:
        return self

    def __next__(self) -> tuple[T, R]:
        if self._over:
            raise StopIteration
        kind, value = self.worker.ready.get()
        if kind == _RESULT:
            self.worker.permits.release()
            result: tuple[T, R] = value
            return result
        self._over = True
        self.worker.thread.join()
        if kind == _ERROR:
            raise value
        raise StopIteration

    def close(self) -> None:
        """Drop what waits, let the batch in work finish, and end the thread. Harmless when repeated."""
        self._over = True
        self.worker.end()


class _Worker:
    """The thread of one pass and what it shares with it."""

    def __init__(self, batches: Iterable[Any], work: Callable[[Any], Any], depth: int) -> None:
        self.ready: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        # One permit per result that may wait; the consumer gives it back when it takes one.
        self.permits = threading.Semaphore(depth)
        self._stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(batches, work), name="look-ahead", daemon=True)

    def stop(self) -> None:
        """Ask the thread to end after the batch in work."""
        self._stopped.set()
        self.permits.release()

    def end(self) -> None:
        """Stop, and wait until the thread has ended."""
        self.stop()
        if self.thread is not threading.current_thread():
            self.thread.join()

    def _run(self, batches: Iterable[Any], work: Callable[[Any], Any]) -> None:
        source: Iterator[Any] | None = None
        try:
            source = iter(batches)
            while True:
                self.permits.acquire()
                if self._stopped.is_set():
                    break
                try:
                    batch = next(source)
                except StopIteration:
                    self.ready.put((_DONE, None))
                    break
                self.ready.put((_RESULT, (batch, work(batch))))
                del batch
        except BaseException as error:
            self.ready.put((_ERROR, error))
        finally:
            # A generator is closed in the thread that ran it; a DataLoader's workers end with its iterator.
            close = getattr(source, "close", None)
            if close is not None:
                close()
