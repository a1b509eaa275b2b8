"""The record: what is stored for one user, byte by byte.

    offset  size  field
         0     8  check          mix of the seven words that follow, see :func:`header_check`
         8     8  payload_hash   XXH3-64 (seed 0) of the bytes from 64 to the end of the record
        16     8  key_hash       XXH64 (seed 0) of the key bytes
        24     8  second_hash    XXH3-64 of the key bytes; 0 where ids are int64
        32     8  model          XXH3-64 of the model's fingerprint text
        40     8  last_event_ms      int64, milliseconds since the Unix epoch
        48     8  summarized_ms      int64
        56     1  format         1
        57     1  flags          bit 0: tombstone (the record ends at byte 64)
        58     2  zero
        60     4  event_count    uint32
        64     …  payload: the groups in the order of the schema, each field aligned to 16 bytes

Everything is little-endian. A tombstone is the header alone. All other records of a generation have one size,
``RecordSchema.record_bytes``. Over 2,038 bytes LMDB gives a value whole pages after a page header of 16 bytes, so
sizes of ``n * 4096 - 16`` waste nothing; ``RecordSchema.waste`` tells what a schema wastes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xxhash

from cache_store.errors import SchemaError, Unstorable
from cache_store.format.quantize import CODECS, Codec

RECORD_FORMAT = 1
TOMBSTONE = 1
HEADER_BYTES = 64
MAX_RECORD_BYTES = 1 << 26
"""A record may hold so many numbers at most, and with float32 four times as many bytes."""
MAX_GROUPS = 1_024
PAGE = 4096
PAGE_HEADER = 16
INLINE_MAX = 2038
"""Largest LMDB node (8 bytes, key and value) that stays inside a leaf page."""

HEADER = np.dtype(
    {
        "names": [
            "check", "payload_hash", "key_hash", "second_hash", "model",
            "last_event_ms", "summarized_ms", "format", "flags", "zero", "event_count",
        ],
        "formats": ["<u8", "<u8", "<u8", "<u8", "<u8", "<i8", "<i8", "u1", "u1", "<u2", "<u4"],
        "offsets": [0, 8, 16, 24, 32, 40, 48, 56, 57, 58, 60],
        "itemsize": HEADER_BYTES,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """A named block of summary tokens with its codec.

    Attributes:
        name: a Python identifier, unique in the schema.
        tokens: S_g.
        width: D.
        codec: one of ``cache_store.format.quantize.CODECS``.
    """

    name: str
    tokens: int
    width: int
    codec: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise SchemaError(f"group name: expected an identifier, found {self.name!r}")
        if self.codec not in CODECS:
            raise SchemaError(f"group {self.name}: expected a codec of {CODECS}, found {self.codec!r}")
        for size in (self.tokens, self.width):
            if type(size) is not int or not 1 <= size <= MAX_RECORD_BYTES:
                raise SchemaError(f"group {self.name}: expected tokens and width of at least 1, found {self}")


@dataclass(frozen=True)
class Table:
    """How groups are read as one table: entries with a key and a mass per horizon.

    Attributes:
        keys: group of codec ``int64`` that holds the keys, item ids, ascending; "" where entry number n is cluster n.
        masses: group that holds entries x horizons masses, entry after entry; 0 is no entry.
        entries: how many there are; what is left of both groups is padding.
        half_lives: of the horizons, in events; None never halves.
        deciding: the horizon by which entries are heavy.
        numbers: group of codec ``int64`` that says which cluster each entry is, four numbers of 16 bits to one of its
            own, the first in the lowest bits; "" where there is a key, or an entry for every cluster.
        of: how many clusters there are, where ``numbers`` says which are told; else 0.
    """

    keys: str
    masses: str
    entries: int
    half_lives: tuple[float | None, ...]
    deciding: int
    numbers: str = ""
    of: int = 0

    @property
    def horizons(self) -> int:
        return len(self.half_lives)

    def as_dict(self) -> dict[str, Any]:
        """Plain form for the manifest; the last two fields only where they say something."""
        found = asdict(self) | {"half_lives": list(self.half_lives)}
        return found if self.numbers else {n: x for n, x in found.items() if n not in ("numbers", "of")}


@dataclass(frozen=True)
class RecordSchema:
    """Groups of tokens in one record; all have one width, so that they stack into ``[S, D]``.

    Attributes:
        groups: in the order of the tokens, S = sum of their tokens.
        user_kind: ``int64`` or ``string``.
        tables: which groups are to be read as tables.
    """

    groups: tuple[Group, ...]
    user_kind: str = "int64"
    tables: tuple[Table, ...] = ()

    def __post_init__(self) -> None:
        groups = tuple(g if isinstance(g, Group) else Group(*g) for g in self.groups)
        object.__setattr__(self, "groups", groups)
        if not groups:
            raise SchemaError("schema: expected at least one group, found none")
        if sum(g.tokens * g.width for g in groups) > MAX_RECORD_BYTES:
            raise SchemaError(
                f"schema: expected at most {MAX_RECORD_BYTES} numbers in a record, found {groups}"
            )
        if len({g.name for g in groups}) != len(groups):
            raise SchemaError(f"schema: expected distinct group names, found {[g.name for g in groups]}")
        if len({g.width for g in groups}) != 1:
            raise SchemaError(f"schema: expected one width for all groups, found {[g.width for g in groups]}")
        if self.user_kind not in ("int64", "string"):
            raise SchemaError(f"schema: expected user_kind int64 or string, found {self.user_kind!r}")
        tables = tuple(t if isinstance(t, Table) else Table(*t) for t in self.tables)
        object.__setattr__(self, "tables", tables)
        for table in tables:
            self._check_table(table)

    def _check_table(self, table: Table) -> None:
        def wrong(expected: str, found: object = table) -> SchemaError:
            return SchemaError(f"table of {table.masses!r}: expected {expected}, found {found}")

        lives = table.half_lives
        if (
            type(table.entries) is not int
            or type(table.deciding) is not int
            or not all(h is None or (isinstance(h, (int, float)) and h > 0) for h in lives)
            or not 1 <= len(lives) <= MAX_GROUPS
        ):
            raise wrong("entries, horizons and half-lives")
        known = {g.name: g for g in self.groups}
        wanted = {table.masses: table.entries * table.horizons}
        if table.keys:
            wanted[table.keys] = 2 * table.entries
        if table.numbers:
            wanted[table.numbers] = -(-table.entries // 2)
        if bool(table.numbers) != bool(table.of) or (
            table.numbers
            and (table.keys or type(table.of) is not int or not table.entries <= table.of <= 1 << 16)
        ):
            raise wrong("numbers of at most 65,536 clusters, and no keys")
        for name, places in wanted.items():
            if name not in known or known[name].tokens * self.width < places or places < 1:
                raise wrong(f"group {name!r} with {places} places", known.get(name))
        for name in filter(None, (table.keys, table.numbers)):
            if known[name].codec != "int64":
                raise wrong(f"{name} of codec int64", known[name])
        if not 0 <= table.deciding < table.horizons:
            raise wrong(f"a horizon below {table.horizons}")

    @property
    def tokens(self) -> int:
        """S."""
        return sum(g.tokens for g in self.groups)

    @property
    def width(self) -> int:
        """D."""
        return self.groups[0].width

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Group name to its rows of ``[S, D]``."""
        out, start = {}, 0
        for g in self.groups:
            out[g.name] = slice(start, start + g.tokens)
            start += g.tokens
        return out

    @cached_property
    def dtype(self) -> np.dtype:
        """Structured dtype of a record: header fields, then one sub-record per group."""
        names, formats, offsets, at = ["header"], [HEADER], [0], HEADER_BYTES
        for g in self.groups:
            sub, size = _group_dtype(g)
            names.append(g.name)
            formats.append(sub)
            offsets.append(at)
            at += size
        return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": at})

    @property
    def record_bytes(self) -> int:
        """Bytes of one record, header included."""
        return self.dtype.itemsize

    @property
    def paged(self) -> bool:
        """True if LMDB keeps each record in pages of its own."""
        key = 8 if self.user_kind == "int64" else 1
        return 8 + key + self.record_bytes > INLINE_MAX

    @property
    def pages(self) -> int:
        """LMDB pages per record; 0 where records lie inside leaf pages."""
        return -(-(self.record_bytes + PAGE_HEADER) // PAGE) if self.paged else 0

    @property
    def row_bytes(self) -> int:
        """Bytes that LMDB and a gathered row take per record: its pages, or the record behind a page header."""
        return self.pages * PAGE if self.paged else PAGE_HEADER + self.record_bytes

    @property
    def waste(self) -> float:
        """Share of the record's pages that holds nothing, 0 to 1."""
        return 1 - (self.record_bytes + PAGE_HEADER) / (self.pages * PAGE) if self.paged else 0.0

    def check_tokens(self, tokens: Mapping[str, np.ndarray], n: int) -> None:
        """Refuse anything but float32 [n, S_g, D] for each group.

        Raises:
            SchemaError: a group is missing, unknown, or has another shape.
        """
        names = [g.name for g in self.groups]
        if set(tokens) != set(names):
            raise SchemaError(f"tokens: expected groups {names}, found {sorted(tokens)}")
        for g in self.groups:
            shape = tokens[g.name].shape
            if shape != (n, g.tokens, g.width):
                raise SchemaError(f"group {g.name}: expected shape {(n, g.tokens, g.width)}, found {shape}")

    def check_storable(self, tokens: Mapping[str, np.ndarray], users: np.ndarray) -> None:
        """Refuse tokens that a codec cannot store.

        Raises:
            Unstorable: names the users.
        """
        for g in self.groups:
            refused = Codec(g.codec, g.tokens, g.width).refused(np.asarray(tokens[g.name], np.float32))
            if refused.any():
                bad = users[refused].tolist()
                raise Unstorable(
                    f"group {g.name}: {len(bad)} users have tokens that {g.codec} cannot store (not finite, out of "
                    f"range{', or negative' if g.codec == 'log8' else ''}), first {bad[0]!r}; choose another codec, "
                    f"or drop these users and count them as dead letters",
                    bad,
                )

    def encode(
        self,
        tokens: Mapping[str, np.ndarray],
        key_hash: np.ndarray,
        second_hash: np.ndarray,
        model: int,
        event_count: np.ndarray,
        last_event_ms: np.ndarray,
        summarized_ms: np.ndarray,
    ) -> np.ndarray:
        """Records of n users, structured [n]; see the module for the bytes. Tokens are storable and of right shape.

        Raises:
            SchemaError: an event count does not fit.
        """
        n = len(key_hash)
        count = np.asarray(event_count, np.int64)
        if n and not (0 <= count.min() and count.max() < 1 << 32):
            raise SchemaError(f"event_count: expected 0 to 2**32 - 1, found {count.min()} to {count.max()}")
        records = np.zeros(n, self.dtype)
        for g in self.groups:
            Codec(g.codec, g.tokens, g.width).encode(np.asarray(tokens[g.name], np.float32), records[g.name])
        header = records["header"]
        header["key_hash"] = key_hash
        header["second_hash"] = second_hash
        header["model"] = model
        header["last_event_ms"] = last_event_ms
        header["summarized_ms"] = summarized_ms
        header["format"] = RECORD_FORMAT
        header["event_count"] = count
        seal(records)
        return records

    def decode(self, records: np.ndarray, out: np.ndarray, streamed: bool = False) -> None:
        """Tokens of structured records [n] into ``out``, float32 [n, S, D]; ``streamed`` as in ``Codec.decode``."""
        # A damaged record may hold anything; it is decoded with the others, and served to nobody.
        with np.errstate(over="ignore", invalid="ignore"):
            for g in self.groups:
                Codec(g.codec, g.tokens, g.width).decode(
                    records[g.name], out[:, self.slices[g.name]], streamed
                )

    def decode_group(self, records: np.ndarray, name: str) -> np.ndarray:
        """Tokens of one group of structured records [n], float32 [n, S_g, D]."""
        g = next(g for g in self.groups if g.name == name)
        out = np.empty((len(records), g.tokens, g.width), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            Codec(g.codec, g.tokens, g.width).decode(records[g.name], out)
        return out

    def fields(self, group: str) -> tuple[str, ...]:
        """Names of what one record holds of a group, in order."""
        return self.dtype[group].names or ()

    def field(self, group: str, name: str) -> tuple[np.dtype, tuple[int, ...], int]:
        """Element type, shape and first byte within the record of one field of a group."""
        groups, parts = self.dtype.fields, self.dtype[group].fields
        assert groups is not None and parts is not None  # both are structured
        base, shape = parts[name][0].subdtype or (parts[name][0], ())
        return base, shape, groups[group][1] + parts[name][1]

    def as_dict(self) -> dict[str, Any]:
        """Plain form for the manifest; the layout is repeated there so that a reader need not derive it."""
        layout = []
        for g in self.groups:
            for name in self.fields(g.name):
                base, shape, start = self.field(g.name, name)
                layout.append([f"{g.name}.{name}", base.str, list(shape), start])
        tables = {"tables": [t.as_dict() for t in self.tables]}
        return (tables if self.tables else {}) | {
            "user_kind": self.user_kind,
            "record_bytes": self.record_bytes,
            "groups": [asdict(g) for g in self.groups],
            "layout": layout,
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> RecordSchema:
        """Inverse of :meth:`as_dict`.

        Raises:
            SchemaError: not such a dict, or its layout is not what this version derives.
        """
        try:
            listed, told = values["groups"], values.get("tables", ())
            if max(len(listed), len(told)) > MAX_GROUPS:
                raise SchemaError(f"schema: expected at most {MAX_GROUPS} groups, found {len(listed)}")
            groups = tuple(Group(**g) for g in listed)
            tables = tuple(Table(**{**t, "half_lives": tuple(t["half_lives"])}) for t in told)
            schema = RecordSchema(groups, values["user_kind"], tables)
        except (KeyError, TypeError) as error:
            raise SchemaError(f"schema: missing or malformed field ({error!r})") from error
        if schema.as_dict() != dict(values):
            raise SchemaError("schema: the stated layout is not the one that its groups give in format 1")
        return schema


def _group_dtype(group: Group) -> tuple[np.dtype, int]:
    """Packed fields of a group, each aligned to 16 bytes; and the group's size, a multiple of 16."""
    names, formats, offsets, at = [], [], [], 0
    for name, base, shape in Codec(group.codec, group.tokens, group.width).fields:
        names.append(name)
        formats.append((base, shape))
        offsets.append(at)
        at += -(-np.dtype((base, shape)).itemsize // 16) * 16
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": at}), at


def model_word(fingerprint: str) -> int:
    """What the header's ``model`` field holds for a fingerprint."""
    return xxhash.xxh3_64_intdigest(fingerprint.encode())


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def header_check(headers: np.ndarray) -> np.ndarray:
    """Check word of each header, uint64 [n], from its seven words after the first (structured HEADER [n]).

    ``h = 0``; for each 64-bit little-endian word ``w`` at 8, 16, … 56: ``z = h + w + 0x9E3779B97F4A7C15``;
    ``z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9``; ``z = (z ^ z >> 27) * 0x94D049BB133111EB``; ``h = z ^ z >> 31``
    (the finaliser of SplitMix64). Each step is a bijection of its word, so any change within one word shows.
    """
    words = np.ascontiguousarray(headers).view(np.uint64).reshape(-1, 8)
    h = np.zeros(len(words), np.uint64)
    for i in range(1, 8):
        z = h + words[:, i]
        z += _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX1
        z = (z ^ (z >> np.uint64(27))) * _MIX2
        h = z ^ (z >> np.uint64(31))
    return h


def sound(headers: np.ndarray, key_hash: np.ndarray, model: int, flags: int = 0) -> np.ndarray:
    """Headers that are whole, of these users (uint64 [n]), this model and kind; bool [n] (structured HEADER [n])."""
    ok: np.ndarray = (headers["check"] == header_check(headers)) & (headers["format"] == RECORD_FORMAT)
    ok &= (headers["key_hash"] == key_hash) & (headers["model"] == model) & (headers["flags"] == flags)
    return ok


def payload_hashes(rows: np.ndarray) -> np.ndarray:
    """XXH3-64 of each row from byte 64 on, uint64 [n] (uint8 [n, record_bytes])."""
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest(row) for row in rows[:, HEADER_BYTES:]), np.uint64, len(rows))


def as_rows(records: np.ndarray) -> np.ndarray:
    """Structured records [n], contiguous, as uint8 [n, record_bytes] (a view)."""
    return records.view(np.uint8).reshape(len(records), records.dtype.itemsize)


def seal(records: np.ndarray) -> None:
    """Fill ``payload_hash`` and ``check`` of full records in place."""
    header = records["header"]
    header["payload_hash"] = payload_hashes(as_rows(records))
    header["check"] = header_check(header)


def tombstones(key_hash: np.ndarray, second_hash: np.ndarray, model: int, summarized_ms: int) -> np.ndarray:
    """Header-only records [n] that say: this user is gone from here on."""
    header = np.zeros(len(key_hash), HEADER)
    header["payload_hash"] = xxhash.xxh3_64_intdigest(b"")
    header["key_hash"] = key_hash
    header["second_hash"] = second_hash
    header["model"] = model
    header["summarized_ms"] = summarized_ms
    header["format"] = RECORD_FORMAT
    header["flags"] = TOMBSTONE
    header["check"] = header_check(header)
    return header
