"""A Redis stream whose entries have a field ``event``, one JSON object.

The position is the id of the last entry and how many came before its end. The stream is read, never trimmed and never
acknowledged: what Redis still keeps after a position is Redis' own rule, and a position that it has trimmed away is
an error, not a gap.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import redis

from beam_jobs.errors import OptionsError, SourceLost
from beam_jobs.follow.sources import Arrived
from beam_jobs.run.secrets import redacted

FIELD = b"event"


class RedisStream:
    """Entries of one stream, in order of their ids.

    Args:
        url: ``redis://HOST[:PORT][/DB]?stream=NAME``.
    """

    def __init__(self, url: str):
        streams = parse_qs(urlsplit(url).query).get("stream", [])
        if len(streams) != 1:
            raise OptionsError(
                f"{redacted(url)}: expected ?stream=NAME once, found {len(streams)}; for example "
                f"redis://localhost:6379?stream=events"
            )
        self.stream = streams[0]
        self.name = f"redis-{self.stream}"
        self._at = redacted(url.partition("?")[0])
        self._redis = redis.Redis.from_url(url.partition("?")[0], socket_timeout=30, socket_connect_timeout=5)

    def read(self, after: str, most: int, wait_s: float) -> Arrived | None:
        entry, _, read = after.partition(" ")
        try:
            before = int(read) if after else self._removed()
            self._refuse_gap(entry, before)
            wait_ms = max(1, int(wait_s * 1000))
            found = self._redis.xread({self.stream: entry or "0-0"}, count=most, block=wait_ms)
        except redis.RedisError as error:
            raise SourceLost(
                f"{self._at} stream {self.stream}: expected entries after {entry or 'the first'}, found {error}; "
                f"start Redis and run vista follow again, it goes on where it was"
            ) from error
        if not found:
            return None
        replies: Any = found  # a list by protocol 2, a dict by protocol 3
        entries = replies[0][1] if isinstance(replies, list) else next(iter(replies.values()))[0]
        first, last = entries[0][0].decode(), entries[-1][0].decode()
        messages = [values.get(FIELD, b"") for _, values in entries]
        position = f"{last} {before + len(entries)}"
        return Arrived(position, messages, arrived_ms=int(first.partition("-")[0]))

    def _removed(self) -> int:
        """Entries that the stream had and no longer has."""
        try:
            facts = self._redis.xinfo_stream(self.stream)
        except redis.ResponseError:  # no such stream (yet)
            return 0
        return int(facts.get("entries-added", facts["length"])) - int(facts["length"])

    def _refuse_gap(self, entry: str, read: int) -> None:
        """Raise where entries after the position were removed before they were read."""
        if not entry or self._redis.xrange(self.stream, entry, entry):
            return  # what was read last is still there, so nothing after it was trimmed
        if self._removed() > read or not self._redis.exists(self.stream):
            raise SourceLost(
                f"{self._at} stream {self.stream}: expected every entry after {entry}, found that some were trimmed "
                f"unread; ingest them from elsewhere, then follow another stream"
            )
