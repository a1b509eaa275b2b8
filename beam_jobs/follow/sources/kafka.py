"""A Kafka topic whose message values are JSON objects, one event each.

The position is the next offset of every partition, as JSON. It lives in the tables, not in a consumer group: nothing is
committed to the broker. An offset that the broker no longer has is an error, not a gap.
"""

from __future__ import annotations

import json
import time
from urllib.parse import urlsplit

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from beam_jobs.errors import OptionsError, SourceLost
from beam_jobs.follow.kafka_client import GROUP, client
from beam_jobs.follow.sources import Arrived
from beam_jobs.run.secrets import redacted

TIMEOUT_S = 10.0


class KafkaTopic:
    """Messages of one topic; within a partition in order.

    Args:
        url: ``kafka://BROKER[:PORT][,BROKER...]/TOPIC``.
        config: file of further settings, for security say (``kafka_client``).
    """

    def __init__(self, url: str, config: str = ""):
        parts = urlsplit(url)
        self.topic = parts.path.strip("/")
        if not parts.netloc or not self.topic or "/" in self.topic:
            raise OptionsError(
                f"{redacted(url)}: expected brokers and one topic; for example kafka://localhost:9092/events"
            )
        self.name = f"kafka-{self.topic}"
        self._at, self._assigned = redacted(url), ""
        ours: dict[str, str | bool | int] = {
            "bootstrap.servers": parts.netloc,
            GROUP: f"vista-follow-{self.topic}",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
        }
        self._consumer = client(Consumer, config, ours)

    def read(self, after: str, most: int, wait_s: float) -> Arrived | None:
        try:
            offsets = self._assign(after)
            messages = self._take(most, wait_s)
        except KafkaException as error:
            raise self._lost(after, error) from error
        if not messages:
            return None
        for message in messages:
            if message.error():
                raise self._lost(after, message.error())
            partition, offset = message.partition(), message.offset()
            assert partition is not None and offset is not None  # of a message without an error
            offsets[partition] = offset + 1
        self._assigned = json.dumps({str(p): o for p, o in sorted(offsets.items())})
        times = [t for kind, t in (m.timestamp() for m in messages) if kind and t >= 0]
        return Arrived(
            self._assigned, [m.value() or b"" for m in messages], arrived_ms=min(times, default=None)
        )

    def _take(self, most: int, wait_s: float) -> list[Message]:
        """Messages until there are enough, or the time is over; the first may come late, the rest are there already."""
        end = time.monotonic() + wait_s
        found: list[Message] = []
        while len(found) < most:
            left = end - time.monotonic()
            more = self._consumer.consume(min(most - len(found), 10_000), timeout=max(0.0, min(left, 0.2)))
            found += [m for m in more if (e := m.error()) is None or e.code() != KafkaError._PARTITION_EOF]
            if (found and not more) or left <= 0:
                break
        return found

    def _assign(self, after: str) -> dict[int, int]:
        """Stand at a position; offsets by partition. Partitions that were added since begin at their first message."""
        offsets = {int(p): int(o) for p, o in json.loads(after or "{}").items()}
        if self._assigned != after or not after:
            found = self._consumer.list_topics(self.topic, timeout=TIMEOUT_S).topics[self.topic]
            if found.error:
                raise KafkaException(found.error)
            for partition in found.partitions:
                if partition not in offsets:
                    at = TopicPartition(self.topic, partition)
                    offsets[partition] = self._consumer.get_watermark_offsets(at, timeout=TIMEOUT_S)[0]
            self._consumer.assign([TopicPartition(self.topic, p, o) for p, o in sorted(offsets.items())])
            self._assigned = after
        return offsets

    def _lost(self, after: str, error: object) -> SourceLost:
        return SourceLost(
            f"{self._at}: expected messages after {after or 'the first'}, found {error}; see that the broker answers "
            f"and still has them, and run vista follow again, it goes on where it was"
        )
