"""Building one shard of a generation: records in key order, tombstones of a delta, and the states beside them.

    writer = ShardWriter(staging, shard=3, num_shards=16, schema=schema, fingerprint=model.fingerprint)
    for batch in batches:                       # users in key order
        writer.add(batch.users, batch.tokens, batch.event_count, batch.last_event_ms, now)
    receipt = writer.finish()                   # goes to Store.publish

A shard appears under its name only when it is whole, checked and on disk. Whatever happens before leaves a hidden
temporary file that ``prune`` removes. Finishing a shard that is already there with the same content keeps the one
that is there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from cache_store.errors import SchemaError, WrongBucket
from cache_store.format.keys import Users, as_users, hash_of, keys_of, second_hash_of
from cache_store.format.layout import shard_name, state_name, storage_errors, write_file
from cache_store.format.receipt import FileFact, ShardReceipt, finished, receipt_path
from cache_store.format.record import (
    HEADER,
    HEADER_BYTES,
    TOMBSTONE,
    RecordSchema,
    as_rows,
    model_word,
    tombstones,
)
from cache_store.write.sorted_file import SortedFile, taken_away

_BLOCK_BYTES = 1 << 23
"""Records encoded at a time; keeps the encoder's working set in cache and its memory bounded."""


class ShardWriter:
    """Writes one shard. Not for several threads; a context manager that abandons what was not finished.

    Args:
        folder: the run's staging folder (``Store.stage``).
        shard, num_shards: which bucket; users of another bucket are refused.
        schema: groups, codecs and the kind of ids.
        fingerprint: of the model that made the tokens; every record carries it.
        with_states: also write the state file.
        anew: replace a shard of this run that is there already, whatever it holds, when this one is finished.
        revision: above 0, the shard replaces an earlier revision in a published generation (``forget``).
    """

    def __init__(
        self,
        folder: str | Path,
        shard: int,
        num_shards: int,
        schema: RecordSchema,
        with_states: bool = False,
        *,
        fingerprint: str,
        revision: int = 0,
        anew: bool = False,
    ) -> None:
        if not 0 <= shard < num_shards:
            raise WrongBucket(f"shard {shard}: expected 0 to {num_shards - 1}")
        self.folder, self.shard, self.num_shards, self.schema = Path(folder), shard, num_shards, schema
        self.fingerprint, self.revision, self.anew = fingerprint, revision, anew
        self._model = model_word(fingerprint)
        second = schema.user_kind == "string"
        with storage_errors(str(self.folder)):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._records = SortedFile(
            self.folder,
            shard_name(shard, num_shards, revision),
            lengths=False,
            second=second,
            empty_is=HEADER_BYTES,
        )
        self._states = None
        if with_states:
            self._states = SortedFile(
                self.folder, state_name(shard, num_shards, revision), lengths=True, second=second
            )
        self._content, self._state_content = xxhash.xxh3_128(), xxhash.xxh3_128()
        self._record_count = self._tombstone_count = 0
        self._block = max(1, _BLOCK_BYTES // schema.record_bytes)

    def add(
        self,
        users: Users,
        tokens: Mapping[str, np.ndarray],
        event_count: np.ndarray,
        last_event_ms: np.ndarray,
        summarized_ms: np.ndarray | int,
    ) -> None:
        """Append the records of n users.

        Args:
            users: int64 [n] or n strings, in strictly ascending key order, also from call to call.
            tokens: group name to float32 [n, S_g, D].
            event_count: int64 [n].
            last_event_ms, summarized_ms: int64 [n], milliseconds.

        Raises:
            OutOfOrder, WrongBucket, KeyKind, SchemaError
            Unstorable: a codec refuses the tokens of some users; nothing of this call was written.
            StorageFull, ReadOnlyStorage
        """
        users, hashes, second = self._identify(users)
        n = len(users)
        self.schema.check_tokens(tokens, n)
        count, last = _column(event_count, n, "event_count"), _column(last_event_ms, n, "last_event_ms")
        summarized = np.broadcast_to(np.asarray(summarized_ms, np.int64), (n,))
        blocks = [slice(i, min(i + self._block, n)) for i in range(0, n, self._block)]
        self.schema.check_storable(tokens, users)
        for s in blocks:
            part = {name: block[s] for name, block in tokens.items()}
            records = self.schema.encode(
                part, hashes[s], second[s], self._model, count[s], last[s], summarized[s]
            )  # fmt: skip
            self._append(users[s], hashes[s], second[s], list(as_rows(records)), records["header"])

    def add_sealed(self, users: np.ndarray, rows: Sequence[Any]) -> None:
        """Append values as another shard of the same schema and model holds them, tombstones too; nothing is encoded.

        Args:
            rows: n buffers, each a whole record or a tombstone, already checked by the caller.

        Raises:
            As :meth:`add`.
        """
        users, hashes, second = self._identify(users)
        headers = np.frombuffer(b"".join(bytes(r[:HEADER_BYTES]) for r in rows), HEADER)
        self._append(users, hashes, second, rows, headers)

    def _append(
        self,
        users: np.ndarray,
        hashes: np.ndarray,
        second: np.ndarray,
        rows: Sequence[Any],
        headers: np.ndarray,
    ) -> None:
        keys = keys_of(users)
        self._records.append(keys, rows, hashes, second)
        gone = (headers["flags"] & TOMBSTONE) != 0
        self._tombstone_count += int(gone.sum())
        self._record_count += int((~gone).sum())
        facts = np.zeros(len(users), _CONTENT)
        facts["tombstone"] = gone
        for name in ("payload_hash", "event_count", "last_event_ms"):
            facts[name] = np.where(gone, 0, headers[name])
        _digest(self._content, keys, facts, users.dtype == object)

    def add_tombstones(self, users: Users, summarized_ms: int = 0) -> None:
        """Append users that a delta removes. Shares one ascending order with :meth:`add`.

        Raises:
            OutOfOrder, WrongBucket, KeyKind, StorageFull, ReadOnlyStorage
        """
        self.add_sealed(as_users(users, self.schema.user_kind), self.tombstones(users, summarized_ms))

    def tombstones(self, users: Users, summarized_ms: int = 0) -> list[Any]:
        """Values that :meth:`add_sealed` takes for users who are gone."""
        _, hashes, second = self._identify(users)
        return list(as_rows(tombstones(hashes, second, self._model, summarized_ms)))

    def add_states(self, users: Users, states: Sequence[bytes], checks: Sequence[int] | None = None) -> None:
        """Append resumable states, in an ascending order of their own.

        Args:
            checks: check words that came with the states, where they are copied; None computes them.

        Raises:
            SchemaError: the writer was made without states, or the lengths differ.
            OutOfOrder, WrongBucket, KeyKind, StorageFull, ReadOnlyStorage
        """
        if self._states is None:
            raise SchemaError("add_states: this writer was made with with_states=False")
        users, hashes, second = self._identify(users)
        if len(users) != len(states):
            raise SchemaError(f"add_states: {len(users)} users, {len(states)} states")
        keys = keys_of(users)
        digest = xxhash.xxh3_64_intdigest
        if checks is None:
            checks = [digest(s, seed=h) for s, h in zip(states, hashes.tolist(), strict=True)]
        values = [c.to_bytes(8, "little") + s for c, s in zip(checks, states, strict=True)]
        self._states.append(keys, values, hashes, second)
        facts = np.zeros(len(users), _CONTENT)
        facts["payload_hash"] = checks
        _digest(self._state_content, keys, facts, users.dtype == object)

    def finish(self) -> ShardReceipt:
        """Check, fsync and rename the files; the receipt is also left beside them.

        A shard that is already finished in this folder with the same content and summarising times is kept, and its
        receipt returned, unless this writer was made to write it ``anew``.

        Raises:
            Incomplete: what was built was taken away meanwhile; build the shard again.
            Damaged, StorageFull, ReadOnlyStorage
        """
        receipt = ShardReceipt(
            self.shard, self.num_shards, self.fingerprint, self.schema.as_dict(), self._record_count,
            self._tombstone_count, self._states.count if self._states else 0, self._content.hexdigest(),
            self._state_content.hexdigest(), revision=self.revision,
        )  # fmt: skip
        if self.revision:
            receipt.files.update(self._finish_files())
            return receipt
        before = None if self.anew else finished(self.folder, self.shard, self.num_shards)
        if before is not None and {**vars(before), "files": {}} == vars(receipt):
            self.abandon()
            return before
        path = receipt_path(self.folder, self.shard, self.num_shards)
        with taken_away(path), storage_errors(str(path)):
            path.unlink(missing_ok=True)
            receipt.files.update(self._finish_files())
            write_file(path, (json.dumps(receipt.as_dict(), sort_keys=True) + "\n").encode())
        return receipt

    def _finish_files(self) -> dict[str, FileFact]:
        return {**self._records.finish(), **(self._states.finish() if self._states else {})}

    def abandon(self) -> None:
        """Drop what was not finished."""
        self._records.abandon()
        if self._states:
            self._states.abandon()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()

    def _identify(self, users: Users) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        users = as_users(users, self.schema.user_kind)
        hashes = hash_of(users)
        wrong = np.flatnonzero(hashes % np.uint64(self.num_shards) != self.shard)
        if len(wrong):
            user, bucket = users[wrong[0]], int(hashes[wrong[0]] % np.uint64(self.num_shards))
            raise WrongBucket(
                f"shard {self.shard} of {self.num_shards}: user {user!r} belongs to {bucket}; use "
                f"cache_store.bucket_of to route users"
            )
        return users, hashes, second_hash_of(users)


_CONTENT = np.dtype(
    [
        ("key", ">u8"),
        ("payload_hash", "<u8"),
        ("last_event_ms", "<i8"),
        ("event_count", "<u4"),
        ("tombstone", "<u4"),
    ]
)
"""What the content digest reads of a user; for string ids ``key`` is the key's length and the key bytes follow."""


def _digest(digest: Any, keys: list[bytes], facts: np.ndarray, strings: bool) -> None:
    if not strings:
        facts["key"] = np.frombuffer(b"".join(keys), ">u8")
        digest.update(facts.tobytes())
        return
    facts["key"] = [len(k) for k in keys]
    flat, size = facts.tobytes(), _CONTENT.itemsize
    digest.update(b"".join(flat[i * size : (i + 1) * size] + k for i, k in enumerate(keys)))


def _column(values: np.ndarray, n: int, name: str) -> np.ndarray:
    out = np.asarray(values, np.int64)
    if out.shape != (n,):
        raise SchemaError(f"{name}: expected shape ({n},), found {out.shape}")
    return out
