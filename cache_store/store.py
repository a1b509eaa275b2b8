"""``Store``: one directory of generations, read and changed through one small object."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from cache_store import lines, publish
from cache_store import manifest as manifests
from cache_store.errors import (
    FingerprintMismatch,
    FormatUnknown,
    GenerationUnknown,
    MissingUsers,
    SchemaError,
    StoreClosed,
    StoreError,
)
from cache_store.generation import Generation
from cache_store.keys import Users, as_users
from cache_store.layout import MAIN, Layout, StoreFormat, fsync_folder, storage_errors, write_file
from cache_store.manifest import Manifest
from cache_store.reader import Lookup, RawLookup, Snapshot, Status
from cache_store.writer import ShardReceipt

Clock = Callable[[], int]
"""Milliseconds since the Unix epoch."""


def wall_clock() -> int:
    """The clock used where none is given."""
    return time.time_ns() // 1_000_000


class Store:
    """A store opened for one line of generations. Safe for threads, after a fork, and through pickle.

    Use :meth:`create` or :meth:`open`. A lookup reads the generation that was live at :meth:`open` or the last
    :meth:`refresh`; nothing moves in between.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        line: str = MAIN,
        fingerprint: str | None = None,
        missing: str | np.ndarray = "zeros",
        max_age_ms: int | None = None,
        verify: bool = True,
        clock: Clock | None = None,
    ) -> None:
        self.layout = Layout(path)
        self.line, self.fingerprint, self.max_age_ms, self.verify_reads = (
            line,
            fingerprint,
            max_age_ms,
            verify,
        )
        self.format = self.layout.read_format()
        self._clock = clock or wall_clock
        if isinstance(missing, str) and missing not in ("zeros", "raise"):
            raise StoreError(f"missing: expected 'zeros', 'raise' or an array [S, D], found {missing!r}")
        self._missing = missing if isinstance(missing, str) else np.asarray(missing, np.float32)
        self._lock = threading.RLock()
        self._generations: dict[str, Generation] = {}
        self._snapshot: Snapshot | None = None
        self._closed = False

    @staticmethod
    def create(
        path: str | Path, *, user_kind: str = "int64", num_shards: int, line: str = MAIN, **options: Any
    ) -> Store:
        """Make an empty store, or open the one that is there if it was made with the same facts.

        Args:
            user_kind: ``int64`` or ``string``; never changes.
            num_shards: buckets of ``cache_store.bucket_of``; never changes.
            options: as for :meth:`open`.

        Raises:
            FormatUnknown: the folder is not empty and no store, or a store with other facts.
            StorageFull, ReadOnlyStorage
        """
        layout = Layout(path)
        wanted = StoreFormat(user_kind, num_shards)
        if user_kind not in ("int64", "string") or num_shards < 1:
            raise SchemaError(f"store: expected int64 or string ids and 1 or more shards, found {wanted}")
        with storage_errors(f"creating {path}"):
            layout.root.mkdir(parents=True, exist_ok=True)
            if not layout.format.exists():
                foreign = [p.name for p in layout.root.iterdir() if not p.name.startswith(".FORMAT")]
                if foreign:
                    raise FormatUnknown(
                        f"{path}: expected an empty folder, found {sorted(foreign)[:5]}; choose another"
                    )
                write_file(layout.format, wanted.text().encode())
            if layout.read_format() != wanted:
                raise FormatUnknown(
                    f"{path}: is a store of {layout.read_format()}, expected {wanted}; choose another"
                )
            for folder in (layout.generations, layout.staging, layout.lines, layout.leases):
                folder.mkdir(exist_ok=True)
            fsync_folder(layout.root)
        return Store(path, line=line, **options)

    @staticmethod
    def open(
        path: str | Path,
        line: str = MAIN,
        fingerprint: str | None = None,
        missing: str | np.ndarray = "zeros",
        max_age_ms: int | None = None,
        verify: bool = True,
        clock: Clock | None = None,
    ) -> Store:
        """Open the live generation of a line for reading.

        Args:
            line: which pointer to follow.
            fingerprint: of the model that will use the tokens; None takes any model's, knowingly.
            missing: what a missing user gets: ``zeros``, ``raise``, or float32 broadcastable to [S, D] (a learned
                cold-start token, say). Corrupt records get zeros or that array, never an exception.
            max_age_ms: records summarised longer ago are STALE; None for no limit.
            verify: check every record on read (check word of the index, header, payload hash), and every index when a
                generation is opened. False still recognises another user's or another model's record.
            clock: milliseconds now; the wall clock by default.

        Raises:
            FormatUnknown, Damaged
            NothingPublished: the line has no live generation.
            FingerprintMismatch: it was made by another model.
        """
        store = Store(
            path,
            line=line,
            fingerprint=fingerprint,
            missing=missing,
            max_age_ms=max_age_ms,
            verify=verify,
            clock=clock,
        )
        store.refresh()
        return store

    # Reading

    def lookup(self, users: Users, out: np.ndarray | None = None, as_of: int | None = None) -> Lookup:
        """Tokens of B users in their order; a user given twice is read once.

        Args:
            users: int64 [B] or B strings.
            out: float32 [B, S, D], C-contiguous, to be filled; None makes a new one.
            as_of: milliseconds; read the newest kept generation of the line whose watermark is not later.

        Raises:
            MissingUsers: the policy is ``raise`` and some users are missing.
            KeyKind, SchemaError, StoreClosed, NothingPublished
        """
        snapshot = self._snapshot_for(as_of)
        fill = self._fill(snapshot)
        found = snapshot.lookup(users, out, fill, self._clock(), self.max_age_ms)
        self._raise_missing(users, found.status)
        return found

    def lookup_raw(self, users: Users, out: np.ndarray | None = None, as_of: int | None = None) -> RawLookup:
        """Records of B users as stored, in their order; for decoding on a device.

        Args:
            out: uint8 [B, row_bytes] (:attr:`row_bytes`), C-contiguous; None makes a new one.

        Raises:
            As :meth:`lookup`.
        """
        found = self._snapshot_for(as_of).lookup_raw(users, out, self._clock(), self.max_age_ms)
        self._raise_missing(users, found.status)
        return found

    def states(self, users: Users) -> list[bytes | None]:
        """Resumable state of each user, or None where the store has none.

        Raises:
            Damaged: a state fails its check. KeyKind, StoreClosed
        """
        return self._current().states(users)

    def users(self, bucket: int) -> np.ndarray:
        """Users of one bucket in key order, int64 [n] or object [n] of str: those that a lookup would find.

        Raises:
            Damaged, StoreClosed
        """
        merged: dict[Any, bool] = {}
        for generation in reversed(self._current().chain):
            ids, gone = generation.users(bucket)
            merged.update(zip(ids.tolist(), (~gone).tolist(), strict=True))
        alive = as_users([u for u, here in merged.items() if here], self.format.user_kind)
        if alive.dtype == object:
            return alive[np.argsort([u.encode() for u in alive])] if len(alive) else alive
        return np.sort(alive)

    @property
    def manifest(self) -> Manifest:
        """Of the newest generation of the pinned chain."""
        return self._current().chain[0].manifest

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of :meth:`lookup_raw`."""
        return self._current().row_bytes

    def refresh(self) -> str:
        """Move to the live generation; its name. Lookups in other threads finish on the one they began with.

        Raises:
            As :meth:`open`; the store then stays at the generation it had.
        """
        with self._lock:
            if self._closed:
                raise StoreClosed(f"{self.layout.root}: the store was closed; open it again")
            name = lines.live(self.layout, self.line).live
            if self._snapshot is None or self._snapshot.name != name:
                self._snapshot = self._resolve(name)
                kept = set(self._snapshot.names)
                self._generations = {n: g for n, g in self._generations.items() if n in kept}
            return name

    @contextmanager
    def pin(self) -> Iterator[Snapshot]:
        """The chain that this store reads now, for several lookups that must see one generation."""
        yield self._current()

    def generations(self) -> list[Manifest]:
        """Manifests of all kept generations of the store, ascending; unreadable ones are left out."""
        out = []
        for name in self.layout.generation_names():
            try:
                out.append(manifests.read(self.layout.generation(name)))
            except StoreError:
                continue
        return out

    # Changing

    def stage(self, run_id: str) -> Path:
        """Folder in which the shards of a run are built; the same for the same run.

        Raises:
            StorageFull, ReadOnlyStorage
        """
        path = self.layout.run(run_id)
        with storage_errors(f"staging run {run_id}"):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def publish(
        self,
        staging: str | Path,
        receipts: Sequence[ShardReceipt | Mapping[str, Any]],
        *,
        line: str = MAIN,
        kind: str = "full",
        parent: str | None = None,
        fingerprint: str,
        table_snapshot: int | str | None = None,
        watermark_ms: int,
        expected: int,
        dead_letters: int = 0,
        num_shards: int | None = None,
        published_ms: int | None = None,
        max_depth: int = publish.MAX_DEPTH,
        force: bool = False,
    ) -> str:
        """Make a run's shards the live generation of a line; its name. A run publishes once, however often asked.

        Args:
            staging: from :meth:`stage`. receipts: of every shard.
            kind: ``full``, or ``delta`` over ``parent``.
            parent: the generation that was live when the run began; refused if it no longer is. Needed for a delta.
            watermark_ms: no summary has seen a later event.
            expected: users the run had to write: records + tombstones + dead letters (law 8).
            force: go live even if another publisher was faster.

        Raises:
            Incomplete, PublishConflict, FingerprintMismatch, SchemaError, ChainTooDeep, GenerationUnknown
            StorageFull, ReadOnlyStorage: the earlier generation stays live.
        """
        if num_shards is not None and num_shards != self.format.num_shards:
            raise SchemaError(f"num_shards: the store has {self.format.num_shards}, found {num_shards}")
        return publish.publish(
            self.layout, Path(staging), receipts, line=line, kind=kind, parent=parent, fingerprint=fingerprint,
            table_snapshot=table_snapshot, watermark_ms=watermark_ms, expected=expected, dead_letters=dead_letters,
            published_ms=self._clock() if published_ms is None else published_ms, max_depth=max_depth, force=force,
        )  # fmt: skip

    def close(self) -> None:
        """Let go of the files; the store cannot be read any more."""
        with self._lock:
            self._closed, self._snapshot, self._generations = True, None, {}

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        snapshot = state.pop("_snapshot")
        del state["_lock"], state["_generations"]
        state["_pinned"] = snapshot.name if snapshot else None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        pinned = state.pop("_pinned")
        vars(self).update(state)
        self._lock, self._generations, self._snapshot = threading.RLock(), {}, None
        if pinned is not None:
            self._snapshot = self._resolve(pinned)

    def _current(self) -> Snapshot:
        snapshot = self._snapshot
        if snapshot is None:
            if self._closed:
                raise StoreClosed(f"{self.layout.root}: the store was closed; open it again")
            self.refresh()
            snapshot = self._snapshot
            if snapshot is None:
                raise StoreClosed(f"{self.layout.root}: the store was closed; open it again")
        return snapshot

    def _snapshot_for(self, as_of: int | None) -> Snapshot:
        if as_of is None:
            return self._current()
        raise NotImplementedError

    def _resolve(self, name: str) -> Snapshot:
        """Open a generation and all below it."""
        chain: list[Generation] = []
        wanted: str | None = name
        while wanted is not None:
            generation = self._generations.get(wanted)
            if generation is None:
                folder = self.layout.generation(wanted)
                if not folder.is_dir():
                    raise GenerationUnknown(
                        f"{self.layout.root}: no generation {wanted}; run `vista rollback`"
                    )
                manifest = manifests.read(folder)
                if self.fingerprint is not None and manifest.fingerprint != self.fingerprint:
                    raise FingerprintMismatch(
                        f"{folder}: made by model {manifest.fingerprint}, asked for {self.fingerprint}; run "
                        f"`vista summarize` with this model, or open its line"
                    )
                generation = Generation(folder, manifest, self.verify_reads)
                self._generations[wanted] = generation
            chain.append(generation)
            wanted = generation.manifest.parent
        return Snapshot(chain, self.verify_reads)

    def _fill(self, snapshot: Snapshot) -> np.ndarray | None:
        return None if isinstance(self._missing, str) else self._missing

    def _raise_missing(self, users: Users, status: np.ndarray) -> None:
        if isinstance(self._missing, str) and self._missing == "raise" and (status == Status.MISSING).any():
            ids = as_users(users, self.format.user_kind)[status == Status.MISSING].tolist()
            raise MissingUsers(
                f"{len(ids)} users are not in generation {self.manifest.generation}, first {ids[0]!r}; run "
                f"`vista refresh`, or open the store with missing='zeros' or a cold-start token",
                ids,
            )
