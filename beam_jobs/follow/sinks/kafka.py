"""Records into a Kafka topic: key is the user, value the record, null if gone; the header's fields are headers.

    kafka://BROKER[:PORT][,BROKER...]/TOPIC

A topic that is compacted by key (``cleanup.policy=compact``) is a store of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from beam_jobs.errors import OptionsError, SinkLost
from beam_jobs.follow.kafka_client import client
from beam_jobs.follow.sinks import Header
from beam_jobs.run.secrets import redacted

TIMEOUT_S = 60.0


class KafkaSink:
    """One topic; messages of one user are in order.

    Args:
        url: see the module.
        config: file of further settings, for security say (``kafka_client``).
    """

    def __init__(self, url: str, config: str = ""):
        parts = urlsplit(url)
        self._topic = parts.path.strip("/")
        if not parts.netloc or not self._topic or "/" in self._topic or parts.query:
            raise OptionsError(
                f"--deliver {redacted(url)}: expected brokers and one topic; for example kafka://localhost:9092/summaries"
            )
        self._at = redacted(url)
        self._refused: KafkaError | None = None
        ours: dict[str, str | bool | int] = {
            "bootstrap.servers": parts.netloc,
            "enable.idempotence": True,
            "message.timeout.ms": int(TIMEOUT_S * 1000),
        }
        self._producer = client(Producer, config, ours)

    def send(self, header: Header, users: Sequence[str], records: Sequence[bytes | None]) -> None:
        headers: dict[str, str | bytes | None] = dict(header.fields())
        try:
            for user, record in zip(users, records, strict=True):
                while True:
                    try:
                        self._producer.produce(
                            self._topic, record, user.encode(), headers=headers, on_delivery=self._told
                        )
                        break
                    except BufferError:  # its queue is full: wait for some to arrive
                        self._producer.poll(0.1)
                self._producer.poll(0)
        except KafkaException as error:
            raise self._lost(error) from error

    def flush(self) -> None:
        left = self._producer.flush(TIMEOUT_S)
        refused, self._refused = self._refused, None
        if refused is not None or left:
            raise self._lost(refused or f"{left} still under way after {TIMEOUT_S:g} s")

    def _told(self, error: KafkaError | None, message: Message) -> None:
        self._refused = self._refused or error

    def _lost(self, why: object) -> SinkLost:
        return SinkLost(
            f"{self._at}: expected every record to be taken, found {why}; see that the broker answers and takes "
            f"messages of this size (message.max.bytes), and run vista follow again, it delivers what is missing"
        )
