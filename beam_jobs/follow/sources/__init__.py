"""Where events come from, and how far they have been taken.

``folder`` (files that appear), ``redis_streams`` and ``kafka``. A position says up to where a source was read. It is
committed in the same Iceberg commit as the events, so a crash at any moment neither loses nor repeats one: whoever
starts again reads on from the tables' own position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from beam_jobs.errors import OptionsError
from beam_jobs.run.secrets import redacted


@dataclass(frozen=True)
class Arrived:
    """What a source gave.

    Attributes:
        position: up to where it was read; what ``read`` goes on after.
        messages: JSON objects, one event each, as bytes; or none, and
        files: logs to be read whole.
        arrived_ms: when the oldest of them arrived at the source, where it knows; for the lag that is reported.
    """

    position: str
    messages: Sequence[bytes] = ()
    files: Sequence[str] = ()
    arrived_ms: int | None = None


class EventSource(Protocol):
    """Events in an order that does not change."""

    name: str
    """Under which the tables keep the position."""

    def read(self, after: str, most: int, wait_s: float) -> Arrived | None:
        """At most ``most`` events after a position ("" is the beginning), or None after ``wait_s`` seconds without.

        Raises:
            SourceLost: it does not answer, or no longer has what comes after the position.
        """
        ...


def open_source(url: str, kafka_config: str = "") -> EventSource:
    """A source by its URL.

    Args:
        url: ``redis://HOST[:PORT][/DB]?stream=NAME``, ``kafka://BROKER[,BROKER]/TOPIC``, or the path of a folder.
        kafka_config: file of settings for Kafka (``kafka_client``).

    Raises:
        OptionsError: none of these, or its library is not installed.
    """
    scheme = url.partition("://")[0] if "://" in url else "folder"
    try:
        if scheme in ("redis", "rediss"):
            from beam_jobs.follow.sources.redis_streams import RedisStream

            return RedisStream(url)
        if scheme == "kafka":
            from beam_jobs.follow.sources.kafka import KafkaTopic

            return KafkaTopic(url, kafka_config)
    except ImportError as error:
        raise OptionsError(
            f"{redacted(url)}: expected the library of {scheme}, found {error}; pip install 'vista-cache[follow]'"
        ) from error
    if scheme == "folder":
        from beam_jobs.follow.sources.folder import Folder

        return Folder(url)
    raise OptionsError(
        f"source: expected a folder, redis://HOST?stream=NAME or kafka://BROKER/TOPIC, found {redacted(url)!r}; "
        f"see vista follow --help"
    )
