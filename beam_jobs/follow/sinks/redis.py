"""Records into Redis: as entries of a stream, for consumers, or as one key a user, for serving that reads Redis.

redis://HOST[:PORT][/DB]?stream=NAME[&maxlen=N]   XADD: user, record (none if gone), and the header's fields
redis://HOST[:PORT][/DB]?prefix=NAME              SET NAME:user record, DEL where gone; HSET NAME header
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

import redis

from beam_jobs.errors import OptionsError, SinkLost
from beam_jobs.follow.sinks import Header
from beam_jobs.run.secrets import redacted

_AT_ONCE = 256
"""Records of a round trip."""


class RedisSink:
    """See the module; entries of a stream are in the order of delivery."""

    def __init__(self, url: str):
        query = parse_qs(urlsplit(url).query)
        named = {key: query.pop(key, []) for key in ("stream", "prefix", "maxlen")}
        one = [key for key in ("stream", "prefix") if len(named[key]) == 1]
        lengths = named["maxlen"]
        if query or len(one) != 1 or len(lengths) > 1 or not all(n.isdigit() and int(n) for n in lengths):
            raise OptionsError(
                f"--deliver {redacted(url)}: expected ?stream=NAME, &maxlen=N if it is to be cut, or ?prefix=NAME; "
                f"for example redis://localhost:6379?prefix=summaries"
            )
        self._at = redacted(url.partition("?")[0])
        self._stream = next(iter(named["stream"]), None)
        self._prefix = next(iter(named["prefix"]), "")
        self._most = int(lengths[0]) if lengths else None
        self._redis = redis.Redis.from_url(url.partition("?")[0], socket_timeout=30, socket_connect_timeout=5)

    def send(self, header: Header, users: Sequence[str], records: Sequence[bytes | None]) -> None:
        fields: dict[Any, Any] = {**header.fields()}  # Redis' own types are wider and do not vary
        try:
            for start in range(0, len(users), _AT_ONCE):
                pipe = self._redis.pipeline(transaction=False)
                for user, record in zip(
                    users[start : start + _AT_ONCE], records[start : start + _AT_ONCE], strict=True
                ):
                    self._put(pipe, fields, user, record)
                if self._stream is None:
                    pipe.hset(self._prefix, mapping=fields)
                pipe.execute()
        except redis.RedisError as error:
            raise SinkLost(
                f"{self._at}: expected {len(users)} records to be taken, found {error}; see that Redis answers and has "
                f"memory, and run vista follow again, it delivers what is missing"
            ) from error

    def _put(self, pipe: Any, fields: dict[Any, Any], user: str, record: bytes | None) -> None:
        if self._stream is not None:
            held = {"record": record} if record is not None else {}
            pipe.xadd(self._stream, {"user": user, **held, **fields}, maxlen=self._most, approximate=True)
        elif record is not None:
            pipe.set(f"{self._prefix}:{user}", record)
        else:
            pipe.delete(f"{self._prefix}:{user}")

    def flush(self) -> None:
        pass  # every round trip was answered
