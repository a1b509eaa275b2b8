"""What a generation says of itself: ``manifest.json``, sealed by ``READY``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from cache_store.errors import Damaged, FormatUnknown, GenerationUnknown, SchemaError, StoreError
from cache_store.format import shown
from cache_store.format.checked import KIB, MIB, MOST_BYTES, Fields, NotSound, json_object, read_bounded
from cache_store.format.layout import FEATURES, GENERATION, MOST_SHARDS, NAME, Layout, StoreFormat
from cache_store.format.packed import PackedShards
from cache_store.format.receipt import FileFact, ShardReceipt, file_facts
from cache_store.format.record import RecordSchema

FORMAT = "vista-generation 1"
FULL, DELTA = "full", "delta"
MOST_TEXT = 512 * MIB
"""Bytes of manifest.json, at most; see ``packed``."""
PACKED = "packed_shards"
"""The feature, and the field, of a manifest with ``PackedShards``."""
MOST_DEPTH = 1_000
AWAY = "go back with `vista rollback`, or make a new generation with `vista summarize`"
"""What helps where a generation cannot be read."""


@dataclass(frozen=True, repr=False)
class Manifest(shown.Shown):
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
        expired_before_ms: users without an event from then on were left out of it or of a generation below, so that
            one of whom it knows nothing may have a history; None where nobody was.
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
    shards: Sequence[ShardReceipt]
    extra_files: dict[str, FileFact] = field(default_factory=dict)
    forgotten: int = 0
    expired_before_ms: int | None = None

    @property
    def records(self) -> int:
        return self._total("records")

    @property
    def tombstones(self) -> int:
        return self._total("tombstones")

    @property
    def states(self) -> int:
        return self._total("states")

    def _total(self, name: str) -> int:
        if isinstance(self.shards, PackedShards):
            return self.shards.total(name)
        return sum(getattr(s, name) for s in self.shards)

    def with_shards(self, shards: Sequence[ShardReceipt], **facts: Any) -> Manifest:
        """With other receipts, written in the same form, and other facts."""
        packed = isinstance(self.shards, PackedShards)
        return dataclasses.replace(self, shards=PackedShards.of(shards) if packed else tuple(shards), **facts)

    @property
    def files(self) -> dict[str, FileFact]:
        """Every file of the folder but manifest.json and READY."""
        shards = self.shards
        if isinstance(shards, PackedShards):
            return {**shards.files, **self.extra_files}
        out = {name: fact for shard in shards for name, fact in shard.files.items()}
        return {**out, **self.extra_files}

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        shards = self.shards
        if isinstance(shards, PackedShards):
            return shards.total("bytes") + sum(fact.bytes for fact in self.extra_files.values())
        return sum(fact.bytes for fact in self.files.values())

    @property
    def digest(self) -> str:
        """Content digest, 32 hex digits: keys, payloads, event counts, last event times, states; no clocks."""
        shards = self.shards
        if isinstance(shards, PackedShards):
            contents = shards.contents()
        else:
            contents = [[s.content, s.state_content] for s in shards]
        facts = [self.kind, self.fingerprint, self.schema.as_dict(), self.num_shards, contents]
        return xxhash.xxh3_128_hexdigest(json.dumps(facts, sort_keys=True).encode())

    def _shown(self) -> dict[str, object]:
        return {
            "generation": self.generation,
            "kind": self.kind if self.parent is None else f"{self.kind} over {self.parent}",
            "users": f"{self.records:,}",
            "tombstones": f"{self.tombstones:,}",
            "dead letters": f"{self.dead_letters:,}",
            "files": f"{shown.size(self.bytes)} in {self.num_shards} shards",
            "model": self.fingerprint[:12],
            "newest event": shown.when(self.watermark_ms),
            "published": shown.when(self.published_ms),
        }

    def text(self) -> str:
        """The text of manifest.json."""
        shards = self.shards
        packed = shards.text() if isinstance(shards, PackedShards) else None
        values: dict[str, Any] = {
            "format": FORMAT,
            "features": [PACKED] if packed else [],
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
            **({PACKED: packed} if packed else {"shards": [s.as_dict() for s in shards]}),
            "extra_files": {name: fact.as_dict() for name, fact in sorted(self.extra_files.items())},
        }
        if self.expired_before_ms is not None:
            values["expired_before_ms"] = self.expired_before_ms
        return json.dumps(values, indent=1) + "\n"

    @staticmethod
    def parse(text: str, where: Path) -> Manifest:
        """Inverse of :meth:`text`.

        Raises:
            FormatUnknown: another version, bucket function, or an unknown feature flag.
            Damaged: malformed.
        """
        try:
            return _manifest(Fields(json_object(text)), where)
        except (NotSound, SchemaError, Damaged) as error:
            raise Damaged(f"{where}: {error}; {AWAY}") from error


def _manifest(fields: Fields, where: Path) -> Manifest:
    found, features, bucket = fields.text("format"), fields.list("features"), fields.any("bucket")
    if found != FORMAT:
        raise FormatUnknown(f"{where}: expected {FORMAT!r}, found {found!r}; read it with a newer version")
    unknown = [f for f in features if not isinstance(f, str) or f not in FEATURES]
    if unknown or bucket != "xxh64-seed0-mod":
        what = f"features {unknown[:8]}" if unknown else f"bucket function {bucket!r}"
        raise FormatUnknown(f"{where}: {what} unknown to this version; read it with a newer one")
    name = fields.matching("generation", GENERATION, "a number of 8 to 18 digits")
    kind = fields.one_of("kind", (FULL, DELTA))
    delta, table = kind == DELTA, fields.any("table_snapshot")
    if table is not None and not isinstance(table, str):
        table = fields.integer("table_snapshot", -(1 << 63), (1 << 63) - 1)
    parent = fields.matching("parent", GENERATION, "a generation, for it is a delta") if delta else None
    if not delta and fields.any("parent") is not None:
        raise fields.wrong("parent", "null, for the generation is full", fields.any("parent"))
    if parent is not None and int(parent) >= int(name):
        raise fields.wrong("parent", f"a generation before {name}", parent)
    num_shards = fields.integer("num_shards", 1, MOST_SHARDS)
    schema = RecordSchema.from_dict(fields.any("schema"))
    fingerprint = fields.text("fingerprint")
    shards: Sequence[ShardReceipt]
    if PACKED in features:
        packed = fields.any(PACKED)
        if not isinstance(packed, str):
            raise fields.wrong(PACKED, "a text", packed)
        shards = PackedShards.parse(packed, num_shards, fingerprint, schema.as_dict())
    else:
        listed = fields.list("shards")
        if len(listed) != num_shards:
            raise NotSound(f"field shards: expected {num_shards}, found {len(listed)}")
        shards = tuple(ShardReceipt.from_dict(s) for s in listed)
    manifest = Manifest(
        generation=name,
        run_id=fields.matching("run_id", NAME, "the name of a run"),
        line=fields.matching("line", NAME, "the name of a line"),
        kind=kind,
        parent=parent,
        depth=fields.integer("depth", int(delta), MOST_DEPTH if delta else 0),
        fingerprint=fingerprint,
        schema=schema,
        num_shards=num_shards,
        table_snapshot=table,
        watermark_ms=fields.time("watermark_ms"),
        published_ms=fields.time("published_ms"),
        expected=fields.count("expected"),
        dead_letters=fields.count("dead_letters"),
        shards=shards,
        extra_files=file_facts(fields.object("extra_files")),
        forgotten=fields.count("forgotten"),
        expired_before_ms=fields.time("expired_before_ms") if "expired_before_ms" in fields.names() else None,
    )
    _agree(manifest, fields)
    return manifest


def _agree(manifest: Manifest, fields: Fields) -> None:
    """What the parts of a manifest say of each other."""
    plain, shards = manifest.schema.as_dict(), manifest.shards
    for k, s in enumerate(() if isinstance(shards, PackedShards) else shards):
        if (s.shard, s.num_shards) != (k, manifest.num_shards):
            found = f"{s.shard} of {s.num_shards}"
            raise NotSound(
                f"field shards: expected shard {k} of {manifest.num_shards} in its place, found {found}"
            )
        wanted = (manifest.fingerprint, plain, shards[0].with_states)
        if (s.fingerprint, s.schema, s.with_states) != wanted:
            raise NotSound(f"field shards: shard {k} differs from the generation in model, schema or states")
    for name in manifest.extra_files:
        ours = name in ("manifest.json", "READY") or name.startswith(("shard-", "state-"))
        if ours or not NAME.fullmatch(name):
            raise NotSound(f"field extra_files: expected names of other files, found {name[:60]!r}")
    if manifest.bytes > MOST_BYTES:
        raise NotSound(f"field shards: expected at most {MOST_BYTES} bytes in all, found {manifest.bytes}")
    written = manifest.records + manifest.tombstones
    if fields.any("written") != written:
        raise fields.wrong("written", f"{written}, the sum over the shards", fields.any("written"))
    accounted = written + manifest.dead_letters + manifest.forgotten
    if manifest.expected != accounted:
        raise fields.wrong(
            "expected", f"{accounted} users, written, dead-lettered or forgotten", manifest.expected
        )
    if fields.any("digest") != manifest.digest:
        raise fields.wrong("digest", f"{manifest.digest}, of the stated shards", fields.any("digest"))


def seal(*texts: str) -> bytes:
    """What READY holds for a manifest text; for two while one replaces the other."""
    return "".join(xxhash.xxh3_128_hexdigest(text.encode()) + "\n" for text in texts).encode()


def read_seal(folder: Path) -> bytes:
    """READY of a generation; it changes if the generation does.

    Raises:
        Damaged: there is none, or it is no seal.
    """
    try:
        return read_bounded(folder / "READY", KIB)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Damaged(f"{folder}: READY is missing; {AWAY}") from error
    except NotSound as error:
        raise Damaged(f"{folder}/READY: {error}; {AWAY}") from error


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
            text = read_bounded(path, MOST_TEXT).decode()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Damaged(f"{path}: missing; {AWAY}") from error
        except UnicodeDecodeError as error:
            raise Damaged(f"{path}: not UTF-8; {AWAY}") from error
        except NotSound as error:
            raise Damaged(f"{path}: {error}; {AWAY}") from error
        if len(ready) in (33, 66) and seal(text) in (ready[:33], ready[33:]):
            break
        if read_seal(folder) == ready:  # else forget has sealed it anew between the two readings
            raise Damaged(f"{path}: does not have the digest that READY states; {AWAY}")
    manifest = Manifest.parse(text, path)
    if manifest.generation != folder.name:
        raise Damaged(f"{path}: states generation {manifest.generation}, lies in {folder.name}; {AWAY}")
    return manifest


def readable(layout: Layout) -> Iterator[Manifest]:
    """Of every kept generation that can be read, ascending."""
    for name in layout.generation_names():
        with contextlib.suppress(StoreError):
            yield read(layout.generation(name))


def chain(layout: Layout, name: str) -> list[Manifest]:
    """Manifests of a generation and all below it, newest first; they agree with each other and with FORMAT.

    Raises:
        GenerationUnknown: one is not there.
        Damaged, FormatUnknown
    """
    store, found = layout.read_format(), list[Manifest]()
    wanted: str | None = name
    while wanted is not None:  # it ends: a parent's number is lower
        folder = layout.generation(wanted)
        if not folder.is_dir():
            raise GenerationUnknown(unknown(layout, wanted, found[-1] if found else None))
        manifest = read(folder)
        check_of_store(manifest, store, folder)
        if found:
            check_lies_on(found[-1], manifest, layout.generation(found[-1].generation))
        found.append(manifest)
        wanted = manifest.parent
    return found


def unknown(layout: Layout, name: str, above: Manifest | None) -> str:
    """Text for a generation that is not there, though ``above`` lies on it."""
    lies = f", on which {above.generation} lies" if above else ""
    return f"{layout.root}: no generation {name}{lies}; {AWAY}"


def check_lies_on(upper: Manifest, lower: Manifest, where: Path) -> None:
    """Ask whether a delta belongs on what it names as its parent.

    Raises:
        Damaged: another model, schema, number of shards or depth; ``where`` is the delta's folder.
    """
    for field_name in ("fingerprint", "schema", "num_shards"):
        mine, below = getattr(upper, field_name), getattr(lower, field_name)
        if mine != below:
            raise Damaged(
                f"{where}/manifest.json, field {field_name}: expected that of its parent {lower.generation}, found "
                f"another; {AWAY}"
            )
    if (lower.generation, lower.depth) != (upper.parent, upper.depth - 1):
        raise Damaged(
            f"{where}/manifest.json, field depth: expected {lower.depth + 1} over {lower.generation}, found "
            f"{upper.depth} over {upper.parent}; {AWAY}"
        )


def check_of_store(manifest: Manifest, store: StoreFormat, where: Path) -> None:
    """Ask whether a generation is of a store with these facts.

    Raises:
        Damaged: other shards or ids.
    """
    found = (manifest.num_shards, manifest.schema.user_kind)
    if found != (store.num_shards, store.user_kind):
        raise Damaged(
            f"{where}/manifest.json: expected {store.num_shards} shards of {store.user_kind} ids, as FORMAT says, "
            f"found {found[0]} of {found[1]}; {AWAY}"
        )
