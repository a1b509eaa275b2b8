"""Receipts: what a finished file and a finished shard say of themselves; a manifest is made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache_store.errors import Damaged
from cache_store.format.layout import shard_name, state_name

RECEIPT = ".receipt.json"
"""Ending of the receipts that lie beside finished shards while their run is in staging."""


@dataclass(frozen=True)
class FileFact:
    """What the manifest says about one file. ``digest`` is XXH3-128, 32 hex digits."""

    bytes: int
    digest: str

    def as_dict(self) -> dict[str, Any]:
        return {"bytes": self.bytes, "digest": self.digest}


@dataclass(frozen=True)
class ShardReceipt:
    """What a finished shard holds; travels to ``Store.publish`` and into the manifest.

    Attributes:
        records, tombstones, states: counts of users.
        content: digest of keys, payloads, event counts and last event times, in key order; no clocks.
        files: facts by file name.
        revision: how often ``forget`` has rewritten the shard.
    """

    shard: int
    num_shards: int
    fingerprint: str
    schema: dict[str, Any]
    records: int
    tombstones: int
    states: int
    content: str
    state_content: str
    files: dict[str, FileFact] = field(default_factory=dict)
    revision: int = 0

    @property
    def record_stem(self) -> str:
        """File name of the records, without its ending."""
        return shard_name(self.shard, self.num_shards, self.revision)

    @property
    def state_stem(self) -> str:
        """File name of the states, without its ending."""
        return state_name(self.shard, self.num_shards, self.revision)

    def as_dict(self) -> dict[str, Any]:
        out = dict(vars(self))
        out["files"] = {name: fact.as_dict() for name, fact in sorted(self.files.items())}
        return out

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ShardReceipt:
        """Inverse of :meth:`as_dict`.

        Raises:
            Damaged: fields are missing or of another type.
        """
        try:
            files = {name: FileFact(int(f["bytes"]), str(f["digest"])) for name, f in values["files"].items()}
            return ShardReceipt(**{**values, "files": files})
        except (KeyError, TypeError, AttributeError) as error:
            raise Damaged(
                f"shard receipt: missing or malformed field ({error!r}); build the shard again"
            ) from error


def receipt_path(folder: Path, shard: int, num_shards: int) -> Path:
    """Where the receipt of a finished shard lies while its run is in staging."""
    return folder / f"{shard_name(shard, num_shards)}{RECEIPT}"


def finished(folder: str | Path, shard: int, num_shards: int) -> ShardReceipt | None:
    """Receipt of a shard that an earlier attempt of this run finished, or None. Its files are checked by size."""
    folder = Path(folder)
    try:
        receipt = ShardReceipt.from_dict(json.loads(receipt_path(folder, shard, num_shards).read_text()))
    except (FileNotFoundError, ValueError, Damaged):
        return None
    for name, fact in receipt.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != fact.bytes:
            return None
    return receipt
