"""The server: users in, one record batch out. docs/serve-protocol.md says it without Python.

An exchange stays open, each batch of users is answered by one batch; a ticket asks once. Both are answered from the
generation that is live now, which is followed by a thread of its own. Errors are Flight's, with the name of ours in
front of their text and as JSON in their extra information; they never carry a trace of this side.
"""

from __future__ import annotations

import dataclasses
import hmac
import json
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import flight

from cache_store.errors import FingerprintMismatch, NothingPublished, StoreClosed, StoreError
from cache_store.flight.asking import Asked, BadRequest, Busy, Moved, Stopping, read_ticket, users_of
from cache_store.flight.coalescing import Coalescer
from cache_store.flight.counts import ServerCounts
from cache_store.format.manifest import Manifest
from cache_store.format.record import PAGE_HEADER, RecordSchema
from cache_store.read import columns
from cache_store.read.found import RawLookup, heaviest
from cache_store.store import Store

PER_REQUEST = 8_192
PER_LOOKUP = 2_048
WAITING = 65_536
STREAMS = 256
_LATER = (NothingPublished, StoreClosed, Busy, Stopping, Moved)
"""What passes: the same request may be answered a little later."""


@dataclass(frozen=True)
class Limits:
    """What a server takes on at a time.

    Attributes:
        per_request: users of one request.
        per_lookup: users of requests that are looked up together.
        waiting: users that wait to be looked up.
        streams: exchanges that are open.
    """

    per_request: int = PER_REQUEST
    per_lookup: int = PER_LOOKUP
    waiting: int = WAITING
    streams: int = STREAMS


