"""How a store is read: the options of ``Store.open``, spelled once."""

from __future__ import annotations

import numbers
import time
from collections.abc import Callable
from typing import Any, TypedDict

import numpy as np

from cache_store.errors import SchemaError, StoreError
from cache_store.format.layout import MAIN

Clock = Callable[[], int]
"""Milliseconds since the Unix epoch."""


def wall_clock() -> int:
    """The clock used where none is given."""
    return time.time_ns() // 1_000_000


class ReadOptions(TypedDict, total=False):
    """Options of ``Store``, ``Store.open`` and ``Store.create``.

    Keys:
        line: which pointer to follow; ``main`` by default.
        fingerprint: of the model that will use the tokens; None, the default, takes any model's, knowingly.
        missing: what a missing user gets: ``zeros`` (the default), ``raise``, or float32 broadcastable to [S, D] (a
            learned cold-start token, say). Corrupt records get zeros or that array, never an exception.
        max_age_ms: records summarised longer ago are STALE; None, the default, for no limit.
        verify: check every record on read (check word of the index, header, payload hash), and every index when a
            generation is opened; the default. False still recognises another user's or another model's record.
        clock: milliseconds now; the wall clock by default.
        lease: tell ``prune`` what is in use (a small file under ``leases/``); the default.
        threads: that copy and decode one large batch together; by default 2, or 1 where only one core may be used.
    """

    line: str
    fingerprint: str | None
    missing: str | np.ndarray
    max_age_ms: int | None
    verify: bool
    clock: Clock | None
    lease: bool
    threads: int | None


DEFAULTS: ReadOptions = {
    "line": MAIN,
    "fingerprint": None,
    "missing": "zeros",
    "max_age_ms": None,
    "verify": True,
    "clock": None,
    "lease": True,
    "threads": None,
}


def completed(options: ReadOptions) -> ReadOptions:
    """The options with what was left open.

    Raises:
        TypeError: an option that there is none of. StoreError: ``missing`` is neither a policy nor an array.
    """
    unknown = sorted(set(options) - set(DEFAULTS))
    if unknown:
        raise TypeError(f"options of a store: expected some of {sorted(DEFAULTS)}, found {unknown}")
    given: ReadOptions = {**DEFAULTS, **options}
    missing = given["missing"]
    if isinstance(missing, str) and missing not in ("zeros", "raise"):
        raise StoreError(f"missing: expected 'zeros', 'raise' or an array [S, D], found {missing!r}")
    age = given["max_age_ms"]
    if age is not None and not (isinstance(age, numbers.Real) and age >= 0):
        raise StoreError(f"max_age_ms: expected None or milliseconds, at least 0, found {age!r}")
    return given


def moments(as_of: Any) -> np.ndarray:
    """Milliseconds of ``as_of`` as int64, [] or [B]; a fraction is left off, so that nothing later is seen.

    Raises:
        SchemaError: no numbers, such as a date, whose unit nobody knows; or past what int64 holds.
    """
    times = np.asarray(as_of)
    if times.dtype.kind == "f" and (np.abs(times) <= 2.0 ** (np.finfo(times.dtype).nmant + 1)).all():
        times = np.floor(times)  # what NaN and a float whose digits were lost are not
    elif times.dtype.kind not in "iu":
        raise SchemaError(f"as_of: expected milliseconds since 1970 as numbers, found {as_of!r:.80}")
    with np.errstate(invalid="ignore"):
        found = times.astype(np.int64)
    if (found != times).any():
        raise SchemaError(f"as_of: expected milliseconds that int64 holds, found {as_of!r:.80}")
    if isinstance(as_of, np.ndarray) and np.any(getattr(as_of, "mask", False)):
        raise SchemaError(f"as_of: expected a time for each row, found {as_of!r:.80}")
    return found
