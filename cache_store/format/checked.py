"""Reading small files that anybody may have written: bounded, never waited for, and every value asked what it is.

A checksum tells that a text is what its writer wrote, not that the writer meant well. What a manifest, a pointer, a
receipt or a lease says is used for sizes, places and file names, so each value is compared with its type and range
before anything else sees it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache_store.errors import LimitReached, NotPermitted, StoreError

KIB, MIB = 1 << 10, 1 << 20
MOST_COUNT = 1 << 53
"""Users, records and the like: what JSON's numbers carry without loss."""
MOST_BYTES = 1 << 46
"""Of one file: a process has 2**47 bytes of addresses."""
_TIME = 1 << 62
_DIGEST = re.compile(r"[0-9a-f]{32}")


class NotSound(ValueError):
    """A text is not JSON of the expected form; the message says field, expected and found."""


def refusal(path: Path, error: OSError) -> StoreError | None:
    """What a file that could not be opened is told as, where the system refused and the file may be sound."""
    if isinstance(error, PermissionError):
        return NotPermitted(
            f"{path}: this user may not read it ({error.strerror}); give read permission, or read as its owner"
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return LimitReached(f"{path}: {error.strerror}; raise `ulimit -n`, or open fewer stores")
    return None


def read_bounded(path: Path, limit: int) -> bytes:
    """A regular file of at most ``limit`` bytes.

    Raises:
        FileNotFoundError, NotADirectoryError, NotPermitted, LimitReached
        NotSound: larger, or no regular file. A pipe or device is not waited for.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise refusal(path, error) or NotSound(f"cannot be opened ({error.strerror})") from error
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise NotSound("expected a regular file, found something else of that name")
        if facts.st_size > limit:
            raise NotSound(f"expected at most {limit} bytes, found {facts.st_size}")
        parts, size = [], 0
        while size <= limit and (block := os.read(fd, min(MIB, limit + 1 - size))):
            parts.append(block)
            size += len(block)
    finally:
        os.close(fd)
    data = b"".join(parts)
    if len(data) > limit:
        raise NotSound(f"expected at most {limit} bytes, found more")
    return data


def json_object(text: str | bytes) -> dict[str, Any]:
    """A JSON object in which no key comes twice, at any depth, and every number is one.

    Raises:
        NotSound
    """
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError as error:
        raise NotSound("nested too deeply") from error
    except ValueError as error:
        raise error if isinstance(error, NotSound) else NotSound(f"not JSON ({error})") from error
    if not isinstance(found, dict):
        raise NotSound(f"expected a JSON object, found {type(found).__name__}")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        names = [name for name, _ in pairs]
        raise NotSound(f"key {next(n for n in names if names.count(n) > 1)!r} is there twice")
    return out


def _no_number(text: str) -> Any:
    raise NotSound(f"expected a number, found {text}")


class Fields:
    """The values of one JSON object, taken out by name; each is checked as it is taken.

    Args:
        values: what was read.
        where: prefix of field names in messages.

    Raises:
        NotSound: not an object. So do all methods, where a value is missing, of another type or out of range.
    """

    def __init__(self, values: Any, where: str = "") -> None:
        if not isinstance(values, Mapping):
            raise NotSound(f"{where or 'text'}: expected an object, found {_short(values)}")
        self._values, self._where = values, where

    def any(self, name: str) -> Any:
        """Whatever is there."""
        if name not in self._values:
            raise NotSound(f"field {self._where}{name} is missing")
        return self._values[name]

    def names(self) -> list[str]:
        return list(self._values)

    def integer(self, name: str, low: int, high: int) -> int:
        value = self.any(name)
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(name, f"an integer from {low} to {high}", value)
        return value

    def count(self, name: str) -> int:
        return self.integer(name, 0, MOST_COUNT)

    def time(self, name: str) -> int:
        """Milliseconds since the Unix epoch."""
        return self.integer(name, -_TIME, _TIME)

    def text(self, name: str, most: int = 4_096) -> str:
        value = self.any(name)
        if not isinstance(value, str) or len(value) > most or not value.isprintable():
            raise self.wrong(name, f"a text of at most {most} printable characters", value)
        return value

    def one_of(self, name: str, allowed: tuple[str, ...]) -> str:
        value = self.any(name)
        if not isinstance(value, str) or value not in allowed:
            raise self.wrong(name, f"one of {list(allowed)}", value)
        return value

    def matching(self, name: str, pattern: re.Pattern[str], what: str) -> str:
        value = self.any(name)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise self.wrong(name, what, value)
        return value

    def digest(self, name: str) -> str:
        return self.matching(name, _DIGEST, "32 hex digits")

    def list(self, name: str) -> list[Any]:
        value = self.any(name)
        if not isinstance(value, list):
            raise self.wrong(name, "a list", value)
        return value

    def object(self, name: str) -> Fields:
        return Fields(self.any(name), f"{self._where}{name}.")

    def wrong(self, name: str, expected: str, found: Any) -> NotSound:
        """The error that says what a field should have been."""
        return NotSound(f"field {self._where}{name}: expected {expected}, found {_short(found)}")


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, (dict, list)) else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."
