"""A client: one exchange kept open, opened anew where the server was restarted or moved to other columns."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from typing import Any

import pyarrow as pa
from pyarrow import flight

from cache_store.format.keys import Users, as_users


class SummaryClient:
    """Asks one server; for one thread at a time.

    Args:
        address: ``grpc://HOST:PORT``, or ``grpc+tls://...``.
        token: shown with every call.
        root: PEM of the authority that the server's certificate is by; that of the system by default.
        retry_s: how long a server that is away, busy or stopping is asked again. Lookups change nothing, so asking
            again is safe.
        options: ``form``, ``tokens``, ``fingerprint`` (docs/serve-protocol.md).
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        root: bytes | None = None,
        retry_s: float = 10.0,
        **options: Any,
    ) -> None:
        self._address, self._root, self._retry_s = address, root, retry_s
        self._call = flight.FlightCallOptions(
            headers=[(b"authorization", f"Bearer {token}".encode())] if token else []
        )
        self._descriptor = flight.FlightDescriptor.for_command(json.dumps(options).encode())
        self._client: Any = None
        self._exchange: Any = None
        self._schema: Any = None

    def lookup(self, users: Users) -> pa.RecordBatch:
        """A row for each user, in their order.

        Raises:
            pyarrow.flight.FlightError: with the server's reason; ``extra_info`` is JSON with ``error`` and ``retry``.
        """
        ids = as_users(users)
        column = pa.array(ids, pa.string() if ids.dtype == object else pa.int64())
        batch = pa.record_batch({"user": column})
        end, pause = time.monotonic() + self._retry_s, threading.Event()
        while True:
            try:
                return self._ask(batch)
            except (flight.FlightUnavailableError, flight.FlightTimedOutError, StopIteration, OSError):
                self.close()
                if time.monotonic() > end:
                    raise
                pause.wait(0.05)
            except flight.FlightError:
                self.close()
                raise

    def describe(self) -> dict[str, Any]:
        """What is served now."""
        self._connect()
        found = next(iter(self._client.do_action(flight.Action("describe", b""), self._call)))
        told: dict[str, Any] = json.loads(found.body.to_pybytes())
        return told

    def _connect(self) -> None:
        if self._client is None:
            self._client = flight.connect(
                self._address,
                tls_root_certs=self._root,
                generic_options=[("grpc.max_reconnect_backoff_ms", 200)],
            )

    def _ask(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        self._connect()
        if self._exchange is None or self._schema != batch.schema:
            writer, reader = self._client.do_exchange(self._descriptor, self._call)
            writer.begin(batch.schema)
            self._exchange, self._schema = (writer, reader), batch.schema
        writer, reader = self._exchange
        writer.write_batch(batch)
        return reader.read_chunk().data

    def close(self) -> None:
        """Let go of the connection; the next lookup opens one."""
        exchange, client = self._exchange, self._client
        self._exchange = self._client = None
        for part in (*(exchange or ()), client):
            if hasattr(part, "close"):
                with contextlib.suppress(pa.ArrowException, OSError, flight.FlightError):
                    part.close()  # what it is closed for was told before

    def __enter__(self) -> SummaryClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
