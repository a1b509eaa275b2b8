"""Where records go that serving elsewhere reads: ``redis`` (a stream, or a key a user), ``kafka``, ``flight``.

A sink is sent each changed user's record as the store holds it, with a :class:`Header` by which a reader knows how to
decode it. It keeps nothing of where it is: ``delivery`` sends again what may not have arrived, which the same user's
later message outweighs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from beam_jobs.errors import OptionsError

EXAMPLES = (
    "redis://HOST?stream=NAME, redis://HOST?prefix=NAME, kafka://BROKER/TOPIC or flight://HOST:PORT/NAME"
)


@dataclass(frozen=True)
class Header:
    """What is true of every record of a delivery.

    Attributes:
        line, generation: of the store it comes from.
        fingerprint: of the model; records of two models have no common meaning.
        schema: ``RecordSchema.as_dict()``.
        watermark_ms: no record has seen a later event.
    """

    line: str
    generation: str
    fingerprint: str
    schema: dict[str, Any]
    watermark_ms: int

    def fields(self) -> dict[str, str]:
        """As text, for a transport that knows only that."""
        return {
            "line": self.line,
            "generation": self.generation,
            "fingerprint": self.fingerprint,
            "schema": json.dumps(self.schema, sort_keys=True),
            "watermark_ms": str(self.watermark_ms),
        }


class Sink(Protocol):
    """Takes records; not for several threads."""

    def send(self, header: Header, users: Sequence[str], records: Sequence[bytes | None]) -> None:
        """Give B users' records, None for a user who has none any more; may return before they have arrived.

        Args:
            users: ids as text; of int64 ids their digits.

        Raises:
            SinkLost
        """
        ...

    def flush(self) -> None:
        """Return when all that was sent has arrived.

        Raises:
            SinkLost: something has not.
        """
        ...


def open_sink(url: str, kafka_config: str = "") -> Sink:
    """A sink by its URL; see :data:`EXAMPLES`.

    Raises:
        OptionsError: none of these, or its library is not installed.
    """
    scheme = url.partition("://")[0]
    try:
        if scheme in ("redis", "rediss"):
            from beam_jobs.follow.sinks.redis import RedisSink

            return RedisSink(url)
        if scheme == "kafka":
            from beam_jobs.follow.sinks.kafka import KafkaSink

            return KafkaSink(url, kafka_config)
        if scheme in ("flight", "flight+tls"):
            from beam_jobs.follow.sinks.flight import FlightSink

            return FlightSink(url)
    except ImportError as error:
        raise OptionsError(
            f"--deliver: expected the library of {scheme}, found {error}; pip install 'vista-cache[follow]'"
        ) from error
    raise OptionsError(f"--deliver: expected {EXAMPLES}, found {url!r}")
