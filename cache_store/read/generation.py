"""One published generation, mapped for reading. No LMDB environment, no lock, nothing that a fork could break."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from cache_store.errors import Damaged
from cache_store.format import index, pages
from cache_store.format.keys import from_keys
from cache_store.format.manifest import Manifest
from cache_store.format.receipt import ENDINGS, FileFact
from cache_store.format.record import (
    HEADER,
    HEADER_BYTES,
    PAGE,
    PAGE_HEADER,
    RECORD_FORMAT,
    header_check,
    model_word,
    payload_hashes,
    sound,
)
from cache_store.native import library as native
from cache_store.native.crew import Crew
from cache_store.read.mapping import FileRange, major_faults

_PIECE_BYTES = 2 << 20
"""Fewer bytes than this are not worth a thread."""
STREAM_BYTES = 12 << 20
"""So many bytes are written past the caches: who reads them next finds the first of them gone from there anyway."""
_PROBE = 16
"""Rows by which :meth:`Generation.read_ahead` judges whether the disk is involved."""

# The header as eight words: where the key's hash, the model and (format, flags, zero) are.
_KEY, _MODEL, _FORMAT, _FORMAT_MASK = 2, 4, 7, np.uint64(0xFFFFFFFF)

ABSENT, GONE = -1, -2
"""What :meth:`Generation.locate` answers for users it does not hold, and for its tombstones."""
NOWHERE = 1 << 62
"""And for a record that its index puts before the file: past every range, so that its row is CORRUPT."""


class ShardFiles:
    """The data files of all shards and their indexes, as two ranges of addresses.

    Args:
        states: those of the states, instead of the records.
        verify: compare every index with the digest in the manifest. The records follow from it, one by one, on read.

    Raises:
        Damaged: a file has not the stated size, or an index is not that of its file, its shard and its kind.
        NotPermitted, LimitReached
    """

    def __init__(self, folder: Path, manifest: Manifest, states: bool, verify: bool) -> None:
        facts, shards = manifest.files, manifest.shards
        stems = [s.state_stem if states else s.record_stem for s in shards]
        data, idx = ([f"{stem}{ending}" for stem in stems] for ending in ENDINGS)
        self.names, self.index_names = data, idx
        self.sizes = [facts[n].bytes for n in data]
        self.files = FileRange([folder / n for n in data], self.sizes)
        self._indexes = FileRange([folder / n for n in idx], [facts[n].bytes for n in idx])
        self._index_sizes = [facts[n].bytes for n in idx]
        strings, shapes = manifest.schema.user_kind == "string", []
        for k, name in enumerate(idx):
            raw, s, path = self.index_data(k), shards[k], folder / name
            if verify and xxhash.xxh3_128_hexdigest(raw) != facts[name].digest:
                what = "does not have the digest that the manifest states"
                raise Damaged(
                    f"{path}: {what}; run `vista verify`, then `vista rollback` or rebuild the shard"
                )
            if len(raw) % 8:
                what = f"expected whole 64-bit words, found {len(raw)} bytes"
                raise Damaged(f"{path}: {what}; run `vista verify`")
            found = index.shape(raw.view(np.uint64), str(path))
            if found.file_bytes != self.sizes[k]:
                raise Damaged(f"{path}: is the index of another file; run `vista verify`")
            if (found.second >= 0, found.length >= 0) != (strings, states):
                raise Damaged(f"{path}: is the index of other ids or values; run `vista verify`")
            if found.n != (stated := s.states if states else s.records + s.tombstones):
                what = f"expected {stated} users, as the manifest states, found {found.n}"
                raise Damaged(f"{path}: {what}; run `vista verify`")
            shapes.append(found)
        self.counts = [s.n for s in shapes]
        words = self._indexes.data.view(np.uint64)
        self.index = index.IndexSet(words, (self._indexes.starts // 8).tolist(), shapes)

    def shard_data(self, shard: int) -> np.ndarray:
        """uint8 [file bytes] of one data file, a view."""
        start = int(self.files.starts[shard])
        return self.files.data[start : start + self.sizes[shard]]

    def index_data(self, shard: int) -> np.ndarray:
        """uint8 [file bytes] of one index, a view."""
        start = int(self._indexes.starts[shard])
        return self._indexes.data[start : start + self._index_sizes[shard]]


class Generation:
    """A manifest and its mapped files.

    Attributes:
        manifest: as read from the folder.
        seal: READY as it was when the manifest was read.
        row_bytes: bytes of one gathered row: 16 bytes that belong to LMDB, then the record, then nothing of use.
    """

    def __init__(self, folder: Path, manifest: Manifest, verify: bool, seal: bytes = b"") -> None:
        self.folder, self.manifest, self.seal, self._verify = folder, manifest, seal, verify
        schema = manifest.schema
        self.schema = schema
        self.model = model_word(manifest.fingerprint)
        self.table = ShardFiles(folder, manifest, False, verify)
        self.row_bytes = schema.row_bytes
        flat, size = self.table.files.data, self.row_bytes
        # Every place at which a row can begin, as overlapping items: one index then copies a whole row.
        self._unit = PAGE if schema.paged else 1
        self._rows = np.lib.stride_tricks.as_strided(
            flat[:size].view(f"V{size}"),
            shape=((len(flat) - size) // self._unit + 1,),
            strides=(self._unit,),
            writeable=False,
        )
        self._pages = flat.view(f"V{PAGE}")
        self._step = np.arange(max(1, schema.pages))

    @cached_property
    def states(self) -> ShardFiles | None:
        """The state files, mapped on first use; None where the generation has none."""
        if not self.manifest.shards[0].with_states:
            return None
        return ShardFiles(self.folder, self.manifest, True, self._verify)

    def locate(
        self, shard: np.ndarray, hashes: np.ndarray, second: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Place of each user's record as a byte of the file range, or ABSENT or GONE; and its check in the index.

        Args:
            shard: int64 [n].
            hashes: uint64 [n].
            second: uint64 [n] for string ids.

        Returns:
            int64 [n]; uint64 [n].
        """
        entry, check, offset = self.table.index.find(shard, hashes, second)
        place = offset + self.table.files.starts.take(shard)
        odd = offset <= 0
        if np.count_nonzero(odd):
            place[odd] = np.where(offset[odd] == 0, GONE, NOWHERE)
        place[entry < 0] = ABSENT
        return place, check

    def read_ahead(self, place: np.ndarray) -> None:
        """Where rows have to come from the disk, ask for all of them at once, so that the disk works on many.

        Args:
            place: int64 [n], bytes of the range; the first few tell whether the disk is involved.
        """
        if not self.schema.paged:
            return
        faults = major_faults()
        self.table.files.data.take(place[:_PROBE], mode="clip")
        if major_faults() > faults:
            self.table.files.will_need(place - PAGE_HEADER, self.row_bytes)

    def gather(
        self,
        place: np.ndarray,
        out: np.ndarray,
        keys: np.ndarray,
        verify: bool,
        head: np.ndarray,
        crew: Crew | None = None,
    ) -> np.ndarray:
        """Copy the rows at ``place`` (int64 [n], bytes of the range) and judge the records in them.

        Args:
            out: uint8 [n, row_bytes], contiguous, filled.
            keys: uint64 [n], hash of the user each record should be of.
            verify: check word and payload hash of the header are compared with what they are of. Else a record is only
                asked whose it is, and of which model.
            head: HEADER [n], contiguous, filled with a copy of the records' headers.
            crew: threads that share the work; None for the calling thread alone.

        Returns:
            bool [n]: the row holds the record of this user.
        """
        good = np.empty(len(place), bool)
        pieces = 1 if crew is None else min(crew.threads, out.nbytes // _PIECE_BYTES)
        if pieces <= 1:
            crew, pieces = None, 1
        if self.schema.paged and native.library is not None:
            native.library.copy_rows(
                self.table.files.address, len(self.table.files.data), place, out, out.nbytes >= STREAM_BYTES,
                self.schema.record_bytes - HEADER_BYTES, keys, self.model, verify, head, good, crew,
            )  # fmt: skip
            return good

        def piece(i: int) -> None:
            # One a thread: where threads trade the interpreter more often, its hand-over eats the gain.
            at = slice(len(place) * i // pieces, len(place) * (i + 1) // pieces)
            self._copy(place[at], out[at], head[at])
            good[at] = self._judge(out[at], head[at], keys[at], verify)

        if crew is None:
            piece(0)
        else:
            crew.each(pieces, piece)
        return good

    def headers(self, place: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Headers of the records at ``place``, HEADER [n], and which of them are these users', bool [n].

        Args:
            keys: uint64 [n], hash of the user each record should be of.
        """
        flat = self.table.files.data
        at = place[:, None] + np.arange(HEADER_BYTES)
        head = np.take(flat, at, mode="clip").view(HEADER).reshape(-1)
        return head, sound(head, keys, self.model)

    def _copy(self, place: np.ndarray, out: np.ndarray, head: np.ndarray) -> None:
        start = (place - PAGE_HEADER) // self._unit
        if self.schema.paged:
            wanted = (start[:, None] + self._step).ravel()
            np.take(self._pages, wanted, out=out.reshape(-1).view(f"V{PAGE}"), mode="clip")
        else:
            rows = self._rows[np.clip(start, 0, len(self._rows) - 1)]
            out[...] = rows.view(np.uint8).reshape(out.shape)
        head.view(f"V{HEADER_BYTES}")[...] = np.ascontiguousarray(
            out[:, PAGE_HEADER : PAGE_HEADER + HEADER_BYTES]
        ).view(f"V{HEADER_BYTES}")[:, 0]

    def _judge(self, rows: np.ndarray, head: np.ndarray, keys: np.ndarray, verify: bool) -> np.ndarray:
        words = head.view(np.uint64).reshape(-1, 8)
        good: np.ndarray = words[:, _KEY] == keys
        good &= words[:, _MODEL] == self.model
        good &= (words[:, _FORMAT] & _FORMAT_MASK) == RECORD_FORMAT
        if verify:
            good &= head["check"] == header_check(head)
            records = rows[:, PAGE_HEADER : PAGE_HEADER + self.schema.record_bytes]
            good &= head["payload_hash"] == payload_hashes(records)
        return good

    def keys(self, shard: int, states: bool = False) -> pages.LeafEntries:
        """Keys of one shard in key order with the places of their values in its file.

        Raises:
            Damaged
        """
        table = self.states if states else self.table
        if table is None:
            return pages.LeafEntries([], np.zeros(0, np.int64), np.zeros(0, np.int64))
        entries = pages.walk(table.shard_data(shard), str(self.folder / table.names[shard]))
        if len(entries.keys) != table.counts[shard]:
            raise Damaged(f"{self.folder / table.names[shard]}: file and index differ; run `vista verify`")
        return entries

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Path and bytes of every shard's files, states included."""
        for shard in self.manifest.shards:
            for name, fact in shard.files.items():
                yield f"{self.folder}/{name}", fact.bytes

    def indexes(self, shard: int) -> Iterator[tuple[str, FileFact]]:
        """Path and facts of the indexes of one shard: of its records, and of its states."""
        for name, fact in self.manifest.shards[shard].files.items():
            if name.endswith(ENDINGS[1]):
                yield f"{self.folder}/{name}", fact

    def users(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Users of one shard in key order, and bool [n]: which are tombstones."""
        entries = self.keys(shard)
        return from_keys(entries.keys, self.schema.user_kind), entries.length == HEADER_BYTES
