"""Users as keys and buckets. The only place that hashes users.

A user id is an int64 or a string. Its key bytes order users and name them in LMDB; XXH64 of the key bytes
(seed 0) decides the bucket. For int64 ids XXH64 of eight bytes is a bijection, so the hash alone identifies the
user; strings carry a second, independent hash (XXH3-64) beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import xxhash

from cache_store.errors import Damaged, KeyKind
from cache_store.native import library as native

MAX_KEY_BYTES = 511
"""Largest key of LMDB 0.9."""

Users = np.ndarray | Sequence[int | str] | Any
"""int64 [B] or B strings: a list, an array of NumPy, or a column of Arrow, pandas or polars."""

_SIGN = np.uint64(1 << 63)
_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5_AND_LENGTH = np.uint64(0x27D4EB2F165667C5 + 8)


def key_bytes(user: int | str) -> bytes:
    """Key of one user. int: 8 bytes big-endian with the sign bit flipped, so bytes sort as numbers; str: UTF-8.

    Raises:
        KeyKind: neither int64 nor a string of 1 to 511 bytes.
    """
    if isinstance(user, str):
        return _encode(user)
    if isinstance(user, (int, np.integer)) and not isinstance(user, bool) and -(1 << 63) <= user < 1 << 63:
        return (int(user) + (1 << 63)).to_bytes(8, "big")
    raise KeyKind(f"user id {user!r}: expected an int64 or a string, found {type(user).__name__}")


def _encode(user: str) -> bytes:
    try:
        key = user.encode()
    except UnicodeEncodeError as error:
        raise KeyKind(f"user id {user!r}: not valid Unicode ({error.reason})") from error
    if not 1 <= len(key) <= MAX_KEY_BYTES:
        raise KeyKind(
            f"user id {user[:40]!r}: expected 1 to {MAX_KEY_BYTES} bytes of UTF-8, found {len(key)}"
        )
    return key


def as_users(users: Users, kind: str | None = None) -> np.ndarray:
    """Users as int64 [n] or an object array of str [n].

    Args:
        kind: ``int64`` or ``string``; None takes what it finds (an empty list is int64).

    Raises:
        KeyKind: mixed, masked or unsupported ids, or not of ``kind``.
    """
    array = _array(users, kind)
    if array.ndim != 1:
        raise KeyKind(f"user ids: expected one dimension, found shape {array.shape}")
    if array.dtype.kind in "iu" and array.dtype != np.uint64:
        found, array = "int64", array.astype(np.int64, copy=False)
    elif array.dtype.kind in "UOT":
        other = next((u for u in array if not isinstance(u, str)), "")
        if not isinstance(other, str):
            wanted = (
                "this store holds string ids" if kind == "string" else "expected int64 or strings throughout"
            )
            raise KeyKind(f"user ids: {wanted}, found {type(other).__name__} {other!r:.40}")
        found, array = "string", array.astype(object, copy=False)
    else:
        raise KeyKind(f"user ids: expected int64 or strings, found dtype {array.dtype}")
    if kind is not None and found != kind and len(array):
        raise KeyKind(f"user ids: this store holds {kind} ids, found {found}")
    return array


def _array(users: Any, kind: str | None) -> np.ndarray:
    """Ids as an array of any shape and type; a list of texts, or of ``kind`` string, as an object array."""
    if not isinstance(users, (list, tuple, np.ndarray)) and hasattr(users, "to_numpy"):
        users = _column(users)
    if isinstance(users, np.ndarray):
        masked = 0 if type(users) is np.ndarray else np.count_nonzero(getattr(users, "mask", False))
        if masked:
            raise KeyKind(f"user ids: expected int64 or strings, found {masked} masked")
        return np.asarray(users)
    if isinstance(users, (str, bytes, bytearray, memoryview, Mapping, Set)) or not isinstance(
        users, Iterable
    ):
        raise KeyKind(
            f"user ids: expected a list or an array of ids, found one {type(users).__name__}; put a single user into a "
            f"list"
        )
    users = list(users)
    if kind == "string" or (users and isinstance(users[0], str)):
        return np.fromiter(users, object, len(users))
    if bool in map(type, users):  # of which NumPy makes 1 and 0 among numbers
        raise KeyKind("user ids: expected int64 or strings, found a truth value")
    try:
        array = np.asarray(users) if users else np.zeros(0, np.int64)
    except (ValueError, OverflowError) as error:
        raise KeyKind(f"user ids: expected int64 or strings, found {error}") from error
    if array.dtype.kind in "US":  # NumPy makes texts of numbers among texts
        raise KeyKind("user ids: expected int64 or strings throughout, found mixed or other objects")
    return array


def _column(users: Any) -> np.ndarray:
    """Values of a column of Arrow, pandas or polars, whose packages are not needed for it."""
    nulls = getattr(users, "null_count", 0)
    nulls = nulls() if callable(nulls) else nulls
    if nulls:
        raise KeyKind(f"user ids: expected int64 or strings, found {nulls} nulls")
    arrow = type(users).__module__.startswith("pyarrow")
    if arrow and str(users.type).startswith("dictionary"):
        users = users.cast(users.type.value_type)
    chunked = not arrow or hasattr(users, "chunks")
    values: np.ndarray = np.asarray(users.to_numpy() if chunked else users.to_numpy(zero_copy_only=False))
    return values


def keys_of(users: np.ndarray) -> list[bytes]:
    """Key bytes of each user (as from :func:`as_users`)."""
    if users.dtype == object:
        return [_encode(u) for u in users]
    flat = sortable(users).astype(">u8").tobytes()
    return [flat[i : i + 8] for i in range(0, len(flat), 8)]


def sortable(users: np.ndarray) -> np.ndarray:
    """int64 [n] to uint64 [n] whose unsigned order is the key order."""
    return users.astype(np.int64, copy=False).view(np.uint64) ^ _SIGN


def from_keys(keys: Iterable[bytes], kind: str) -> np.ndarray:
    """Inverse of :func:`keys_of`.

    Raises:
        Damaged: keys that no id of this kind has.
    """
    keys, ints = list(keys), kind == "int64"
    odd = next((k for k in keys if not (len(k) == 8 if ints else 1 <= len(k) <= MAX_KEY_BYTES)), None)
    if odd is not None:
        wanted = "8 bytes" if ints else f"1 to {MAX_KEY_BYTES} bytes"
        raise Damaged(f"key {odd!r}: expected {wanted}, for the store holds {kind} ids; run `vista verify`")
    if ints:
        return (np.frombuffer(b"".join(keys), ">u8").astype(np.uint64) ^ _SIGN).view(np.int64)
    out = np.empty(len(keys), object)
    try:
        out[:] = [k.decode() for k in keys]
    except UnicodeDecodeError as error:
        raise Damaged(f"key {error.object!r}: not UTF-8; run `vista verify`") from error
    return out


def hash_of(users: np.ndarray) -> np.ndarray:
    """XXH64 (seed 0) of each user's key bytes, uint64 [n]; vectorised for int64 ids."""
    if users.dtype == object:
        digest = xxhash.xxh64_intdigest
        return np.fromiter((digest(_encode(u)) for u in users), np.uint64, len(users))
    if native.library is not None:
        return native.library.hash(users)
    # XXH64 of exactly eight bytes, read as one little-endian word.
    word = sortable(users).byteswap() * _P2
    h = _P5_AND_LENGTH ^ (_rotate(word, 31) * _P1)
    h = _rotate(h, 27) * _P1 + _P4
    h = (h ^ (h >> np.uint64(33))) * _P2
    h = (h ^ (h >> np.uint64(29))) * _P3
    return h ^ (h >> np.uint64(32))


def second_hash_of(users: np.ndarray) -> np.ndarray:
    """XXH3-64 of each string's key bytes, uint64 [n]; zeros for int64 ids, whose XXH64 is already unique."""
    if users.dtype != object:
        return np.zeros(len(users), np.uint64)
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest(_encode(u)) for u in users), np.uint64, len(users))


def bucket_of(users: Users, num_buckets: int) -> np.ndarray:
    """Bucket of each user, int32 [n]: XXH64(key bytes, seed 0) mod ``num_buckets``.

    Raises:
        KeyKind: ids of an unsupported kind.
        ValueError: ``num_buckets`` is not positive.
    """
    if num_buckets < 1:
        raise ValueError(f"num_buckets: expected at least 1, found {num_buckets}")
    return (hash_of(as_users(users)) % np.uint64(num_buckets)).astype(np.int32)


def _rotate(x: np.ndarray, bits: int) -> np.ndarray:
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))
