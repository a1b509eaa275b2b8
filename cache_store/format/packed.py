"""Receipts of very many shards as one table: what a manifest holds instead of an object for each.

All shards of a generation have the same schema, model and names of files, so 216 characters say what is left of one.
Receipts are made from the table as they are asked for.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np

from cache_store.format.checked import MOST_BYTES, MOST_COUNT, NotSound
from cache_store.format.receipt import MOST_REVISIONS, FileFact, ShardReceipt

PACKED_FROM = 1_024
"""Shards of a generation from which on it is written so; its manifest has 10 MB at 50,000, of objects it had 69."""

ROW = np.dtype(
    [
        ("records", "<u8"), ("tombstones", "<u8"), ("states", "<u8"), ("revision", "<u4"), ("with_states", "<u4"),
        ("content", "V16"), ("state_content", "V16"), ("bytes", "<u8", 4), ("digest", "V16", 4),
    ]
)  # fmt: skip
"""Of one shard; files are the records, their index, the states, their index."""
_COUNTS = {"records": MOST_COUNT, "tombstones": MOST_COUNT, "states": MOST_COUNT, "revision": MOST_REVISIONS}


class PackedShards(Sequence[ShardReceipt]):
    """Receipts of all shards of a generation.

    Args:
        rows: ROW [num_shards].

    Raises:
        NotSound: counts out of range, or some shards have states and some have not.
    """

    def __init__(self, rows: np.ndarray, fingerprint: str, schema: Mapping[str, Any]):
        self.rows, self._fingerprint, self._schema = rows, fingerprint, dict(schema)
        for name, most in (*_COUNTS.items(), ("bytes", MOST_BYTES)):
            if rows[name].max() > most:
                raise NotSound(
                    f"field packed_shards: expected {name} of at most {most}, found {rows[name].max()}"
                )
        with_states = rows["with_states"]
        if with_states.max() > 1 or (with_states != with_states[0]).any():
            raise NotSound("field packed_shards: expected states of all shards or of none")
        if not with_states[0] and rows["states"].any():
            raise NotSound("field packed_shards: expected no states, for there are no files of them")

    @staticmethod
    def of(shards: Sequence[ShardReceipt]) -> PackedShards:
        rows = np.zeros(len(shards), ROW)
        for row, s in zip(rows, shards, strict=True):
            for name in (*_COUNTS, "with_states"):
                row[name] = getattr(s, name)
            row["content"], row["state_content"] = bytes.fromhex(s.content), bytes.fromhex(s.state_content)
            for n, name in enumerate(s.file_names(s.with_states)):
                row["bytes"][n], row["digest"][n] = s.files[name].bytes, bytes.fromhex(s.files[name].digest)
        return PackedShards(rows, shards[0].fingerprint, shards[0].schema)

    def text(self) -> str:
        return base64.b64encode(self.rows.tobytes()).decode()

    @staticmethod
    def parse(text: str, num_shards: int, fingerprint: str, schema: Mapping[str, Any]) -> PackedShards:
        """Inverse of :meth:`text`.

        Raises:
            NotSound
        """
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise NotSound(f"field packed_shards: {error}") from error
        if len(data) != num_shards * ROW.itemsize:
            found = f"{len(data)} bytes"
            raise NotSound(
                f"field packed_shards: expected {ROW.itemsize} bytes for each of {num_shards}, found {found}"
            )
        return PackedShards(np.frombuffer(data, ROW), fingerprint, schema)

    def total(self, name: str) -> int:
        """Sum of a count, or of ``bytes``, over all shards."""
        return sum(self.rows[name].ravel().tolist())

    def contents(self) -> list[list[str]]:
        """[content, state_content] of every shard."""
        both = [self.rows[name].tobytes().hex() for name in ("content", "state_content")]
        return [[text[at : at + 32] for text in both] for at in range(0, 32 * len(self), 32)]

    @cached_property
    def files(self) -> Mapping[str, FileFact]:
        return {name: fact for shard in self for name, fact in shard.files.items()}

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> ShardReceipt: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[ShardReceipt]: ...

    def __getitem__(self, at: int | slice) -> ShardReceipt | Sequence[ShardReceipt]:
        if isinstance(at, slice):
            return tuple(self[k] for k in range(*at.indices(len(self))))
        row, number = self.rows[at], range(len(self))[at]
        receipt = ShardReceipt(
            number, len(self), self._fingerprint, self._schema, int(row["records"]), int(row["tombstones"]),
            int(row["states"]), bytes(row["content"]).hex(), bytes(row["state_content"]).hex(), {},
            int(row["revision"]),
        )  # fmt: skip
        names = receipt.file_names(bool(row["with_states"]))
        facts = zip(names, row["bytes"].tolist(), row["digest"], strict=False)
        receipt.files.update((name, FileFact(size, bytes(digest).hex())) for name, size, digest in facts)
        return receipt

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]
