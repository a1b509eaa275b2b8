"""Reading: users to tokens, from one pinned chain of generations.

A :class:`Snapshot` is a chain of generations resolved once: newest first, down to a full one. It never changes, so
whatever is published meanwhile, a batch sees one generation. A lookup is

    hash ▶ one search per generation of the chain ▶ one gather of whole records ▶ checks ▶ decode in cache-sized blocks

all vectorised over the batch. Arrays are caller's; nothing of the mapping leaves this module.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import xxhash

from cache_store.errors import Damaged, SchemaError
from cache_store.format.keys import Users, as_users, hash_of, second_hash_of
from cache_store.format.record import HEADER, PAGE_HEADER
from cache_store.native.crew import Crew
from cache_store.read.found import HeaderFacts, Heaviest, Lookup, RawLookup, Status
from cache_store.read.generation import ABSENT, STREAM_BYTES, Generation
from cache_store.read.watch import FileWatch

__all__ = ["HeaderFacts", "Heaviest", "Lookup", "RawLookup", "Snapshot", "Status"]

_Read = TypeVar("_Read", Lookup, RawLookup)
_BLOCK_BYTES = 1 << 20
"""Bytes of records gathered and decoded at a time by one thread."""


_FRESH, _STALE, _MISSING, _CORRUPT = (np.uint8(s) for s in Status)


@dataclass
class _Found:
    """Distinct users of a batch and where their records lie."""

    hashes: np.ndarray  # uint64 [U]
    shard: np.ndarray  # int64 [U]
    depth: np.ndarray  # int64 [U], position in the chain, -1 where missing
    place: np.ndarray  # int64 [U]
    check: np.ndarray  # uint64 [U], first word of the record by the index
    inverse: np.ndarray | None  # int64 [B], row of each caller's user; None where B = U
    users: np.ndarray  # [B], as asked for


class Snapshot:
    """A resolved chain of generations.

    Args:
        chain: newest first; the last is full.
        verify: check every record on read.
        crew: threads that share the work on a batch; None for the calling thread alone.
        opened_ms: when the files were last looked at, which opening them is.

    Attributes:
        watch: compares the files with the manifests while they are read.
    """

    def __init__(
        self, chain: list[Generation], verify: bool, crew: Crew | None = None, opened_ms: int = 0
    ) -> None:
        self.chain, self.verify, self._crew = chain, verify, crew or Crew(1)
        self.schema = chain[0].schema
        self.name = chain[0].manifest.generation
        self.row_bytes = chain[0].row_bytes
        self._shards = np.uint64(chain[0].manifest.num_shards)
        self._local = threading.local()
        self.watch = FileWatch(chain, verify, opened_ms)

    @property
    def names(self) -> list[str]:
        """Names of the chain, newest first."""
        return [g.manifest.generation for g in self.chain]

    def lookup(
        self,
        users: Users,
        out: np.ndarray | None = None,
        fill: np.ndarray | None = None,
        now_ms: int | None = None,
        max_age_ms: int | None = None,
    ) -> Lookup:
        """See ``Store.lookup``. ``fill``: float32 broadcastable to [S, D] for rows without tokens, None for zeros."""
        found = self._find(users)
        n = len(found.place)
        b = n if found.inverse is None else len(found.inverse)
        out = _buffer(out, (b, self.schema.tokens, self.schema.width), np.float32)
        target = out if found.inverse is None else np.empty((n, *out.shape[1:]), np.float32)
        status, header = np.full(n, _MISSING), np.zeros(n, HEADER)

        def read(generation: Generation, at: np.ndarray | slice) -> None:
            rows = self._scratch(len(found.place[at]))
            self._read(generation, found, at, rows, header, status, None)
            records = rows[:, PAGE_HEADER : PAGE_HEADER + self.schema.record_bytes].view(self.schema.dtype)
            if isinstance(at, slice):
                self.schema.decode(records[:, 0], target[at], target.nbytes >= STREAM_BYTES)
            else:
                block = np.empty((len(rows), *out.shape[1:]), np.float32)
                self.schema.decode(records[:, 0], block)
                target[at] = block

        blocks: list[tuple[Generation, np.ndarray | slice]] = []
        step = max(1, _BLOCK_BYTES // self.row_bytes)
        for generation, here in self._parts(found):
            generation.read_ahead(found.place[here])
            if isinstance(here, slice):
                blocks += [(generation, slice(i, min(i + step, n))) for i in range(0, n, step)]
            else:
                blocks += [(generation, here[i : i + step]) for i in range(0, len(here), step)]
        self._crew.each(len(blocks), lambda i: read(*blocks[i]))
        bad = status >= _MISSING
        if np.count_nonzero(bad):
            target[bad] = 0.0 if fill is None else fill
        if found.inverse is not None:
            np.take(target, found.inverse, axis=0, out=out, mode="clip")
        facts = self._facts(status, header, found.inverse, now_ms, max_age_ms)
        return Lookup(out, *facts, self.name, found.users, self.schema)

    def lookup_raw(
        self,
        users: Users,
        out: np.ndarray | None = None,
        now_ms: int | None = None,
        max_age_ms: int | None = None,
    ) -> RawLookup:
        """See ``Store.lookup_raw``."""
        found = self._find(users)
        n = len(found.place)
        b = n if found.inverse is None else len(found.inverse)
        out = _buffer(out, (b, self.row_bytes), np.uint8)
        target = out if found.inverse is None else np.empty((n, self.row_bytes), np.uint8)
        status, header = np.full(n, _MISSING), np.zeros(n, HEADER)
        for generation, here in self._parts(found):
            place = found.place[here]
            rows = target if isinstance(here, slice) else np.empty((len(place), self.row_bytes), np.uint8)
            generation.read_ahead(place)
            self._read(generation, found, here, rows, header, status, self._crew)
            if rows is not target:
                target[here] = rows
        bad = status >= _MISSING
        if np.count_nonzero(bad):
            target[bad] = 0
        if found.inverse is not None:
            np.take(target, found.inverse, axis=0, out=out, mode="clip")
        return RawLookup(out, *self._facts(status, header, found.inverse, now_ms, max_age_ms), self.name)

    def facts(self, users: Users) -> HeaderFacts:
        """See ``Store.facts``."""
        found = self._find(users)
        n = len(found.place)
        status, header = np.full(n, _MISSING), np.zeros(n, HEADER)
        for generation, here in self._parts(found):
            header[here], good = generation.headers(found.place[here], found.hashes[here])
            status[here] = np.where(good, _FRESH, _CORRUPT)
        return HeaderFacts(*self._facts(status, header, found.inverse, None, None))

    def places(self, users: Users) -> list[tuple[Path, int] | None]:
        """See ``Store.places``."""
        found = self._find(users)
        out: list[tuple[Path, int] | None] = [None] * len(found.place)
        for generation, here in self._parts(found):
            starts = generation.table.files.starts
            files = [generation.folder / name for name in generation.table.names]
            at = np.searchsorted(starts, found.place[here], side="right") - 1
            offset = found.place[here] - np.asarray(starts)[at] - PAGE_HEADER
            for row, k, byte in zip(
                np.arange(len(out))[here].tolist(), at.tolist(), offset.tolist(), strict=True
            ):
                out[row] = files[k], byte
        return out if found.inverse is None else [out[u] for u in found.inverse.tolist()]

    def checks(self, users: Users) -> tuple[np.ndarray, np.ndarray]:
        """Whether each of B users has a record, bool [B], and its check by the index, uint64 [B]; nothing is read."""
        found = self._find(users)
        there, check = found.depth >= 0, found.check
        return (there, check) if found.inverse is None else (there[found.inverse], check[found.inverse])

    def nothing(self, users: Users, out: np.ndarray | None, fill: np.ndarray | None) -> Lookup:
        """What a lookup gives where no generation may be read: every row MISSING."""
        ids = as_users(users, self.schema.user_kind)
        n = len(ids)
        out = _buffer(out, (n, self.schema.tokens, self.schema.width), np.float32)
        out[...] = 0.0 if fill is None else fill
        status, header = np.full(n, _MISSING), np.zeros(n, HEADER)
        return Lookup(out, *self._facts(status, header, None, None, None), "", ids, self.schema)

    def nothing_raw(self, users: Users, out: np.ndarray | None) -> RawLookup:
        """As :meth:`nothing`, for raw lookups."""
        n = len(as_users(users, self.schema.user_kind))
        out = _buffer(out, (n, self.row_bytes), np.uint8)
        out[...] = 0
        status, header = np.full(n, _MISSING), np.zeros(n, HEADER)
        return RawLookup(out, *self._facts(status, header, None, None, None), "")

    def without_future(self, found: _Read, times: np.ndarray, fill: np.ndarray | None = None) -> _Read:
        """Rows that have seen a later event than their time (int64 [B] or one) made MISSING, in place (law 10).

        Only where the generation has seen an event dated after its own publication is there anything to do.
        """
        if self.chain[0].manifest.watermark_ms <= times.min(initial=1 << 62):
            return found
        later = np.flatnonzero((found.status != _CORRUPT) & (found.last_event_ms > times))
        found.status[later] = _MISSING
        for column in (found.event_count, found.last_event_ms, found.summarized_ms):
            column[later] = 0
        if isinstance(found, Lookup):
            found.tokens[later] = 0.0 if fill is None else fill
        else:
            found.rows[later] = 0
        return found

    def states(self, users: Users) -> list[bytes | None]:
        """State of each user from the newest generation of the chain that says anything of it, or None.

        Raises:
            Damaged: a state fails its check.
        """
        found = self._find(users)
        out: list[bytes | None] = [None] * len(found.place)
        ids = as_users(users, self.schema.user_kind)
        second = second_hash_of(ids) if ids.dtype == object else None
        if found.inverse is not None:
            first = np.zeros(len(found.place), np.int64)
            first[found.inverse[::-1]] = np.arange(len(ids))[::-1]
            second = None if second is None else second[first]
        shard = found.shard
        digest = xxhash.xxh3_64_intdigest
        for depth, generation in enumerate(self.chain):
            here = np.flatnonzero(found.depth == depth)
            table = generation.states
            if table is None or not len(here):
                continue
            entry, check, offset = table.index.find(
                shard[here], found.hashes[here], None if second is None else second[here]
            )
            held = entry >= 0
            here, entry, check = here[held], entry[held], check[held]
            start = table.files.starts[shard[here]] + offset[held]
            length = table.index.length(shard[here], entry)
            for u, at, size, word in zip(
                here.tolist(), start.tolist(), length.tolist(), check.tolist(), strict=True
            ):
                value = table.files.data[at : at + size].tobytes()
                if digest(value[8:], seed=int(found.hashes[u])) != word or value[:8] != word.to_bytes(
                    8, "little"
                ):
                    raise Damaged(
                        f"{generation.folder / table.names[shard[u]]}: the state of a user fails its check; run "
                        f"`vista verify`, then `vista refresh --user` for those it names"
                    )
                out[u] = value[8:]
        return out if found.inverse is None else [out[u] for u in found.inverse.tolist()]

    def _find(self, users: Users) -> _Found:
        ids = as_users(users, self.schema.user_kind)
        hashes = hash_of(ids)
        second = second_hash_of(ids) if ids.dtype == object else None
        inverse = None
        order = np.sort(hashes) if len(hashes) > 1 else hashes
        if len(order) > 1 and (order[1:] == order[:-1]).any():
            pairs = hashes if second is None else np.stack([hashes, second], axis=1)
            _, first, inverse = np.unique(pairs, return_index=True, return_inverse=True, axis=0)
            inverse = inverse.reshape(-1)
            hashes, second = hashes[first], None if second is None else second[first]
        n = len(hashes)
        shard = (hashes % self._shards).view(np.int64)
        place, check = self.chain[0].locate(shard, hashes, second)
        depth = np.zeros(n, np.int64)
        if n and place.min() >= 0:  # the common case
            return _Found(hashes, shard, depth, place, check, inverse, ids)
        left = np.flatnonzero(place == ABSENT)
        for d, generation in enumerate(self.chain[1:], 1):
            if not len(left):
                break
            at, word = generation.locate(shard[left], hashes[left], None if second is None else second[left])
            hit = at != ABSENT
            rows = left[hit]
            place[rows], check[rows], depth[rows] = at[hit], word[hit], d
            left = left[~hit]
        depth[place < 0] = -1
        return _Found(hashes, shard, depth, place, check, inverse, ids)

    def _parts(self, found: _Found) -> Iterator[tuple[Generation, np.ndarray | slice]]:
        """Generations that hold some of the users, with their rows; a slice where one holds all, the common case."""
        n = len(found.depth)
        if n and not np.count_nonzero(found.depth):  # all in the newest
            yield self.chain[0], slice(0, n)
            return
        for depth, generation in enumerate(self.chain):
            here = np.flatnonzero(found.depth == depth)
            if len(here):
                yield generation, slice(0, n) if len(here) == n else here

    def _read(
        self, generation: Generation, found: _Found, at: np.ndarray | slice, rows: np.ndarray, header: np.ndarray,
        status: np.ndarray, crew: Crew | None,
    ) -> None:  # fmt: skip
        """Rows of one generation, their headers, and FRESH or CORRUPT, each into its place."""
        head = header[at]
        good = generation.gather(found.place[at], rows, found.hashes[at], self.verify, head, crew)
        if self.verify:
            good &= head["check"] == found.check[at]
        if not isinstance(at, slice):
            header[at] = head
        status[at] = np.where(good, _FRESH, _CORRUPT)

    def _facts(
        self, status: np.ndarray, header: np.ndarray, inverse: np.ndarray | None, now_ms: int | None,
        max_age_ms: int | None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        bad = status >= _MISSING
        if np.count_nonzero(bad):
            header[bad] = np.zeros(1, HEADER)
        if max_age_ms is not None and now_ms is not None:
            status[(status == _FRESH) & (now_ms - header["summarized_ms"] > max_age_ms)] = _STALE
        if inverse is not None:
            status, header = status[inverse], header[inverse]
        return (
            status, header["event_count"].astype(np.int64), header["last_event_ms"].astype(np.int64),
            header["summarized_ms"].astype(np.int64),
        )  # fmt: skip

    def _scratch(self, rows: int) -> np.ndarray:
        """A buffer of this thread for gathered rows, uint8 [rows, row_bytes]."""
        held = getattr(self._local, "rows", None)
        if held is None or len(held) < rows:
            held = self._local.rows = np.empty((rows, self.row_bytes), np.uint8)
        return held[:rows]


def _buffer(out: np.ndarray | None, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    if out is None:
        return np.empty(shape, dtype)
    fits = isinstance(out, np.ndarray) and out.shape == shape and out.dtype == dtype
    if not fits or not out.flags.c_contiguous or not out.flags.writeable:
        raise SchemaError(
            f"out: expected a writable C-contiguous {np.dtype(dtype).name} array of shape {shape}, found "
            f"{type(out).__name__} of {getattr(out, 'dtype', 'another type')}, shape {getattr(out, 'shape', None)}"
        )
    return out
