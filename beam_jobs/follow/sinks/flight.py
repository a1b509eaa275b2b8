"""Records to a server of Arrow Flight, one ``DoPut`` a block.

    flight://HOST:PORT/NAME, or flight+tls://...   NAME is the path of the descriptor

Columns: ``user`` (string), ``record`` (binary, null if gone). The header's fields are the metadata of the schema.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import flight

from beam_jobs.errors import OptionsError, SinkLost
from beam_jobs.follow.sinks import Header
from beam_jobs.run.secrets import redacted

TIMEOUT_S = 60.0


class FlightSink:
    """One path of a server; it has taken a block when its ``DoPut`` has returned."""

    def __init__(self, url: str):
        parts = urlsplit(url)
        name = parts.path.strip("/")
        if not parts.hostname or not parts.port or not name or parts.query:
            raise OptionsError(
                f"--deliver {redacted(url)}: expected a host, a port and a name; for example flight://localhost:8815/summaries"
            )
        self._at = redacted(url)
        scheme = "grpc+tls" if parts.scheme == "flight+tls" else "grpc"
        self._client = flight.FlightClient(f"{scheme}://{parts.hostname}:{parts.port}")
        self._path = flight.FlightDescriptor.for_path(name)
        self._options = flight.FlightCallOptions(timeout=TIMEOUT_S)

    def send(self, header: Header, users: Sequence[str], records: Sequence[bytes | None]) -> None:
        columns = pa.schema([("user", pa.string()), ("record", pa.binary())], metadata=header.fields())
        batch = pa.record_batch(
            [pa.array(users, pa.string()), pa.array(records, pa.binary())], schema=columns
        )
        try:
            writer, answers = self._client.do_put(self._path, columns, self._options)
            with writer:
                writer.write_batch(batch)
                writer.done_writing()
                answers.read()
        except pa.ArrowException as error:
            raise SinkLost(
                f"{self._at}: expected {len(users)} records to be taken, found {error}; see that the server answers, "
                f"and run vista follow again, it delivers what is missing"
            ) from error

    def flush(self) -> None:
        pass  # every DoPut was answered
