"""What has changed goes out: every record that a new generation changed, to a sink, at least once.

``delivered-NAME.json`` in the service's folder says up to which generation the sink has everything. Killed before that
is written, the service sends the difference again. Where that generation is not kept any more, all records are sent:
those who have gone since then stay in the sink. Whom ``vista forget`` removes is no change; remove them there as well.
"""

from __future__ import annotations

import json
from pathlib import Path

import xxhash

from beam_jobs.errors import OptionsError
from beam_jobs.follow.sinks import Header, Sink
from beam_jobs.run.files import write_atomically
from beam_jobs.run.secrets import redacted
from cache_store import Store
from cache_store.change.changes import Changes
from cache_store.errors import GenerationUnknown
from vista.small_text import small_json


class Delivery:
    """One sink of one line of a store.

    Args:
        folder: of the service, which keeps the position.
        url: of the sink; a position belongs to it without its secrets.
    """

    def __init__(self, sink: Sink, url: str, store: Store, folder: Path):
        self._sink, self._store = sink, store
        self._whose = {"sink": redacted(url), "line": store.line}
        name = xxhash.xxh3_64_hexdigest(json.dumps(self._whose).encode())
        self._at = folder / f"delivered-{name}.json"

    @property
    def delivered(self) -> str | None:
        """Generation up to which the sink has everything; None before the first."""
        try:
            return str(small_json(self._at)["generation"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise OptionsError(
                f"{self._at}: expected what was delivered, found {error!r}; remove it, and all is delivered again"
            ) from error

    def advance(self) -> int:
        """Send what changed since the last time; how many users.

        Raises:
            SinkLost: nothing is forgotten, the next call sends it. Damaged, NothingPublished
        """
        live, since = self._store.refresh(), self.delivered
        if live == since:
            return 0
        with self._store.pin() as store:
            try:
                count = sum(self._send(block) for block in store.changes(since))
            except GenerationUnknown:
                if since is None:
                    raise
                count = sum(self._send(block) for block in store.changes())
        self._sink.flush()
        write_atomically(self._at, json.dumps({**self._whose, "generation": live}).encode())
        return count

    def _send(self, block: Changes) -> int:
        manifest = block.manifest
        header = Header(
            self._store.line,
            manifest.generation,
            manifest.fingerprint,
            manifest.schema.as_dict(),
            manifest.watermark_ms,
        )
        records = [
            None if gone else row.tobytes() for row, gone in zip(block.rows, block.gone.tolist(), strict=True)
        ]
        self._sink.send(header, [str(user) for user in block.users.tolist()], records)
        return len(records)
