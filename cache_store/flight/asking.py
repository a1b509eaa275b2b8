"""What a request says: the users, and in which form they are answered. The same for an exchange and for a ticket."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cache_store.errors import SchemaError, StoreError
from cache_store.format.keys import as_users
from cache_store.format.record import RecordSchema
from cache_store.read.columns import forms_of

OPTIONS = b"vista"
"""Key in the metadata of a ticket's schema under which the options lie."""


class BadRequest(StoreError, ValueError):
    """A request that no server can answer: no JSON, unknown options, not one column of users."""


class Busy(StoreError):
    """More is asked for than the server takes on at a time; ask again a little later."""


class Stopping(StoreError):
    """The server is about to end; ask another, or again once it is back."""


class Moved(StoreError):
    """The live generation has other columns than this exchange began with; open it anew."""


@dataclass(frozen=True)
class Asked:
    """Options of a request.

    Attributes:
        form: ``sequence``, ``groups`` or ``rows``; None takes the first that the records have.
        tokens: items of a sequence, at most.
        fingerprint: of the model that the summaries must be of; None takes any.
    """

    form: str | None = None
    tokens: int = 128
    fingerprint: str | None = None

    @staticmethod
    def parse(text: bytes | None) -> Asked:
        """From JSON, as the command of an exchange has it; nothing is all defaults.

        Raises:
            BadRequest
        """
        try:
            found = json.loads(text) if text else {}
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"options: expected a JSON object, found {error}") from error
        if not isinstance(found, Mapping):
            raise BadRequest(f"options: expected a JSON object, found {type(found).__name__}")
        unknown = sorted(set(found) - {"form", "tokens", "fingerprint"})
        if unknown:
            raise BadRequest(f"options: expected form, tokens or fingerprint, found {unknown[0]!r}")
        asked = Asked(**found)
        if asked.form not in (None, "sequence", "groups", "rows"):
            raise BadRequest(f"form: expected sequence, groups or rows, found {asked.form!r}")
        if type(asked.tokens) is not int or not 1 <= asked.tokens <= 1 << 16:
            raise BadRequest(f"tokens: expected 1 to {1 << 16}, found {asked.tokens!r}")
        if asked.fingerprint is not None and not isinstance(asked.fingerprint, str):
            raise BadRequest(f"fingerprint: expected text, found {asked.fingerprint!r}")
        return asked

    def form_of(self, schema: RecordSchema) -> str:
        """The form to answer in.

        Raises:
            SchemaError: such records do not have it.
        """
        there = forms_of(schema)
        if self.form is not None and self.form not in there:
            raise SchemaError(
                f"form: expected one of {', '.join(there)} for these records, found {self.form}"
            )
        return self.form or there[0]


def users_of(batch: pa.RecordBatch, kind: str) -> np.ndarray:
    """The users of a request, as :func:`cache_store.format.keys.as_users` has them.

    Raises:
        BadRequest: not one column. KeyKind
    """
    if batch is None or batch.num_columns != 1:
        found = "no batch" if batch is None else f"{batch.num_columns} columns"
        raise BadRequest(f"users: expected batches of one column, user, found {found}")
    return as_users(batch.column(0), kind)


def read_ticket(data: bytes) -> tuple[Asked, pa.RecordBatch]:
    """Options and users of a ticket: a stream of Arrow's IPC.

    Raises:
        BadRequest
    """
    try:
        with pa.ipc.open_stream(data) as stream:
            table = stream.read_all().combine_chunks()
    except (pa.ArrowException, OSError, EOFError) as error:
        raise BadRequest(f"ticket: expected an IPC stream of Arrow, found {error}") from error
    options: Any = (table.schema.metadata or {}).get(OPTIONS)
    batches = table.to_batches()
    empty = pa.RecordBatch.from_arrays([pa.array([], f.type) for f in table.schema], schema=table.schema)
    return Asked.parse(options), batches[0] if batches else empty
