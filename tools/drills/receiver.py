"""A server of Arrow Flight that notes what ``vista follow --deliver`` brings it, for the drill of verbs."""

from __future__ import annotations

import os
from typing import Any

import xxhash
from pyarrow import flight


class Receiver(flight.FlightServerBase):
    """Appends ``USER GENERATION DIGEST`` of each record to a file before it answers."""

    def __init__(self, file: str) -> None:
        super().__init__("grpc://127.0.0.1:0")
        self._file = file

    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Note one block; it is taken when this has returned."""
        generation = reader.schema.metadata[b"generation"].decode()
        rows = reader.read_all().to_pylist()
        lines = [f"{r['user']} {generation} {xxhash.xxh3_64_hexdigest(r['record'] or b'')}\n" for r in rows]
        os.makedirs(os.path.dirname(self._file), exist_ok=True)  # whoever empties the place takes it away
        with open(self._file, "a", encoding="utf-8") as file:
            file.writelines(lines)
        writer.write(b"taken")


def serve(file: str) -> None:
    """Say the port and serve until the parent is gone or this process is killed."""
    server = Receiver(file)
    print(server.port, flush=True)
    os.close(1)
    server.wait()
