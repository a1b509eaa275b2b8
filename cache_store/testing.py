"""Stores for tests: of given tokens (:func:`stored`), or of arithmetic (:class:`Truth`), so that any wrong value shows.

For tests of what reads a store: no model, no job, a few milliseconds. Nothing here is for service.

What a user of a :class:`Truth` has at a version is a function.

A version ``(k, d)`` is the d-th delta over the k-th full generation; as a number, ``1000 k + d``, it is the
generation's watermark. Full k holds most users; each delta changes some and removes some. Tokens, counts, times and
states of a user say at which version it was last written, so a value of another generation, another user, or of half
a write is not mistaken for the right one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cache_store import Group, Publication, RecordSchema, ShardWriter, Status, Store, bucket_of, finished
from cache_store.format.keys import Users, as_users, hash_of
from cache_store.format.receipt import ShardReceipt
from cache_store.read.snapshot import Lookup

FINGERPRINT = "truth-1"
SCHEMA_GROUPS = (
    Group("seeds", 2, 16, "float16"),
    Group("slots", 3, 16, "log8"),
    Group("small", 1, 16, "int8"),
)
STEP = 1000
"""Versions per full generation."""


class WrongValue(AssertionError):
    """A reader saw something that was never published together."""


def mix(*words: int | np.ndarray) -> np.ndarray:
    """One hash per element of broadcastable words, uint64."""
    h: np.ndarray = np.asarray(0x9E3779B97F4A7C15, np.uint64)
    with np.errstate(over="ignore"):
        for word in words:
            w = np.asarray(word).astype(np.uint64)
            h = (h ^ w) * np.uint64(0xBF58476D1CE4E5B9)
            h = (h ^ (h >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
            h = h ^ (h >> np.uint64(32))
    return np.asarray(h)


def stored(
    path: str | Path, schema: RecordSchema, tokens: Mapping[str, np.ndarray], users: Users | None = None,
    *, fingerprint: str = FINGERPRINT, last_event_ms: int = 1,
) -> Store:  # fmt: skip
    """A new store of one generation and one shard, open for reading.

    Args:
        path: a folder that is not there yet.
        tokens: group name to float32 [n, S_g, D]; what is read is that rounded by the group's codec.
        users: n distinct ids; 0 to n - 1 by default.
        last_event_ms: of every user; so are the summary's own time and the watermark.
    """
    count = len(next(iter(tokens.values())))
    ids = as_users(np.arange(count) if users is None else users, schema.user_kind)
    order = np.argsort(ids, kind="stable")
    store = Store.create(path, user_kind=schema.user_kind, num_shards=1)
    folder = store.stage("stored")
    with ShardWriter(folder, 0, 1, schema, fingerprint=fingerprint) as writer:
        for start in range(0, count, 256):
            rows = order[start : start + 256]
            ones = np.ones(len(rows), np.int64)
            times = ones * last_event_ms
            writer.add(ids[rows], {name: x[rows] for name, x in tokens.items()}, ones, times, times)
        receipt = writer.finish()
    wanted = Publication(fingerprint=fingerprint, watermark_ms=last_event_ms, expected=count)
    store.publish(folder, [receipt], wanted)
    return Store.open(path, line="main")


@dataclass(frozen=True)
class Truth:
    """What the store must hold.

    Attributes:
        num_users: ids are ``7 i - 50``, or ``user-i`` where ``strings``.
        num_shards: of the store.
        strings: string ids.
        record_scale: tokens of the first group times this; larger records, same laws.
    """

    num_users: int = 40
    num_shards: int = 2
    strings: bool = False
    record_scale: int = 1
    _written: dict[int, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def schema(self) -> RecordSchema:
        first = SCHEMA_GROUPS[0]
        first = Group(first.name, first.tokens * self.record_scale, first.width, first.codec)
        return RecordSchema((first, *SCHEMA_GROUPS[1:]), "string" if self.strings else "int64")

    @cached_property
    def users(self) -> np.ndarray:
        """All users there may be, in key order."""
        ids = np.arange(self.num_users) * 7 - 50
        return as_users(sorted(f"user-{i}" for i in range(self.num_users)) if self.strings else ids)

    @cached_property
    def words(self) -> np.ndarray:
        """One number per user, uint64."""
        return hash_of(self.users)

    @cached_property
    def buckets(self) -> np.ndarray:
        return bucket_of(self.users, self.num_shards)

    def create(self, path: str | Path) -> Store:
        return Store.create(path, user_kind=self.schema.user_kind, num_shards=self.num_shards)

    def written(self, version: int) -> np.ndarray:
        """Version at which each user was last written as of ``version``; -1 where it is not there. int64 [users]."""
        known = self._written.get(version)
        if known is None:
            k, d = divmod(version, STEP)
            if d == 0:
                known = np.where(mix(self.words, k, 1) % 8 != 0, version, -1)
            else:
                known = self.written(version - 1).copy()
                known[self.changed(version)] = version
                known[self.removed(version)] = -1
            self._written[version] = known
        return known

    def changed(self, version: int) -> np.ndarray:
        """bool [users]: written by this delta."""
        drawn: np.ndarray = mix(self.words, version, 2) % 4 == 0
        return drawn

    def removed(self, version: int) -> np.ndarray:
        """bool [users]: tombstones of this delta."""
        drawn: np.ndarray = (mix(self.words, version, 2) % 4 == 1) & (mix(self.words, version, 3) % 4 == 0)
        return drawn

    def tokens(self, at: np.ndarray, version: np.ndarray) -> dict[str, np.ndarray]:
        """Tokens by group of users (indices) as written at ``version`` [n]; exact in their codecs."""
        out = {}
        for number, g in enumerate(self.schema.groups):
            place = np.arange(g.tokens * g.width).reshape(g.tokens, g.width)
            h = mix(self.words[at][:, None, None], version[:, None, None], number + 10, place)
            if g.codec == "float16":
                values = (h % 2048).astype(np.float32) - 1024
            elif g.codec == "log8":
                values = np.exp2((h % 16).astype(np.float32))
            else:
                values = (h % 255).astype(np.float32) - 127
                values[..., 0] = 127  # the scale is then exactly one
            out[g.name] = values.astype(np.float32)
        return out

    def stacked(self, at: np.ndarray, version: np.ndarray) -> np.ndarray:
        """The same as float32 [n, S, D]."""
        return np.concatenate(list(self.tokens(at, version).values()), axis=1)

    def last_event_ms(self, at: np.ndarray, version: np.ndarray) -> np.ndarray:
        return (mix(self.words[at], version, 4) % 1_000_000_007).astype(np.int64)

    def state(self, at: int, version: int) -> bytes:
        """Resumable state of a user; its length differs from version to version."""
        word = int(self.words[at])
        return f"{word}:{version};".encode() * (1 + (word ^ version) % 5)

    def build(self, store: Store, run_id: str, version: int, base: int | None) -> list[ShardReceipt]:
        """Shards of one run, as a job makes them: what an earlier attempt finished is kept. Receipts."""
        folder = store.stage(run_id)
        receipts = []
        for shard in range(self.num_shards):
            receipt = finished(folder, shard, self.num_shards)
            if receipt is None:
                receipt = self._shard(folder, shard, version, base)
            receipts.append(receipt)
        return receipts

    def _shard(self, folder: Path, shard: int, version: int, base: int | None) -> ShardReceipt:
        mine = self.buckets == shard
        if base is None:
            write, drop = mine & (self.written(version) >= 0), np.zeros(self.num_users, bool)
        else:
            # Everything that differs from the base, so that a delta may lie on any version.
            before, now = self.written(base), self.written(version)
            write, drop = mine & (now >= 0) & (before != now), mine & (now < 0) & (before >= 0)
        with ShardWriter(
            folder, shard, self.num_shards, self.schema, True, fingerprint=FINGERPRINT
        ) as writer:
            for i in np.flatnonzero(write | drop):
                at = np.array([i])
                if drop[i]:
                    writer.add_tombstones(self.users[at])
                    continue
                v = self.written(version)[at]
                writer.add(self.users[at], self.tokens(at, v), v, self.last_event_ms(at, v), v)
                writer.add_states(self.users[at], [self.state(int(i), int(v[0]))])
            return writer.finish()

    def publish(
        self, store: Store, run_id: str, version: int, *, parent: str | None = None, base: int | None = None,
        line: str = "main", **options: Any,
    ) -> str:  # fmt: skip
        """Build and publish one version: full, or (with ``parent`` holding version ``base``) a delta."""
        receipts = self.build(store, run_id, version, base)
        expected = sum(r.records + r.tombstones for r in receipts)
        wanted = Publication(
            line=line, kind="full" if base is None else "delta", parent=parent, fingerprint=FINGERPRINT,
            watermark_ms=version, expected=expected, **options,
        )  # fmt: skip
        return store.publish(store.staging(run_id), receipts, wanted).generation

    def check(self, found: Lookup, at: np.ndarray, version: int, forgotten: np.ndarray | None = None) -> None:
        """Compare a lookup of the users ``at`` (indices) with the version it must show.

        Args:
            forgotten: bool [users] that may be missing whatever the version says.

        Raises:
            WrongValue
        """
        status, written = np.asarray(found.status), self.written(version)[at]
        there = written >= 0
        excused = np.zeros(len(at), bool) if forgotten is None else forgotten[at]
        missing = status == Status.MISSING
        wrong = np.where(there, (status != Status.FRESH) & ~(missing & excused), ~missing)
        if wrong.any():
            i = int(np.flatnonzero(wrong)[0])
            raise WrongValue(
                f"{found.generation} (version {version}): user {self.users[at[i]]!r} is {Status(int(status[i])).name}, "
                f"expected {'FRESH' if there[i] else 'MISSING'}"
            )
        good = np.flatnonzero(there & ~missing)
        expected = self.stacked(at[good], written[good])
        same = (np.asarray(found.tokens)[good] == expected).all(axis=(1, 2))
        same &= np.asarray(found.event_count)[good] == written[good]
        same &= np.asarray(found.last_event_ms)[good] == self.last_event_ms(at[good], written[good])
        if not same.all():
            i = int(good[np.flatnonzero(~same)[0]])
            raise WrongValue(
                f"{found.generation} (version {version}): user {self.users[at[i]]!r} has the values of "
                f"{int(np.asarray(found.event_count)[i])}, expected those of {int(written[i])}"
            )

    def check_states(
        self, states: list[bytes | None], at: np.ndarray, version: int, forgotten: np.ndarray | None = None
    ) -> None:
        """The same for ``Store.states``."""
        for i, state in zip(at.tolist(), states, strict=True):
            v = int(self.written(version)[i])
            expected = self.state(i, v) if v >= 0 else None
            if state != expected and not (state is None and forgotten is not None and forgotten[i]):
                raise WrongValue(
                    f"version {version}: user {self.users[i]!r} has state {state!r}, expected {expected!r}"
                )

    def check_all(self, store: Store, version: int, forgotten: np.ndarray | None = None) -> None:
        """Every user, its tokens and its state, of the generation that ``store`` reads."""
        at = np.arange(self.num_users)
        self.check(store.lookup(self.users), at, version, forgotten)
        self.check_states(store.states(self.users), at, version, forgotten)
