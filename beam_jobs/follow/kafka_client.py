"""Clients of Kafka with the settings of a file, such as says who one is and by which certificate a broker is known.

# --kafka-config FILE: properties of librdkafka, one a line, as kcat and Confluent's clients take them
security.protocol=SASL_SSL
sasl.mechanism=SCRAM-SHA-512
sasl.username=vista
sasl.password=...
ssl.ca.location=/etc/ssl/broker-ca.pem
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from confluent_kafka import Consumer, KafkaException, Producer

from beam_jobs.errors import OptionsError
from vista.small_text import small_text

Client = TypeVar("Client", Consumer, Producer)
GROUP = "group.id"
"""For a consumer to say and not needed by a producer: the one of ours that a file may name, for a broker's rules."""


def client(kind: type[Client], config: str, ours: Mapping[str, str | bool | int]) -> Client:
    """A client of Kafka.

    Args:
        config: path of a file of settings; empty for none.
        ours: settings that reading once and delivering at least once rest on; no file changes them.

    Raises:
        OptionsError: no such file, a line that is none, a setting of ours, or one that librdkafka refuses. No value is
            told: it may be a secret.
    """
    told = _settings(config) if config else {}
    if kind is Producer:
        told.pop(GROUP, None)
    if taken := sorted(told.keys() & ours.keys() - {GROUP}):
        raise OptionsError(
            f"--kafka-config {config}: expected no {taken[0]}, which vista follow sets; take it out"
        )
    try:
        return kind({**ours, **told})
    except KafkaException as error:
        raise OptionsError(
            f"--kafka-config {config}: expected settings of librdkafka, found {error}"
        ) from error


def _settings(config: str) -> dict[str, str]:
    try:
        lines = small_text(config).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionsError(
            f"--kafka-config {config}: expected a file of NAME=VALUE lines, found {error}"
        ) from error
    told = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith(("#", "!")):
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not name or name in told:
            found = f"{name} a second time" if equals and name else "another"
            raise OptionsError(
                f"--kafka-config {config}: expected NAME=VALUE in line {number}, found {found}"
            )
        told[name] = value
    return told
