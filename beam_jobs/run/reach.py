"""Whether anything answers where a job should go."""

from __future__ import annotations

import re
import socket

from beam_jobs.errors import EngineAway, OptionsError

WITHIN_S = 20
"""How long an address may take to answer."""


def check_reachable(option: str, address: str) -> None:
    """Refuse an address that nothing answers at, before a client waits for it for ever.

    Raises:
        OptionsError: it is no HOST:PORT. EngineAway
    """
    found = re.fullmatch(r"(?:[a-z+]+://)?\[?([^/@]+?)\]?:(\d+)/?", address)
    if found is None:
        raise OptionsError(f"{option}: expected HOST:PORT, found {address!r}; see docs/operations.md")
    try:
        socket.create_connection((found[1], int(found[2])), timeout=WITHIN_S).close()
    except (OSError, OverflowError) as error:
        raise EngineAway(
            f"{option}: nothing answers at {address} ({error}); start it, or name another, and run the same command "
            f"with the same --run-dir again"
        ) from error
