"""Who was forgotten, and when: what keeps a user's old rows from coming back with the log that they came from.

    forgotten(user_hash, time)      one row per user and forgetting; the salt is a property of the table

A row of a forgotten user that is dated up to the moment of forgetting is never taken in again; later ones are, for a
person may return. Users are kept as salted hashes: no id can be read from the table, though who holds it can test ids
that he knows or enumerates (docs/operations.md). Needs no catalogue: workers ask it for every row that comes in; the
table is read and written by ``remembering``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from vista.data.tables.rows import Rows

NEVER = np.iinfo(np.int64).min


@dataclass(frozen=True)
class ForgottenUsers:
    """Plain values, so that it can be sent to a worker.

    Attributes:
        salt: hex.
        times: hash to the last moment of forgetting, milliseconds.
    """

    salt: str = ""
    times: dict[str, int] = field(default_factory=dict)

    def until(self, users: np.ndarray) -> np.ndarray:
        """int64 [U]: rows of each user up to this time stay away; the least int64 where he was never forgotten."""
        if not self.times:
            return np.full(len(users), NEVER)
        return np.array([self.times.get(hashed(u, self.salt), NEVER) for u in users.tolist()], np.int64)

    def leave_out(self, rows: Rows) -> tuple[Rows, int]:
        """Rows without those of forgotten users up to the moment of forgetting, and how many that were."""
        until = self.until(rows.users) if self.times else None
        if until is None or not (until > NEVER).any():
            return rows, 0
        keep = rows.columns["time"] > np.repeat(until, rows.lengths)
        return rows.take(keep), int((~keep).sum())


def hashed(user: int | str, salt: str) -> str:
    """32 hex digits of a user id: BLAKE2b, keyed with the salt; ids are eight bytes, names UTF-8."""
    key = user.encode() if isinstance(user, str) else int(user).to_bytes(8, "little", signed=True)
    return hashlib.blake2b(key, digest_size=16, key=bytes.fromhex(salt)).hexdigest()
