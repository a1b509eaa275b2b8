"""``Store``: one directory of generations, read and changed through one small object."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from cache_store.change import compact, forget, prune, publish, verify
from cache_store.change.changes import Changes, changes
from cache_store.change.fold import count_users, fold
from cache_store.change.forget import ForgetReport
from cache_store.change.prune import PruneReport
from cache_store.change.publish import Publication
from cache_store.change.verify import VerifyReport
from cache_store.errors import Damaged, GenerationUnknown, Incomplete, SchemaError, StoreError
from cache_store.format import lines, shown
from cache_store.format import manifest as manifests
from cache_store.format.keys import Users
from cache_store.format.layout import DEAD_LETTERS, MAIN, MOST_SHARDS, Layout, StoreFormat, storage_errors
from cache_store.format.manifest import Manifest
from cache_store.format.receipt import ShardReceipt
from cache_store.native import library as native
from cache_store.read.counters import LookupCounters
from cache_store.read.lookups import AsOf, Lookups
from cache_store.read.options import ReadOptions, completed, wall_clock
from cache_store.read.snapshot import HeaderFacts, Lookup, RawLookup, Snapshot
from cache_store.read.views import Views


class Store(Lookups, shown.Shown):
    """A store opened for one line of generations. Safe for threads, after a fork, and through pickle.

    Use :meth:`create` or :meth:`open`. A lookup reads the generation that was live at :meth:`open` or the last
    :meth:`refresh`; nothing moves in between.

    Attributes:
        counters: what this process has looked up through this object and its pins: hits, misses, stale and corrupt
            rows, bytes, latencies, the generation's age; ``counters.as_dict()`` at any time.
    """

    def __init__(self, path: str | Path, **options: Unpack[ReadOptions]) -> None:
        given = completed(options)
        self.layout = Layout(path)
        self.line, self.fingerprint = given["line"], given["fingerprint"]
        self.max_age_ms = given["max_age_ms"]
        self.format = self.layout.read_format()
        self._clock, missing = given["clock"] or wall_clock, given["missing"]
        self._missing = missing if isinstance(missing, str) else np.asarray(missing, np.float32)
        self._views = Views(self.layout, given)
        self._pinned: Snapshot | None = None
        self.counters = LookupCounters(self._clock)

    @staticmethod
    def create(
        path: str | Path, *, user_kind: str = "int64", num_shards: int, **options: Unpack[ReadOptions]
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
        if user_kind not in ("int64", "string") or not 1 <= num_shards <= MOST_SHARDS:
            raise SchemaError(
                f"store: expected int64 or string ids and 1 to {MOST_SHARDS} shards, found {wanted}"
            )
        with storage_errors(f"creating {path}"):
            layout.make(wanted)
        return Store(path, **options)

    @staticmethod
    def open(path: str | Path, **options: Unpack[ReadOptions]) -> Store:
        """Open the live generation of a line for reading.

        Args:
            options: see :class:`ReadOptions`: ``line``, ``fingerprint``, ``missing``, ``max_age_ms``, ``verify``,
                ``clock``, ``lease``, ``threads``.

        Raises:
            ValueError: ``threads`` below 1. TypeError: an unknown option.
            FormatUnknown, Damaged
            SchemaError: ``missing`` does not broadcast to [S, D].
            NothingPublished: the line has no live generation.
            FingerprintMismatch: it was made by another model.
        """
        store = Store(path, **options)
        store.refresh()
        return store

    # Reading

    def lookup(
        self, users: Users, out: NDArray[np.float32] | None = None, as_of: AsOf | None = None
    ) -> Lookup:
        """Tokens of B users in their order; a user given twice is read once.

        Args:
            users: int64 [B] or B strings.
            out: float32 [B, S, D], C-contiguous, to be filled; None makes a new one.
            as_of: milliseconds, one time or int64 [B]. Each row reads what was served then: of the line's kept
                generations that have seen nothing later than its time, the newest that was published by then; where
                none was, the one with the latest watermark. So no row sees its own future (law 10), nor what arrived
                late; rows older than every kept generation are MISSING. Chosen among the generations known at the
                last refresh.

        Returns:
            ``tokens`` float32 [B, S, D], ``status`` uint8 [B], ``groups`` by name, ``heaviest(128)`` as items with
            masses. In torch: ``cache_store.torch.feature.SummaryFeature``.

        Raises:
            MissingUsers: the policy is ``raise`` and some users are missing.
            KeyKind, SchemaError, StoreClosed
        """
        return self._counted(users, lambda live, now: self._lookup(live, now, users, out, as_of))

    def lookup_raw(
        self, users: Users, out: NDArray[np.uint8] | None = None, as_of: int | None = None
    ) -> RawLookup:
        """Records of B users as stored, in their order; for decoding on a device.

        Args:
            out: uint8 [B, row_bytes] (:attr:`row_bytes`), C-contiguous; None makes a new one.
            as_of: one time, as in :meth:`lookup`.

        Raises:
            As :meth:`lookup`.
        """
        return self._counted(users, lambda live, now: self._lookup_raw(live, now, users, out, as_of))

    def facts(self, users: Users) -> HeaderFacts:
        """Status, counts and times of B users from the headers of their records, an eighth of the reading; uncounted.

        Raises:
            KeyKind, Damaged, StoreClosed
        """
        return self._current(self._clock()).facts(users)

    def states(self, users: Users) -> list[bytes | None]:
        """Resumable state of each user, or None where the store has none.

        Raises:
            Damaged: a state fails its check. KeyKind, StoreClosed
        """
        snapshot = self._current(self._clock())
        while True:
            try:
                return snapshot.states(users)
            except Damaged:
                # State files are opened on first use; forget may have replaced them since the records were opened.
                again = self._views.reopened(snapshot)
                if again is None:
                    raise
                snapshot = again

    def users(self, bucket: int) -> NDArray[Any]:
        """Users of one bucket in key order, int64 [n] or object [n] of str: those that a lookup would find.

        Raises:
            Damaged, StoreClosed
        """
        if not 0 <= bucket < self.format.num_shards:
            raise StoreError(f"bucket: expected 0 to {self.format.num_shards - 1}, found {bucket}")
        return fold(self._current(self._clock()).chain, bucket).users

    def count_users(self) -> int:
        """How many users a lookup would find; reads the keys of the deltas alone.

        Raises:
            Damaged, StoreClosed
        """
        return count_users(self._current(self._clock()).chain)

    def places(self, users: Users) -> list[tuple[Path, int] | None]:
        """File and byte offset of the row that each user's record lies in, or None; for tools that look at bytes.

        A row is what :meth:`lookup_raw` copies: the record begins 16 bytes into it.
        """
        return self._current(self._clock()).places(users)

    def changes(self, since: str | None = None) -> Iterator[Changes]:
        """What differs from an earlier generation to the one that is read, in blocks; None: all of it.

        Raises:
            GenerationUnknown: ``since`` or one below it is not kept any more. Damaged, StoreClosed
        """
        before = None if since is None else self._views.at(since)
        return changes(before, self._current(self._clock()))

    @property
    def manifest(self) -> Manifest:
        """Of the newest generation of the chain that is read."""
        return self._current(self._clock()).chain[0].manifest

    @property
    def generation_read(self) -> str | None:
        """Name of the generation that lookups read; None where none could be opened yet. Looks at no file."""
        return self._pinned.name if self._pinned is not None else self._views.name

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of :meth:`lookup_raw`."""
        return self._current(self._clock()).row_bytes

    @property
    def kernel(self) -> str:
        """``native`` or ``numpy``: what reads in this process; the same bytes, at another speed."""
        return native.kernel()

    def refresh(self) -> str:
        """Move to the live generation; its name. Lookups in other threads finish on the one they began with.

        A pinned store stays where it is. Files that stay open after a move are checked again: their sizes, and the
        digests of the indexes.

        Raises:
            As :meth:`open`; the store then stays at the generation it had. If that is what is ``Damaged``, it lets go
            of it: lookups raise the same until a refresh finds a good one.
        """
        if self._pinned is not None:
            return self._pinned.name
        before, snapshot = self._views.name, self._views.refresh()
        if before not in (None, snapshot.name):
            self.counters.add("refreshes")
        if self._fill is not None:
            try:
                np.broadcast_to(self._fill, (snapshot.schema.tokens, snapshot.schema.width))
            except ValueError as error:
                raise SchemaError(
                    f"missing: expected an array that broadcasts to {(snapshot.schema.tokens, snapshot.schema.width)}, "
                    f"found shape {self._fill.shape}"
                ) from error
        return snapshot.name

    @contextmanager
    def pin(self) -> Iterator[Store]:
        """This store as it reads now, for several lookups that must see one generation while others refresh.

        Pickled, it becomes a store at that generation, which its own ``refresh`` moves.
        """
        snapshot = self._current(self._clock())
        frozen = object.__new__(Store)
        vars(frozen).update(vars(self))
        frozen._pinned = snapshot
        with self._views.pinned(snapshot):
            yield frozen

    def generations(self) -> list[Manifest]:
        """Manifests of all kept generations of the store, ascending; unreadable ones are left out (see ``verify``)."""
        return list(manifests.readable(self.layout))

    def generation(self, name: str) -> Manifest:
        """Manifest of one kept generation.

        Raises:
            GenerationUnknown, Damaged, FormatUnknown
        """
        if name not in self.layout.generation_names():
            raise GenerationUnknown(f"{self.layout.root}: no generation {name}; run `vista status`")
        return manifests.read(self.layout.generation(name))

    def dead_letters(self, generation: str) -> Path | None:
        """Parquet file of the users that a generation could not write, and why; None where it has none.

        Raises:
            As :meth:`generation`.
        """
        has = DEAD_LETTERS in self.generation(generation).extra_files
        return self.layout.generation(generation) / DEAD_LETTERS if has else None

    def lines(self) -> dict[str, str]:
        """Every line with its live generation.

        Raises:
            Damaged
        """
        return {line: lines.live(self.layout, line).live for line in self.layout.line_names()}

    # Changing

    def stage(self, run_id: str) -> Path:
        """Folder in which the shards of a run are built; the same for the same run.

        Called before the run reads its input: whom ``forget`` removes from then on is left out when it is published.

        Raises:
            Damaged: FORGOTTEN cannot be read. StorageFull, ReadOnlyStorage
        """
        return publish.stage(self.layout, run_id, publish.beginning(self.layout))

    def staging(self, run_id: str) -> Path:
        """Where :meth:`stage` builds the shards of a run; nothing is made."""
        return self.layout.run(run_id)

    def published(self, run_id: str) -> Manifest | None:
        """Manifest of the generation that a run has published, or None; a killed run asks before it goes on."""
        return publish.find_run(self.layout, run_id)

    def publish(
        self,
        staging: str | Path,
        receipts: Sequence[ShardReceipt | Mapping[str, Any]],
        publication: Publication,
    ) -> Manifest:
        """Make a run's shards the live generation of a line; its manifest. A run publishes once, however often asked.

        Args:
            staging: from :meth:`stage`.
            receipts: of every shard.

        Raises:
            Incomplete, PublishConflict, FingerprintMismatch, SchemaError, ChainTooDeep, GenerationUnknown
            StorageFull, ReadOnlyStorage: the earlier generation stays live.
        """
        if publication.published_ms is None:
            publication = dataclasses.replace(publication, published_ms=self._clock())
        return publish.publish(self.layout, Path(staging), receipts, publication)

    def compact(
        self, newest: int | None = None, generation: str | None = None, spread: forget.Spread = forget.in_turn
    ) -> str:
        """Fold the live chain of this line into one full generation and move on; the name of what is then live.

        Deltas that are published meanwhile stay, and lie on the fold afterwards.

        Args:
            newest: fold only so many of its newest generations, into one delta over the others. Readers then search
                less, and the large generations below are not written again.
            generation: the newest to fold, on which the live one lies; the live one by default.
            spread: does the work on the shards, as in :meth:`forget`.

        Raises:
            PublishConflict: what is live does not lie on it. Incomplete: someone was forgotten meanwhile.
            GenerationUnknown, Damaged, StorageFull, ReadOnlyStorage
        """
        began = publish.beginning(self.layout)
        self.refresh()
        snapshot = self._views.at(generation) if generation else self._current(self._clock())
        again: Snapshot | None = snapshot
        while again is not None:
            try:
                compact.compact(self.layout, self.line, again, self._clock(), began, newest, spread)
                break
            except (Damaged, Incomplete):
                # forget may have replaced files of the chain, or taken a finished shard away: then once more.
                again = self._views.reopened(again)
                if again is None:
                    raise
        return self.refresh()

    def build_fold(self, generation: str, newest: int | None) -> None:
        """Build what ``compact(newest, generation)`` makes live, and do not.

        Raises:
            as :meth:`compact`, but PublishConflict.
        """
        began = publish.beginning(self.layout)
        snapshot = self._views.at(generation)
        compact.build(self.layout, self.line, snapshot, began, newest)

    def fold_due(self, max_depth: int, room: float = math.inf) -> int | None:
        """What to pass to :meth:`compact` as ``newest`` where the live chain has ``max_depth`` deltas, or they are
        ``room`` times as large as the full generation, else 0."""
        self.refresh()
        sizes = [g.manifest.records + g.manifest.tombstones for g in self._current(self._clock()).chain]
        return compact.due(sizes, max_depth, room)

    def fold(self, max_depth: int) -> str | None:
        """Fold what is due where the live chain has ``max_depth`` deltas (``compact.due``); what is then live, or None.

        Raises:
            as :meth:`compact`.
        """
        newest = self.fold_due(max_depth)
        return None if newest == 0 else self.compact(newest)

    def prune(self, keep: int = 2, staging_ms: int = prune.STAGING_MS, dry_run: bool = False) -> PruneReport:
        """Delete generations that no line keeps and no reader has in use, and the remains of crashes.

        Args:
            keep: earlier generations kept per line beside the live one.
            staging_ms: staging folders untouched for so long are removed.

        Raises:
            Damaged, ReadOnlyStorage, StoreError
        """
        return prune.prune(self.layout, keep, self._clock, staging_ms, dry_run)

    def rollback(self, to: str | None = None) -> str:
        """Make an earlier generation of this line live again, in one step, and move to it; its name.

        Args:
            to: one of the line's earlier generations; None takes the newest of them.

        Raises:
            NothingPublished: there is none to go back to. GenerationUnknown, Damaged, ReadOnlyStorage
        """
        lines.rollback(self.layout, self.line, to)
        return self.refresh()

    def promote(self, line: str | None = None, *, onto: str = MAIN, generation: str | None = None) -> str:
        """Make a line's live generation (or a named one) the live one of ``onto``, in one step; its name.

        ``rollback`` on ``onto`` takes it back in one step.

        Raises:
            NothingPublished, GenerationUnknown, Damaged, ReadOnlyStorage
        """
        return lines.promote(self.layout, line or self.line, onto, generation)

    def forget(self, users: Users, spread: forget.Spread = forget.in_turn) -> ForgetReport:
        """Remove users from every generation of every line. Other readers stop serving them at their next refresh.

        What was summarised of them until now does not come back, by ``pull`` or by a run under way.

        Args:
            spread: does the work on the shards, which others may share; one by one in this process by default.

        Raises:
            Damaged: a generation cannot be read; all others are done. KeyKind, StorageFull, ReadOnlyStorage
        """
        report = forget.forget(self.layout, users, self._clock(), spread)
        if self.layout.pointer(self.line).exists():
            self.refresh()
        return report

    def verify(self, generation: str | None = None) -> VerifyReport:
        """Read everything once and compare it with what it should be; changes nothing.

        Raises:
            FormatUnknown
        """
        return verify.verify(self.layout, generation)

    def close(self) -> None:
        """Let go of the files and the lease; the store cannot be read any more."""
        self._views.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _shown(self) -> dict[str, object]:
        return {
            "": str(self.layout.root),
            "line": self.line,
            "generation": self.generation_read or "none opened",
            "users": self.format.user_kind,
            "shards": self.format.num_shards,
        }

    def __getstate__(self) -> dict[str, Any]:
        views = self._views if self._pinned is None else self._views.standing_at(self._pinned)
        return {**vars(self), "_views": views, "_pinned": None}