@dataclass(frozen=True)
class Tls:
    """Certificate and key, PEM; ``client_ca``: only clients whose certificate is by it."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None = None


@dataclass(frozen=True)
class _Served:
    """What one lookup has found, and of which generation."""

    found: RawLookup
    manifest: Manifest


class SummaryServer(flight.FlightServerBase):
    """Answers from the making of it until :meth:`close`.

    Args:
        store: not opened yet (``Store(path, ...)``) or opened; this server moves and closes it.
        host, port: where to listen; port 0 takes a free one, see ``port``.
        tokens: one of which a caller must show; none lets everybody in.
        vectors: for the fingerprint of a model its item vectors, int64 [M] ids ascending and float32 [M, D], or None.
        refresh_s: how often to look for a new generation.
    """

    def __init__(
        self,
        store: Store,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        tokens: Sequence[str] = (),
        tls: Tls | None = None,
        vectors: Callable[[str], tuple[np.ndarray, np.ndarray] | None] = lambda fingerprint: None,
        limits: Limits | None = None,
        refresh_s: float = 1.0,
    ) -> None:
        self.store, self.counts, self.limits = store, ServerCounts(), limits or Limits()
        self._vectors_of, self._vectors = vectors, dict[str, tuple[np.ndarray, np.ndarray] | None]()
        self._refresh_s = refresh_s
        self._lookups = Coalescer(self._look, self.limits.per_lookup, self.limits.waiting)
        self._state = threading.Condition()
        self._busy = self._streams = 0
        self._stop, self._draining = threading.Event(), False
        self.problem: str | None = None
        self._move()
        super().__init__(
            f"grpc{'+tls' if tls else ''}://{f'[{host}]' if ':' in host else host}:{port}",
            tls_certificates=[(tls.certificate, tls.key)] if tls else None,
            verify_client=bool(tls and tls.client_ca),
            root_certificates=tls.client_ca if tls else None,
            middleware={"token": _Guard([t.encode() for t in tokens], self.counts)} if tokens else None,
        )
        self._mover = threading.Thread(target=self._follow, name="vista-serve-follow", daemon=True)
        self._mover.start()

    # What Flight calls

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Every batch of users answered by a batch, until the caller is done."""
        with self._told(), self._stream():
            asked, begun = Asked.parse(descriptor.command), None
            while True:
                try:
                    batch = reader.read_chunk().data
                except StopIteration:
                    return
                answer = self._answer(asked, batch)
                if begun is None:
                    begun = answer.schema
                    writer.begin(begun)
                elif begun != answer.schema:
                    raise Moved("the live generation has other columns; open the exchange anew")
                writer.write_batch(answer)

    def do_get(self, context: Any, ticket: Any) -> Any:
        """The users of a ticket answered once."""
        with self._told():
            answer = self._answer(*read_ticket(ticket.ticket))
            return flight.RecordBatchStream(pa.Table.from_batches([answer]))

    def list_actions(self, context: Any) -> list[tuple[str, str]]:
        """``describe`` alone."""
        what = "what is served now, as JSON: ids, groups, tables, model, generation, clocks, limits"
        return [("describe", what)]

    def do_action(self, context: Any, action: Any) -> Iterator[bytes]:
        """``describe``: what is served now."""
        with self._told():
            if action.type != "describe":
                raise StoreError(f"action: expected describe, found {action.type!r}")
            m = self.store.manifest
            told = {
                "generation": m.generation,
                "fingerprint": m.fingerprint,
                "published_ms": m.published_ms,
                "newest_event_ms": m.watermark_ms,
                "schema": m.schema.as_dict(),
                "row_bytes": m.schema.row_bytes,
                "forms": list(columns.forms_of(m.schema)),
                "limits": dataclasses.asdict(self.limits),
            }
            return iter([json.dumps(told).encode()])

    # Answering

    def _answer(self, asked: Asked, batch: pa.RecordBatch) -> pa.RecordBatch:
        with self._working():
            users = users_of(batch, self.store.format.user_kind)
            if len(users) > self.limits.per_request:
                raise BadRequest(
                    f"users: expected at most {self.limits.per_request} of one request, found {len(users)}"
                )
            served, rows = self._lookups.ask(users)
            manifest, found = served.manifest, _part(served.found, rows)
            if asked.fingerprint not in (None, manifest.fingerprint):
                raise FingerprintMismatch(
                    f"generation {manifest.generation}: made by model {manifest.fingerprint}, asked for "
                    f"{asked.fingerprint}"
                )
            form, schema = asked.form_of(manifest.schema), manifest.schema
            if form == "rows":
                return columns.of_rows(found, users, manifest.published_ms)
            if form == "groups":
                tokens = np.empty((len(users), schema.tokens, schema.width), np.float32)
                schema.decode(_records(found, schema), tokens)
                return columns.of_groups(found.decoded(tokens, users, schema), manifest.published_ms)
            return self._sequence(found, users, asked.tokens, manifest)

    def _sequence(
        self, found: RawLookup, users: np.ndarray, count: int, manifest: Manifest
    ) -> pa.RecordBatch:
        """Decodes what a sequence needs and no more."""
        schema = manifest.schema
        table = next(t for t in schema.tables if t.keys)
        records, n = _records(found, schema), table.entries * table.horizons
        keys = schema.decode_group(records, table.keys).reshape(len(records), -1).view(np.int64)
        masses = schema.decode_group(records, table.masses).reshape(len(records), -1)[:, :n]
        seen = heaviest(
            keys[:, : table.entries],
            masses.reshape(-1, table.entries, table.horizons),
            table.deciding,
            count,
        )
        vectors = self._vectors.get(manifest.fingerprint)
        if vectors is None:
            return columns.of_sequence(found, users, seen, None, manifest.published_ms)
        values, known = columns.tokens_of(vectors, seen.items)
        seen = seen._replace(log_mass=np.where(known, seen.log_mass, np.float32(-np.inf)))
        return columns.of_sequence(found, users, seen, values, manifest.published_ms)

    def _look(self, users: np.ndarray) -> _Served:
        self.counts.users.observe(len(users))
        while True:
            manifest, found = self.store.manifest, self.store.lookup_raw(users)
            if found.generation == manifest.generation:  # else it moved between the two
                return _Served(found, manifest)

    # State

    @property
    def ready(self) -> str | None:
        """Why it should not be asked now; None where it may."""
        if self._draining:
            return "stopping"
        return None if self.store.generation_read else self.problem or "nothing is live"

    def _follow(self) -> None:
        while not self._stop.wait(self._refresh_s):
            self._move()

    def _move(self) -> None:
        try:
            self.store.refresh()
            self._take_vectors(self.store.manifest.fingerprint)
            self.problem = None
        except StoreClosed:
            return
        except Exception as error:  # the next look may find a good one; until then it is told
            if str(error) != self.problem:
                self.counts.errors.labels("refresh").inc()
                print(f"vista serve: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            self.problem = str(error)

    def _take_vectors(self, fingerprint: str) -> None:
        if fingerprint not in self._vectors:
            last = next(reversed(self._vectors), None)
            kept = {last: self._vectors[last]} if last is not None else {}
            self._vectors = {**kept, fingerprint: self._vectors_of(fingerprint)}

    @contextmanager
    def _working(self) -> Iterator[None]:
        with self._state:
            if self._stop.is_set():
                raise Stopping("the server is about to end")
            self._busy += 1
        start = time.perf_counter()
        try:
            yield
            self.counts.requests.inc()
            self.counts.seconds.observe(time.perf_counter() - start)
        finally:
            with self._state:
                self._busy -= 1
                self._state.notify_all()

    @contextmanager
    def _stream(self) -> Iterator[None]:
        with self._state:
            if self._streams >= self.limits.streams:
                raise Busy(f"{self._streams} exchanges are open; close some, or ask another server")
            self._streams += 1
            self.counts.streams.inc()
        try:
            yield
        finally:
            with self._state:
                self._streams -= 1
                self.counts.streams.dec()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Errors as Flight's."""
        try:
            yield
        except flight.FlightError:
            raise
        except Exception as error:
            name = type(error).__name__
            self.counts.errors.labels(name).inc()
            later = isinstance(error, _LATER)
            grave = not isinstance(error, StoreError) or error.exit_code == 4
            kind = flight.FlightUnavailableError if later else flight.FlightServerError
            text = "nothing is live yet" if isinstance(error, (NothingPublished, StoreClosed)) else str(error)
            if grave:  # somebody here must look; paths and traces are not for callers
                print(f"vista serve: {name}: {error}", file=sys.stderr, flush=True)
                if not isinstance(error, StoreError):
                    traceback.print_exc()
                kind = flight.FlightInternalError
                text = "see the server's log, and `vista status` where it runs"
            info = json.dumps({"error": name, "retry": later}).encode()
            raise kind(f"{name}: {text}", info) from None

    def drain(self) -> None:
        """Say on ``/readyz`` that nobody should come any more; those who do are still answered."""
        self._draining = True

    def close(self, grace_s: float = 10.0) -> bool:
        """Answer what is under way, refuse what comes, close the store; whether all was answered within ``grace_s``.

        Exchanges that callers keep open stay so until they ask, or the process ends.
        """
        self.drain()
        self._stop.set()
        with self._state:
            done = self._state.wait_for(lambda: not self._busy, grace_s)
        self._mover.join(grace_s)
        threading.Thread(target=self.shutdown, daemon=True).start()  # it waits for exchanges, however idle
        self.store.close()
        return done


class _Guard(flight.ServerMiddlewareFactory):
    """Lets in who shows a token: ``authorization: Bearer TOKEN``."""

    def __init__(self, tokens: Sequence[bytes], counts: ServerCounts) -> None:
        self._tokens, self._counts = tokens, counts

    def start_call(self, info: Any, headers: Mapping[str, Sequence[str]]) -> None:
        given = [
            value for name, values in headers.items() if name.lower() == "authorization" for value in values
        ]
        shown = given[0].encode() if len(given) == 1 else b""
        # all of them, so that the time does not tell which was nearly right
        if not sum(hmac.compare_digest(shown, b"Bearer " + token) for token in self._tokens):
            self._counts.errors.labels("Unauthenticated").inc()
            raise flight.FlightUnauthenticatedError(
                "Unauthenticated: expected a token that this server knows, as `authorization: Bearer TOKEN`",
                json.dumps({"error": "Unauthenticated", "retry": False}).encode(),
            )


def _part(found: RawLookup, rows: slice) -> RawLookup:
    """Some rows of a lookup, views."""
    if rows == slice(0, len(found.status)):
        return found
    return RawLookup(
        found.rows[rows], found.status[rows], found.event_count[rows], found.last_event_ms[rows],
        found.summarized_ms[rows], found.generation,
    )  # fmt: skip


def _records(found: RawLookup, schema: RecordSchema) -> np.ndarray:
    """The records of rows, structured [B]; all zero, and so tokens of zeros, where there is none."""
    return found.rows[:, PAGE_HEADER : PAGE_HEADER + schema.record_bytes].view(schema.dtype)[:, 0]


def read_vectors(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Item vectors of a bundle's ``vectors.npz``: int64 [M] ids ascending, float32 [M, D] of length 1.

    Raises:
        StoreError: no such file, or one without these arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            ids, vectors = np.asarray(file["ids"], np.int64), np.asarray(file["vectors"], np.float32)
    except (OSError, KeyError, ValueError) as error:
        raise StoreError(
            f"{path}: expected arrays ids and vectors, found {error}; run `vista train`"
        ) from error
    order = np.argsort(ids, kind="stable")
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return ids[order], unit[order]
