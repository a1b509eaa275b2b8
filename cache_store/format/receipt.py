"""Receipts: what a finished file and a finished shard say of themselves; a manifest is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache_store.errors import Damaged
from cache_store.format.checked import MIB, MOST_BYTES, Fields, NotSound, json_object, read_bounded
from cache_store.format.layout import MOST_SHARDS, shard_name, state_name

RECEIPT = ".receipt.json"
"""Ending of the receipts that lie beside finished shards while their run is in staging."""
ENDINGS = (".mdb", ".idx")
MOST_REVISIONS = 1 << 31


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

    @property
    def with_states(self) -> bool:
        """Whether there are files of states beside the records."""
        return f"{self.state_stem}{ENDINGS[0]}" in self.files

    def file_names(self, with_states: bool) -> list[str]:
        """Of the records, their index, the states, their index."""
        stems = [self.record_stem, self.state_stem] if with_states else [self.record_stem]
        return [f"{stem}{ending}" for stem in stems for ending in ENDINGS]

    def as_dict(self) -> dict[str, Any]:
        out = dict(vars(self))
        out["files"] = {name: fact.as_dict() for name, fact in sorted(self.files.items())}
        return out

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ShardReceipt:
        """Inverse of :meth:`as_dict`. Counts, sizes and file names are those that a shard can have.

        Raises:
            Damaged: a field is missing, unknown, of another type or out of range.
        """
        try:
            return _receipt(Fields(values))
        except NotSound as error:
            raise Damaged(f"shard receipt: {error}; build the shard again") from error


def _receipt(fields: Fields) -> ShardReceipt:
    unknown = sorted(set(fields.names()) - set(ShardReceipt.__dataclass_fields__))
    if unknown:
        raise NotSound(f"field {unknown[0]} is unknown")
    num_shards = fields.integer("num_shards", 1, MOST_SHARDS)
    receipt = ShardReceipt(
        shard=fields.integer("shard", 0, num_shards - 1),
        num_shards=num_shards,
        fingerprint=fields.text("fingerprint"),
        schema=dict(_mapping(fields, "schema")),
        records=fields.count("records"),
        tombstones=fields.count("tombstones"),
        states=fields.count("states"),
        content=fields.digest("content"),
        state_content=fields.digest("state_content"),
        files=file_facts(fields.object("files")),
        revision=fields.integer("revision", 0, MOST_REVISIONS) if "revision" in fields.names() else 0,
    )
    found, records, names = sorted(receipt.files), receipt.file_names(False), receipt.file_names(True)
    if found not in (sorted(records), sorted(names)):
        raise NotSound(
            f"field files: expected {sorted(records)}, with or without {sorted(names[2:])}, found {found[:6]}"
        )
    if receipt.states and not receipt.with_states:
        raise NotSound(f"field states: expected 0, for there is no file of states, found {receipt.states}")
    return receipt


def file_facts(fields: Fields) -> dict[str, FileFact]:
    """Facts by file name.

    Raises:
        NotSound
    """
    one = {name: fields.object(name) for name in fields.names()}
    return {name: FileFact(f.integer("bytes", 0, MOST_BYTES), f.digest("digest")) for name, f in one.items()}


def _mapping(fields: Fields, name: str) -> Mapping[str, Any]:
    value = fields.any(name)
    if not isinstance(value, Mapping):
        raise fields.wrong(name, "an object", value)
    return value


def receipt_path(folder: Path, shard: int, num_shards: int) -> Path:
    """Where the receipt of a finished shard lies while its run is in staging."""
    return folder / f"{shard_name(shard, num_shards)}{RECEIPT}"


def finished(folder: str | Path, shard: int, num_shards: int) -> ShardReceipt | None:
    """Receipt of a shard that an earlier attempt of this run finished, or None. Its files are checked by size."""
    folder = Path(folder)
    try:
        raw = read_bounded(receipt_path(folder, shard, num_shards), MIB)
        receipt = ShardReceipt.from_dict(json_object(raw))
    except (FileNotFoundError, NotSound, Damaged):
        return None
    if (receipt.shard, receipt.num_shards) != (shard, num_shards):
        return None
    for name, fact in receipt.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != fact.bytes:
            return None
    return receipt
