"""Reading: users to tokens, from one pinned chain of generations.

A :class:`Snapshot` is a chain of generations resolved once: newest first, down to a full one. It never changes, so
whatever is published meanwhile, a batch sees one generation. A lookup is

    hash ▶ one search per generation of the chain ▶ one gather of whole records ▶ checks ▶ decode in cache-sized blocks

all vectorised over the batch. Arrays are caller's; nothing of the mapping leaves this module.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
import xxhash

from cache_store.crew import Crew
from cache_store.errors import Damaged, SchemaError
from cache_store.generation import ABSENT, Generation, headers_of
from cache_store.keys import Users, as_users, hash_of, second_hash_of
from cache_store.record import HEADER, PAGE_HEADER, RECORD_FORMAT, header_check, payload_hashes


class Status(IntEnum):
    """What a row of a lookup is.

    FRESH: as published and within the age limit. STALE: as published, older than the age limit. MISSING: the store
    has no such user. CORRUPT: the record fails a check; its tokens are those of a missing user.
    """

    FRESH = 0
    STALE = 1
    MISSING = 2
    CORRUPT = 3


@dataclass(frozen=True)
class Lookup:
    """What a lookup of B users gives, in the caller's order.

    Attributes:
        tokens: float32 [B, S, D].
        status: uint8 [B], values of :class:`Status`.
        event_count: int64 [B]; 0 where missing or corrupt, as the two times.
        last_event_ms: int64 [B], time of the last event that the summary has seen.
        summarized_ms: int64 [B].
        generation: name of the newest generation of the chain that was read; "" where none was old enough for an
            as-of read; object [B] of such names where each row has a time of its own.
    """

    tokens: np.ndarray
    status: np.ndarray
    event_count: np.ndarray
    last_event_ms: np.ndarray
    summarized_ms: np.ndarray
    generation: str | np.ndarray


@dataclass(frozen=True)
class RawLookup:
    """Records as stored, for a device that decodes them itself.

    Attributes:
        rows: uint8 [B, row_bytes]; the record begins at byte 16 of a row, its fields at ``schema.dtype`` offsets
            from there. Rows that are neither FRESH nor STALE are zero.
        Others as in :class:`Lookup`.
    """

    rows: np.ndarray
    status: np.ndarray
    event_count: np.ndarray
    last_event_ms: np.ndarray
    summarized_ms: np.ndarray
    generation: str


_BLOCK_BYTES = 1 << 20
"""Bytes of records gathered and decoded at a time by one thread."""


# The header as eight words: where the key's hash, the model and (format, flags, zero) are.
_KEY, _MODEL, _FORMAT, _FORMAT_MASK = 2, 4, 7, np.uint64(0xFFFFFFFF)
_FRESH, _STALE, _MISSING, _CORRUPT = (np.uint8(s) for s in Status)


@dataclass
class _Found:
    """Distinct users of a batch and where their records lie."""

    hashes: np.ndarray  # uint64 [U]
    shard: np.ndarray  # int64 [U]
    depth: np.ndarray  # int64 [U], position in the chain, -1 where missing
    place: np.ndarray  # int64 [U]
    entry: np.ndarray  # int64 [U], position in the index of the shard
    inverse: np.ndarray | None  # int64 [B], row of each caller's user; None where B = U


class Snapshot:
    """A resolved chain of generations.

    Args:
        chain: newest first; the last is full.
        verify: check every record on read.
        crew: threads that share the work on a batch; None for the calling thread alone.
    """

    def __init__(self, chain: list[Generation], verify: bool, crew: Crew | None = None) -> None:
        self.chain, self.verify, self._crew = chain, verify, crew or Crew(1)
        self.schema = chain[0].schema
        self.name = chain[0].manifest.generation
        self.row_bytes = chain[0].row_bytes
        self._shards = np.uint64(chain[0].manifest.num_shards)
        self._local = threading.local()

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

        def read(generation: Generation, at: np.ndarray) -> None:
            rows = generation.gather(found.place[at], self._scratch(len(at)))
            header[at] = head = headers_of(rows)
            status[at] = self._judge(rows, head, generation, found, at)
            records = rows[:, PAGE_HEADER : PAGE_HEADER + self.schema.record_bytes].view(self.schema.dtype)[
                :, 0
            ]
            if at[-1] - at[0] + 1 == len(at):
                self.schema.decode(records, target[at[0] : at[-1] + 1])
            else:
                block = np.empty((len(at), *out.shape[1:]), np.float32)
                self.schema.decode(records, block)
                target[at] = block

        blocks: list[tuple[Generation, np.ndarray]] = []
        step = max(1, _BLOCK_BYTES // self.row_bytes)
        for depth, generation in enumerate(self.chain):
            here = np.flatnonzero(found.depth == depth)
            generation.read_ahead(found.place[here])
            blocks += [(generation, here[i : i + step]) for i in range(0, len(here), step)]
        self._crew.each(len(blocks), lambda i: read(*blocks[i]))
        bad = np.flatnonzero(status >= _MISSING)
        if len(bad):
            target[bad] = 0.0 if fill is None else fill
        if found.inverse is not None:
            np.take(target, found.inverse, axis=0, out=out, mode="clip")
        return Lookup(out, *self._facts(status, header, found.inverse, now_ms, max_age_ms), self.name)

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
        for depth, generation in enumerate(self.chain):
            here = np.flatnonzero(found.depth == depth)
            if not len(here):
                continue
            # The common case is everything from one generation, straight into place.
            rows = target if len(here) == n else np.empty((len(here), self.row_bytes), np.uint8)
            generation.read_ahead(found.place[here])
            generation.gather(found.place[here], rows, self._crew)
            header[here] = head = headers_of(rows)
            status[here] = self._judge(rows, head, generation, found, here)
            if rows is not target:
                target[here] = rows
        bad = np.flatnonzero(status >= _MISSING)
        if len(bad):
            target[bad] = 0
        if found.inverse is not None:
            np.take(target, found.inverse, axis=0, out=out, mode="clip")
        return RawLookup(out, *self._facts(status, header, found.inverse, now_ms, max_age_ms), self.name)

    def places(self, users: Users) -> list[tuple[Path, int] | None]:
        """See ``Store.places``."""
        found = self._find(users)
        out: list[tuple[Path, int] | None] = []
        for depth, place in zip(found.depth.tolist(), found.place.tolist(), strict=True):
            if depth < 0:
                out.append(None)
                continue
            generation = self.chain[depth]
            starts = generation.table.files.starts
            k = int(np.searchsorted(starts, place, side="right")) - 1
            out.append((generation.folder / generation.table.names[k], place - int(starts[k]) - PAGE_HEADER))
        return out if found.inverse is None else [out[u] for u in found.inverse.tolist()]

    def nothing(self, users: Users, out: np.ndarray | None, fill: np.ndarray | None) -> Lookup:
        """What a lookup gives where no generation may be read: every row MISSING."""
        n = len(as_users(users, self.schema.user_kind))
        out = _buffer(out, (n, self.schema.tokens, self.schema.width), np.float32)
        out[...] = 0.0 if fill is None else fill
        status, header = np.full(n, _MISSING), np.zeros(n, HEADER)
        return Lookup(out, *self._facts(status, header, None, None, None), "")

    def nothing_raw(self, users: Users, out: np.ndarray | None) -> RawLookup:
        """As :meth:`nothing`, for raw lookups."""
        n = len(as_users(users, self.schema.user_kind))
        out = _buffer(out, (n, self.row_bytes), np.uint8)
        out[...] = 0
        status, header = np.full(n, _MISSING), np.zeros(n, HEADER)
        return RawLookup(out, *self._facts(status, header, None, None, None), "")

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
            entry = table.index.find(
                shard[here], found.hashes[here], None if second is None else second[here]
            )
            here, entry = here[entry >= 0], entry[entry >= 0]
            start = table.files.starts[shard[here]] + table.index.offset(shard[here], entry)
            length = table.index.length(shard[here], entry)
            check = table.index.check(shard[here], entry)
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
        order = np.sort(hashes)
        if (order[1:] == order[:-1]).any():
            pairs = hashes if second is None else np.stack([hashes, second], axis=1)
            _, first, inverse = np.unique(pairs, return_index=True, return_inverse=True, axis=0)
            inverse = inverse.reshape(-1)
            hashes, second = hashes[first], None if second is None else second[first]
        n = len(hashes)
        shard = (hashes % self._shards).view(np.int64)
        place, entry = self.chain[0].locate(shard, hashes, second)
        depth = np.zeros(n, np.int64)
        left = np.flatnonzero(place == ABSENT)
        for d, generation in enumerate(self.chain[1:], 1):
            if not len(left):
                break
            at, found = generation.locate(shard[left], hashes[left], None if second is None else second[left])
            hit = at != ABSENT
            rows = left[hit]
            place[rows], entry[rows], depth[rows] = at[hit], found[hit], d
            left = left[~hit]
        absent = place < 0
        if absent.any():
            depth[absent] = -1
        return _Found(hashes, shard, depth, place, entry, inverse)

    def _judge(
        self, rows: np.ndarray, head: np.ndarray, generation: Generation, found: _Found, at: np.ndarray
    ) -> np.ndarray:
        """FRESH or CORRUPT for each gathered row, uint8 [n]."""
        words = head.view(np.uint64).reshape(-1, 8)
        ok = words[:, _KEY] == found.hashes[at]
        ok &= words[:, _MODEL] == generation.model
        ok &= (words[:, _FORMAT] & _FORMAT_MASK) == RECORD_FORMAT
        if self.verify:
            check = generation.table.index.check(found.shard[at], found.entry[at])
            ok &= (words[:, 0] == check) & (words[:, 0] == header_check(head))
            records = rows[:, PAGE_HEADER : PAGE_HEADER + self.schema.record_bytes]
            ok &= head["payload_hash"] == payload_hashes(records)
        return np.where(ok, _FRESH, _CORRUPT)

    def _facts(
        self, status: np.ndarray, header: np.ndarray, inverse: np.ndarray | None, now_ms: int | None,
        max_age_ms: int | None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        bad = status >= _MISSING
        if bad.any():
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
    if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous or not out.flags.writeable:
        raise SchemaError(
            f"out: expected a writable C-contiguous {np.dtype(dtype).name} array of shape {shape}, found "
            f"{out.dtype.name} of shape {out.shape}"
        )
    return out
