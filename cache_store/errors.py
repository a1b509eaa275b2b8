"""One class per failure of the store. Each text names the file or user, what was expected, what was found, and
the next command."""

from __future__ import annotations

import importlib.util
import sys


class StoreError(Exception):
    """Base of every error of the store.

    ``exit_code`` is what the command line returns for it; the table is in docs/operations.md.
    """

    exit_code = 2


class MissingExtra(StoreError, ModuleNotFoundError):
    """A part was asked for whose packages are not installed; the text names the extra that has them."""


class KeyKind(StoreError, TypeError):
    """User ids are not of the store's kind (int64 or string), or a string key is not 1 to 511 bytes of UTF-8."""


class SchemaError(StoreError, ValueError):
    """A record schema is not valid, or arrays do not have the shape and dtype that the schema declares."""


class Unstorable(StoreError, ValueError):
    """Tokens of a user cannot be stored by the group's codec: not finite, out of range, or negative counters.

    Attributes:
        users: the user ids concerned, so that a job can send them to its dead letters.
    """

    exit_code = 3

    def __init__(self, text: str, users: list[int | str]) -> None:
        super().__init__(text)
        self.users = users


class OutOfOrder(StoreError, ValueError):
    """Users were not added in strictly ascending key order."""


class WrongBucket(StoreError, ValueError):
    """A user was added to a shard that is not the one of its bucket."""


class FormatUnknown(StoreError):
    """The directory is no store, or was written in a format or with a feature that this version cannot read."""


class Damaged(StoreError):
    """A file is missing, truncated, swapped or altered; the text names it and the remedy."""

    exit_code = 4


class FingerprintMismatch(StoreError):
    """The summaries were made by another model than the one that asks for them."""


class NothingPublished(StoreError):
    """The line has no live generation, or none is old enough for an as-of read."""


class GenerationUnknown(StoreError):
    """No kept generation has this name."""


class PublishConflict(StoreError):
    """Another publisher changed the line: the parent is no longer live."""

    exit_code = 4


class Incomplete(StoreError):
    """Law 8 does not hold (expected = written + dead-lettered), or a shard of the run is missing."""

    exit_code = 4


class ChainTooDeep(StoreError):
    """A chain of delta generations has reached its bound; compact it."""

    exit_code = 4


class MissingUsers(StoreError, LookupError):
    """Users are not in the store and the missing policy is ``raise``.

    Attributes:
        users: their ids.
    """

    def __init__(self, text: str, users: list[int | str]) -> None:
        super().__init__(text)
        self.users = users


class StorageFull(StoreError, OSError):
    """No space is left; the live generation is untouched."""

    exit_code = 4


class ReadOnlyStorage(StoreError, OSError):
    """The filesystem or directory refuses writes; the live generation is untouched."""

    exit_code = 4


class NotPermitted(StoreError, PermissionError):
    """This user may not read a file or folder; it may be whole."""

    exit_code = 4


class LimitReached(StoreError, OSError):
    """A limit of the operating system would be passed: mappings, addresses or open files of a process; the text gives
    the sum and the remedy."""

    exit_code = 4


class StoreClosed(StoreError):
    """The store was closed, or its pinned generation is gone."""


class StoreBusy(StoreError):
    """Another process is publishing, pruning, compacting or forgetting in this store."""

    exit_code = 4


def needs(extra: str, *modules: str) -> None:
    """Ask whether what an extra installs is there.

    Raises:
        MissingExtra: it is not; the text says which to install.
    """
    missing = [name for name in modules if name not in sys.modules and importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"expected {', '.join(missing)}, found none installed; run pip install 'vista-cache[{extra}]'",
            name=missing[0],
        )
