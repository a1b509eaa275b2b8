"""Whom ``forget`` removed, and when, so that nothing older brings them back: a copy that is pulled, a run or a
compaction that was under way.

    STORE/FORGOTTEN
      vista-forgotten 1 SALT              32 hex digits, random, of this store alone
      HASH TIME                           BLAKE2b-128 of the key bytes, keyed with SALT; ms since the Unix epoch, later
                                          than every TIME that was there before
      check 3f2a…                         XXH3-64 of the lines above

No id, and no hash that a record holds, is among the bytes. Whoever can read the file can still ask it about an id that
he knows: once every copy was pushed and swept anew, it may be deleted.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from cache_store.errors import Damaged
from cache_store.format.checked import NotSound, read_bounded
from cache_store.format.layout import Layout, write_file

_FIRST = "vista-forgotten 1 "
_HASH = re.compile("[0-9a-f]{32}")
_ENTRY = re.compile("([0-9a-f]{32}) (-?[0-9]{1,18})")
_MOST_TEXT = 1 << 30
"""Bytes of FORGOTTEN, at most: of 20 million users."""
NEVER, ALWAYS = -1, 1 << 62
"""Time of a user who was not forgotten; and of one of whom nothing may come in, however new."""


@dataclass(frozen=True)
class Forgotten:
    """Salted hashes of users with the time at which each was forgotten last."""

    salt: bytes = field(default_factory=lambda: os.urandom(16))
    times: dict[str, int] = field(default_factory=dict)

    def when(self, keys: Sequence[bytes]) -> np.ndarray:
        """Time at which each user was forgotten, int64 [n], or ``NEVER``.

        Args:
            keys: key bytes of users.
        """
        if not self.times:
            return np.full(len(keys), NEVER)
        return np.array([self.times.get(self._hash(key), NEVER) for key in keys], np.int64)

    @property
    def last(self) -> int:
        """Time of the last forgetting; 0 before the first."""
        return max(self.times.values(), default=0)

    def with_users(self, keys: Sequence[bytes], now_ms: int) -> Forgotten:
        """The same and these users."""
        now = max(now_ms, self.last + 1)
        return Forgotten(self.salt, {**self.times, **{self._hash(key): now for key in keys}})

    def since(self, last: int) -> Forgotten:
        """Only users forgotten since ``last``, for ever: of whom something was read before that."""
        return Forgotten(self.salt, {name: ALWAYS for name, time in self.times.items() if time > last})

    def _hash(self, key: bytes) -> str:
        return hashlib.blake2b(key, digest_size=16, key=self.salt).hexdigest()


def read(layout: Layout) -> Forgotten:
    """What FORGOTTEN says; nobody where there is none.

    Raises:
        Damaged
    """
    remedy = "restore it, or delete it and run `vista forget` again for the users whom an older remote copy still holds"
    try:
        text = read_bounded(layout.forgotten, _MOST_TEXT).decode("ascii", "replace")
    except FileNotFoundError:
        return Forgotten()
    except NotSound as error:
        raise Damaged(f"{layout.forgotten}: {error}; {remedy}") from error
    body, _, check = text.rpartition("check ")
    lines = body.splitlines()
    if not lines or not lines[0].startswith(_FIRST) or check != _check(body):
        raise Damaged(f"{layout.forgotten}: check fails; {remedy}")
    salt, entries = lines[0].removeprefix(_FIRST), [_ENTRY.fullmatch(line) for line in lines[1:]]
    if not _HASH.fullmatch(salt) or not all(entries):
        raise Damaged(
            f"{layout.forgotten}: expected a salt, then a hash and a time a line, found another; {remedy}"
        )
    return Forgotten(bytes.fromhex(salt), {e[1]: int(e[2]) for e in entries if e})


def write(layout: Layout, forgotten: Forgotten) -> None:
    """Replace FORGOTTEN. The store's lock is held.

    Raises:
        OSError
    """
    entries = "".join(f"{name} {time}\n" for name, time in sorted(forgotten.times.items()))
    body = f"{_FIRST}{forgotten.salt.hex()}\n{entries}"
    write_file(layout.forgotten, f"{body}check {_check(body)}".encode())


def _check(body: str) -> str:
    return xxhash.xxh3_64_hexdigest(body.encode()) + "\n"
