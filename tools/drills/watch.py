"""Reader processes that look at a store without pause and compare every value with the truth."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import pickle
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from cache_store import Status, Store
from cache_store.errors import Damaged, NothingPublished
from cache_store.format import manifest as manifests
from cache_store.read.snapshot import Lookup
from cache_store.testing import Truth, WrongValue

LOOKUPS, _MOVES, _AS_OF, _STATES, _OLD = range(5)


def shared(count: int, kind: type) -> np.ndarray:
    """Zeros that a process shares with those it forks."""
    dtype = np.dtype(kind)
    return np.frombuffer(mmap.mmap(-1, max(1, count) * dtype.itemsize), dtype, count)


@dataclass
class Seen:
    """What the readers of a watch did: lookups, moves to another generation, as-of lookups, states read, lookups by
    readers that stayed on an old generation."""

    lookups: int = 0
    moves: int = 0
    as_of: int = 0
    states: int = 0
    old: int = 0

    def add(self, other: Seen) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class Watch:
    """Readers of one or more stores, each in a process of its own (forked).

    Args:
        roots: stores; reader i watches ``roots[i % len(roots)]``.
        truth: what they must hold.
        readers: how many processes.
        gated: readers rest while :meth:`pause` holds; else they never stop.

    Attributes:
        forgotten: bool [users], shared: users that may be missing.
    """

    def __init__(
        self, roots: Sequence[Path], truth: Truth, readers: int, seed: int, gated: bool = True
    ) -> None:
        context = multiprocessing.get_context("fork")
        self.forgotten = shared(truth.num_users, np.bool_)
        self._stop, self._parent = shared(1, np.int64), os.getpid()
        self._counts = shared(readers * 5, np.int64).reshape(readers, 5)
        self._gate = context.Event()
        if not gated:
            self._gate.set()
        self._pipes, self._children = [], []
        for i in range(readers):
            ours, theirs = context.Pipe(duplex=False)
            child = context.Process(
                target=self._read, args=(Path(roots[i % len(roots)]), truth, i, seed, theirs), daemon=True
            )
            child.start()
            theirs.close()
            self._pipes.append(ours)
            self._children.append(child)

    def resume(self) -> None:
        self._gate.set()

    def pause(self) -> None:
        self._gate.clear()

    def check(self) -> None:
        """Raise what a reader has raised.

        Raises:
            WrongValue, or whatever a lookup raised that it must not raise.
        """
        for i, pipe in enumerate(self._pipes):
            try:
                if pipe.poll():
                    text, error = pickle.loads(pipe.recv_bytes())
                    raise WrongValue(f"reader {i}: {error!r}\n{text}")
            except EOFError:
                pass  # it ended
            if not self._children[i].is_alive() and not self._stop[0]:
                raise WrongValue(f"reader {i} died with exit code {self._children[i].exitcode}")

    def lookups(self) -> np.ndarray:
        """Lookups of each reader so far, int64 [readers]."""
        return self._counts[:, LOOKUPS].copy()

    def goes_on(self) -> bool:
        """Whether a reader is to look again; a drill that was killed leaves none behind."""
        return not self._stop[0] and os.getppid() == self._parent

    def stop(self) -> None:
        """Let the readers end, whatever they have seen."""
        self._stop[0] = 1
        self._gate.set()

    def close(self) -> Seen:
        """End the readers; what they did. Raises as :meth:`check`."""
        self.stop()
        for child in self._children:
            child.join(60)
        self.check()
        return Seen(*self._counts.sum(axis=0).tolist())

    def _read(self, root: Path, truth: Truth, number: int, seed: int, pipe: Connection) -> None:
        os.nice(5)
        try:
            self._loop(root, truth, number, np.random.default_rng([seed, number]))
            code = 0
        except BaseException as error:
            plain = RuntimeError(f"{type(error).__name__}: {error}")
            pipe.send_bytes(pickle.dumps((traceback.format_exc(), plain)))
            code = 1
        os._exit(code)

    def _loop(self, root: Path, truth: Truth, number: int, rng: np.random.Generator) -> None:
        counts = self._counts[number]
        store: Store | None = None
        old: tuple[Store, int] | None = None
        while self.goes_on():
            if not self._gate.wait(1.0):
                continue
            try:
                if store is None:
                    store = Store.open(root)
                before = store.manifest.generation
                store.refresh()
            except NothingPublished:
                if store is not None:
                    raise
                continue
            counts[_MOVES] += before != store.manifest.generation
            at = rng.integers(0, truth.num_users, rng.integers(1, truth.num_users))
            found = store.lookup(truth.users[at])
            version = store.manifest.watermark_ms
            if found.generation != store.manifest.generation:
                raise WrongValue(
                    f"lookup says {found.generation}, the store reads {store.manifest.generation}"
                )
            truth.check(found, at, version, self.forgotten)
            counts[LOOKUPS] += 1
            pick = rng.integers(8)
            if pick == 0:
                truth.check_states(store.states(truth.users[at]), at, version, self.forgotten)
                counts[_STATES] += 1
            elif pick == 1:
                as_of = int(version - rng.integers(0, 1200))
                found = store.lookup(truth.users[at], as_of=as_of)
                if found.generation:
                    self._check_as_of(store, found, truth, at, as_of)
                    counts[_AS_OF] += 1
            elif pick == 2 and rng.random() < 0.2:
                # A reader that stays behind for a while; its lease must keep its generation whole.
                behind = Store.open(root)
                old = (behind, behind.manifest.watermark_ms)
            if old is not None:
                truth.check(old[0].lookup(truth.users[at]), at, old[1], self.forgotten)
                counts[_OLD] += 1

    def _check_as_of(self, store: Store, found: Lookup, truth: Truth, at: np.ndarray, as_of: int) -> None:
        try:
            version = manifests.read(store.layout.generation(str(found.generation))).watermark_ms
        except Damaged:
            # Pruned since it was opened: then every value is still whole, its user's own, and not of the future.
            here = found.status == Status.FRESH
            written = found.event_count[here]
            if not (found.tokens[here] == truth.stacked(at[here], written)).all() or (written > as_of).any():
                raise WrongValue(f"as of {as_of}: a value that was never published, or later") from None
            return
        if version > as_of:
            raise WrongValue(f"as of {as_of}: read version {version}")
        truth.check(found, at, version, self.forgotten)
