"""What a generation says of itself: ``manifest.json``, sealed by ``READY``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from cache_store.errors import Damaged, FormatUnknown
from cache_store.format.layout import FEATURES
from cache_store.format.receipt import FileFact, ShardReceipt
from cache_store.format.record import RecordSchema

FORMAT = "vista-generation 1"
FULL, DELTA = "full", "delta"


@dataclass(frozen=True)
class Manifest:
    """Facts of one generation.

    Attributes:
        generation: its name.
        run_id: of the job that made it; the same run is never published twice.
        line: where it was published first.
        kind: ``full``, or ``delta``: only changed users and tombstones over ``parent``.
        depth: generations below it in its chain; 0 for full ones.
        fingerprint: of the model.
        table_snapshot: of the history table the summaries were made from; opaque here.
        watermark_ms: no summary of this generation has seen an event later than this.
        published_ms: when.
        expected, dead_letters: law 8; ``expected == records + tombstones + dead_letters``.
        shards: one receipt per bucket, in order.
        extra_files: other files of the folder, by name.
        forgotten: users removed after publication (count).
    """

    generation: str
    run_id: str
    line: str
    kind: str
    parent: str | None
    depth: int
    fingerprint: str
    schema: RecordSchema
    num_shards: int
    table_snapshot: int | str | None
    watermark_ms: int
    published_ms: int
    expected: int
    dead_letters: int
    shards: tuple[ShardReceipt, ...]
    extra_files: dict[str, FileFact] = field(default_factory=dict)
    forgotten: int = 0

    @property
    def records(self) -> int:
        return sum(s.records for s in self.shards)

    @property
    def tombstones(self) -> int:
        return sum(s.tombstones for s in self.shards)

    @property
    def states(self) -> int:
        return sum(s.states for s in self.shards)

    @property
    def files(self) -> dict[str, FileFact]:
        """Every file of the folder but manifest.json and READY."""
        out = {name: fact for shard in self.shards for name, fact in shard.files.items()}
        return {**out, **self.extra_files}

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(fact.bytes for fact in self.files.values())

    @property
    def digest(self) -> str:
        """Content digest, 32 hex digits: keys, payloads, event counts, last event times, states; no clocks."""
        facts = [
            self.kind, self.fingerprint, self.schema.as_dict(), self.num_shards,
            [[s.content, s.state_content] for s in self.shards],
        ]  # fmt: skip
        return xxhash.xxh3_128_hexdigest(json.dumps(facts, sort_keys=True).encode())

    def text(self) -> str:
        """The text of manifest.json."""
        values: dict[str, Any] = {
            "format": FORMAT,
            "features": [],
            "generation": self.generation,
            "run_id": self.run_id,
            "line": self.line,
            "kind": self.kind,
            "parent": self.parent,
            "depth": self.depth,
            "fingerprint": self.fingerprint,
            "bucket": "xxh64-seed0-mod",
            "num_shards": self.num_shards,
            "schema": self.schema.as_dict(),
            "table_snapshot": self.table_snapshot,
            "watermark_ms": self.watermark_ms,
            "published_ms": self.published_ms,
            "expected": self.expected,
            "written": self.records + self.tombstones,
            "dead_letters": self.dead_letters,
            "forgotten": self.forgotten,
            "digest": self.digest,
            "shards": [s.as_dict() for s in self.shards],
            "extra_files": {name: fact.as_dict() for name, fact in sorted(self.extra_files.items())},
        }
        return json.dumps(values, indent=1) + "\n"

    @staticmethod
    def parse(text: str, where: Path) -> Manifest:
        """Inverse of :meth:`text`.

        Raises:
            FormatUnknown: another version, bucket function, or an unknown feature flag.
            Damaged: malformed.
        """
        try:
            values: Mapping[str, Any] = json.loads(text)
            found, features, bucket = values["format"], values["features"], values["bucket"]
        except (ValueError, KeyError, TypeError) as error:
            raise Damaged(f"{where}: not a manifest ({error!r}); run `vista rollback`") from error
        if found != FORMAT:
            raise FormatUnknown(
                f"{where}: expected {FORMAT!r}, found {found!r}; read it with a newer version"
            )
        unknown = sorted(set(features) - FEATURES)
        if unknown or bucket != "xxh64-seed0-mod":
            what = f"features {unknown}" if unknown else f"bucket function {bucket!r}"
            raise FormatUnknown(f"{where}: {what} unknown to this version; read it with a newer one")
        try:
            return Manifest(
                schema=RecordSchema.from_dict(values["schema"]),
                shards=tuple(ShardReceipt.from_dict(s) for s in values["shards"]),
                extra_files={n: FileFact(f["bytes"], f["digest"]) for n, f in values["extra_files"].items()},
                **{name: values[name] for name in _PLAIN},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"{where}: missing or malformed field ({error!r}); run `vista rollback`") from error


_PLAIN: Sequence[str] = (
    "generation", "run_id", "line", "kind", "parent", "depth", "fingerprint", "num_shards", "table_snapshot",
    "watermark_ms", "published_ms", "expected", "dead_letters", "forgotten",
)  # fmt: skip


def seal(*texts: str) -> bytes:
    """What READY holds for a manifest text; for two while one replaces the other."""
    return "".join(xxhash.xxh3_128_hexdigest(text.encode()) + "\n" for text in texts).encode()


def read_seal(folder: Path) -> bytes:
    """READY of a generation; it changes if the generation does.

    Raises:
        Damaged: there is none.
    """
    try:
        return (folder / "READY").read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Damaged(f"{folder}: READY is missing; run `vista rollback`") from error


def read(folder: Path) -> Manifest:
    """Manifest of a published generation.

    Raises:
        Damaged: the folder is not a sealed generation, or manifest and seal disagree.
        FormatUnknown
    """
    path = folder / "manifest.json"
    while True:
        ready = read_seal(folder)
        try:
            raw = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Damaged(f"{path}: missing; run `vista rollback`") from error
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise Damaged(f"{path}: not UTF-8; run `vista rollback`") from error
        if len(ready) in (33, 66) and seal(text) in (ready[:33], ready[33:]):
            break
        if read_seal(folder) == ready:  # else forget has sealed it anew between the two readings
            raise Damaged(f"{path}: does not have the digest that READY states; run `vista rollback`")
    manifest = Manifest.parse(text, path)
    if manifest.generation != folder.name:
        raise Damaged(
            f"{path}: states generation {manifest.generation}, lies in {folder.name}; run `vista rollback`"
        )
    return manifest
