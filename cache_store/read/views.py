"""Which generation a reader sees: the live one of its line as of the last refresh, or an earlier one by watermark.

Resolving follows the pointer once, takes a lease, looks at the pointer again, and opens the whole chain. A chain is
replaced as one object, so threads finish their batch on what they began with. After a fork the child takes a lease
and a lock of its own; mappings are shared.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache_store.errors import (
    Damaged,
    FingerprintMismatch,
    GenerationUnknown,
    LimitReached,
    StoreClosed,
    StoreError,
)
from cache_store.format import lines
from cache_store.format import manifest as manifests
from cache_store.format.layout import Layout
from cache_store.native.crew import Crew
from cache_store.read.generation import Generation
from cache_store.read.leases import Lease
from cache_store.read.options import ReadOptions, wall_clock
from cache_store.read.snapshot import Snapshot
from cache_store.read.watch import FileWatch, look_at_all

AS_OF_OPEN = 32
"""Chains kept open for as-of reads, least recently used first out."""

_ATTEMPTS = 100


class Views:
    """Snapshots of one line for one reader, as its options say."""

    def __init__(self, layout: Layout, options: ReadOptions) -> None:
        self.layout, self.line, self.fingerprint = layout, options["line"], options["fingerprint"]
        self.verify, self._wants_lease = options["verify"], options["lease"]
        self._clock, self._crew = options["clock"] or wall_clock, Crew(options["threads"])
        self._snapshot: Snapshot | None = None
        self._closed = False
        self._start()

    def _start(self) -> None:
        """State that belongs to one process."""
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._lease: Lease | None = None
        self._pins: Counter[str] = Counter()
        self._generations: dict[str, Generation] = {}
        self._history: tuple[str, ...] = ()
        self._times: dict[str, tuple[int, int]] = {}
        self._earlier: OrderedDict[str, Snapshot] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        names = ("layout", "line", "fingerprint", "verify", "_clock", "_wants_lease", "_crew", "_closed")
        return {name: vars(self)[name] for name in names} | {"pinned": self.name}

    def standing_at(self, snapshot: Snapshot) -> Views:
        """These views as if last refreshed when that was live; to be pickled."""
        twin = object.__new__(Views)
        vars(twin).update(vars(self), _snapshot=snapshot)
        return twin

    def __setstate__(self, state: dict[str, object]) -> None:
        pinned = state.pop("pinned")
        vars(self).update(state)
        self._snapshot = None
        self._start()
        if isinstance(pinned, str):
            self._snapshot = self._take(pinned)
            self._history = self._names()

    @property
    def name(self) -> str | None:
        """Generation as of the last refresh; None before the first."""
        return self._snapshot.name if self._snapshot else None

    def current(self, now_ms: int, pinned: Snapshot | None = None) -> Snapshot:
        """The chain as of the last refresh, or ``pinned``; looked after, as all that is read.

        Raises:
            StoreClosed. Damaged: a file was cut or an index altered; and as :meth:`refresh`, where that let go of it.
        """
        if self._pid != os.getpid():
            self._after_fork()
        snapshot = pinned or self._snapshot
        if snapshot is None:
            if self._closed:
                raise StoreClosed(f"{self.layout.root}: the store was closed; open it again")
            return self.refresh()
        if self._lease is not None:
            self._lease.renew(now_ms)
        snapshot.watch.look(now_ms)
        return snapshot

    def refresh(self) -> Snapshot:
        """Move to the live generation of the line. What stays open after a move is checked again: sizes, indexes.

        Raises:
            NothingPublished, Damaged, FormatUnknown, FingerprintMismatch, StoreClosed: the view stays where it was,
                unless the damage is in what it reads; it then lets go of that, and every lookup tries to refresh.
        """
        if self._pid != os.getpid():
            self._after_fork()
        with self._lock:
            if self._closed:
                raise StoreClosed(f"{self.layout.root}: the store was closed; open it again")
            for attempt in range(_ATTEMPTS):
                pointer = lines.live(self.layout, self.line)
                self._hold(pointer.live)
                if lines.live(self.layout, self.line).live != pointer.live:
                    continue  # it moved before the lease could protect it
                try:
                    snapshot = self._resolve(pointer.live, moved=self.name not in (None, pointer.live))
                except StoreError:
                    # Pruned, or sealed anew by forget, while being opened? Then there is something newer to open.
                    if attempt < 3 or lines.read_pointer(self.layout, self.line) != pointer:
                        continue
                    self._hold()
                    raise
                self._snapshot = snapshot
                self._history = (pointer.live, *pointer.earlier)
                self._earlier.clear()
                self._let_go()
                self._hold()
                return snapshot
            raise Damaged(
                f"{self.layout.root}: line {self.line!r} changes faster than it can be opened; try again"
            )

    def reopened(self, snapshot: Snapshot) -> Snapshot | None:
        """The same chain opened anew, if ``forget`` has sealed one of its generations since; else None.

        Raises:
            Damaged, GenerationUnknown
        """
        with self._lock:
            if all(manifests.read_seal(g.folder) == g.seal for g in snapshot.chain):
                return None
            fresh = self._resolve(snapshot.name)
            if self._snapshot is snapshot:
                self._snapshot = fresh
            return fresh

    def as_of(self, time_ms: int) -> Snapshot | None:
        """The kept generation of the line that was served at ``time_ms``, or could have been; or None.

        Only those that have seen nothing later count: watermark not after it. Of these, the newest that was published
        by then; where none was (history from before the store was there), the one with the latest watermark, and among
        equals the oldest, for later ones have seen what arrived late.
        """
        with self._lock:
            for _ in range(_ATTEMPTS):
                name = self._served_at(time_ms)
                if name is None:
                    return None
                if self._snapshot is not None and self._snapshot.name == name:
                    return self._snapshot
                if name in self._earlier:
                    self._earlier.move_to_end(name)
                    self._earlier[name].watch.look(self._clock())
                    return self._earlier[name]
                try:
                    snapshot = self._take(name)
                except LimitReached:
                    if not self._earlier:
                        raise
                    self._earlier.clear()  # as many are open as the system allows: begin anew with this one
                    self._let_go()
                    continue
                except StoreError:
                    kept = self._names()
                    if kept == self._history:
                        raise
                    self._history = kept  # pruned since the last refresh: choose among what is still kept
                    continue
                self._earlier[name] = snapshot
                while len(self._earlier) > AS_OF_OPEN:
                    self._earlier.popitem(last=False)
                    self._let_go()
                self._hold()
                return snapshot
            raise Damaged(
                f"{self.layout.root}: line {self.line!r} changes faster than it can be read; try again"
            )

    def at(self, name: str) -> Snapshot:
        """A kept generation with all below it.

        Raises:
            GenerationUnknown, Damaged
        """
        with self._lock:
            try:
                return self._take(name)
            finally:
                self._let_go()
                self._hold()

    @contextmanager
    def pinned(self, snapshot: Snapshot) -> Iterator[None]:
        """Keep a snapshot's generations under lease whatever is refreshed meanwhile."""
        with self._lock:
            self._pins[snapshot.name] += 1
        try:
            yield
        finally:
            if self._pid != os.getpid():
                self._after_fork()
            with self._lock:
                self._pins[snapshot.name] -= 1
                self._pins += Counter()
                if not self._closed:
                    self._hold()

    def close(self) -> None:
        with self._lock:
            self._closed, self._snapshot = True, None
            self._generations, self._history = {}, ()
            self._earlier.clear()
            if self._lease is not None:
                self._lease.drop()
                self._lease = None

    def _after_fork(self) -> None:
        # The parent's lock may have been held by a thread that does not exist here; mappings are still good.
        snapshot, history, pins = self._snapshot, self._history, self._pins
        self._start()
        self._history, self._pins = history, pins
        if snapshot is not None:
            self._generations = {g.manifest.generation: g for g in snapshot.chain}
            snapshot.watch = FileWatch(snapshot.chain, self.verify, self._clock())
        if snapshot is not None or pins:
            self._hold()

    def _let_go(self) -> None:
        """Of generations that no open chain needs; their files are unmapped with the last batch that reads them."""
        open_chains = [c for c in (self._snapshot, *self._earlier.values()) if c is not None]
        kept = {name for chain in open_chains for name in chain.names}
        self._generations = {n: g for n, g in self._generations.items() if n in kept}

    def _take(self, name: str) -> Snapshot:
        self._hold(name)
        return self._resolve(name)

    def _hold(self, *more: str) -> None:
        if not self._wants_lease:
            return
        now = self._clock()
        if self._lease is None:
            self._lease = Lease(self.layout, now)
        names = {*more, *self._pins, *self._earlier}
        if self._snapshot is not None:
            names.add(self._snapshot.name)
        self._lease.hold(names, now)

    def _names(self) -> tuple[str, ...]:
        pointer = lines.read_pointer(self.layout, self.line)
        return (pointer.live, *pointer.earlier) if pointer else ()

    def _served_at(self, time_ms: int) -> str | None:
        past = []
        for name in self._history:
            watermark, published = self._times_of(name)
            if watermark <= time_ms:
                if published <= time_ms:
                    return name
                past.append((watermark, -int(name), name))
        return max(past)[2] if past else None

    def _times_of(self, name: str) -> tuple[int, int]:
        """Watermark and time of publication. An event dated after the publication does not hold up a generation for
        ever: what it was of is left out row by row."""
        if name not in self._times:
            try:
                manifest = manifests.read(self.layout.generation(name))
            except Damaged:
                if self.layout.generation(name).is_dir():
                    raise
                return 1 << 63, 1 << 63  # pruned: never chosen
            seen = min(manifest.watermark_ms, manifest.published_ms)
            self._times[name] = seen, manifest.published_ms
        return self._times[name]

    def _resolve(self, name: str, moved: bool = False) -> Snapshot:
        """Open a generation and all below it, reusing what is open and unchanged."""
        chain: list[Generation] = []
        wanted: str | None = name
        store = self.layout.read_format()
        while wanted is not None:  # it ends: a parent's number is lower
            folder = self.layout.generation(wanted)
            if not folder.is_dir():
                above = chain[-1].manifest if chain else None
                raise GenerationUnknown(manifests.unknown(self.layout, wanted, above))
            held = self._open(folder, self._generations.get(wanted), moved)
            manifests.check_of_store(held.manifest, store, folder)
            if chain:
                manifests.check_lies_on(chain[-1].manifest, held.manifest, chain[-1].folder)
            self._generations[wanted] = held
            chain.append(held)
            wanted = held.manifest.parent
        if self._snapshot is not None and [id(g) for g in self._snapshot.chain] == [id(g) for g in chain]:
            return self._snapshot
        return Snapshot(chain, self.verify, self._crew, self._clock())

    def _open(self, folder: Path, held: Generation | None, moved: bool) -> Generation:
        """A generation as it is sealed now; ``held``, checked again after a move, if it was opened with that seal."""
        for _ in range(_ATTEMPTS):
            seal = manifests.read_seal(folder)
            try:
                if held is not None and held.seal == seal:
                    if moved:
                        look_at_all(held, self.verify)
                    return held
                manifest = manifests.read(folder)
                if self.fingerprint is not None and manifest.fingerprint != self.fingerprint:
                    raise FingerprintMismatch(
                        f"{folder}: made by model {manifest.fingerprint}, asked for {self.fingerprint}; run "
                        f"`vista summarize` with this model, or open its line"
                    )
                return Generation(folder, manifest, self.verify, seal)
            except Damaged:
                # Sealed anew by forget while being opened? Then the files of the new seal are there.
                if manifests.read_seal(folder) == seal:
                    self._generations.pop(folder.name, None)
                    if self._snapshot is not None and held in self._snapshot.chain:
                        self._snapshot = None
                    raise
        raise Damaged(f"{folder}: is sealed anew faster than it can be opened; try again")
