"""Leases: how a reader tells ``prune`` which generations it has in use.

A lease is a small file ``leases/ID.json`` naming the process and its generations. It holds while its process lives
(judged on the same host, boot and process namespace) or, for readers elsewhere, until it expires; readers renew it
as they read. It is advisory for readers that cannot write to the store: they work, unprotected.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
import weakref
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cache_store.format.layout import Layout

TTL_MS = 600_000
"""A lease that was not renewed for so long no longer holds, unless its process is seen alive."""


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def here() -> str:
    """Host, boot and process namespace: within it a process number means one process at a time."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {_read('/proc/sys/kernel/random/boot_id')} {namespace}"


def started(pid: int) -> str:
    """Start time of a process in clock ticks, so that a reused number is not mistaken; "" where unknown."""
    stat = _read(f"/proc/{pid}/stat")
    return stat.rpartition(")")[2].split()[19] if stat else ""


class Lease:
    """One reader's lease. Written by :meth:`hold`, renewed by :meth:`renew`, removed by :meth:`drop` or at exit.

    Attributes:
        active: False where the folder refuses writes.
    """

    def __init__(self, layout: Layout, now_ms: int) -> None:
        self.pid = os.getpid()
        self._path = layout.leases / f"{self.pid}-{uuid.uuid4().hex[:12]}.json"
        self._names: frozenset[str] = frozenset()
        self._written_ms = now_ms
        self.active = True
        self._remove = weakref.finalize(self, _remove, self._path, self.pid)

    def hold(self, names: Iterable[str], now_ms: int) -> None:
        """Protect exactly these generations from now on."""
        names = frozenset(names)
        if names != self._names or not self.active:
            self._write(names, now_ms)

    def renew(self, now_ms: int) -> None:
        """Write the lease again if a third of its time has passed."""
        if now_ms - self._written_ms > TTL_MS // 3:
            self._write(self._names, now_ms)

    def drop(self) -> None:
        self._remove()

    def _write(self, names: frozenset[str], now_ms: int) -> None:
        facts = {
            "expires_ms": now_ms + TTL_MS,
            "generations": sorted(names),
            "host": here(),
            "pid": self.pid,
            "started": started(self.pid),
        }
        temp = self._path.with_name(f".{self._path.name}.tmp")
        try:
            temp.write_text(json.dumps(facts))
            os.replace(temp, self._path)
            self.active = True
        except OSError:
            self.active = False
            with suppress(OSError):
                temp.unlink(missing_ok=True)
        self._names, self._written_ms = names, now_ms


def _remove(path: Path, pid: int) -> None:
    if os.getpid() == pid:  # a forked child must not end its parent's lease
        with suppress(OSError):
            path.unlink(missing_ok=True)


def held(layout: Layout, now_ms: int, sweep: bool = False) -> dict[str, set[str]]:
    """Generations in use: lease file name to names. Those that no longer hold are left out (``sweep``: removed)."""
    out: dict[str, set[str]] = {}
    if not layout.leases.is_dir():
        return out
    place = here()
    for path in sorted(layout.leases.iterdir()):
        if path.suffix != ".json" or path.name.startswith("."):
            continue
        try:
            facts = json.loads(path.read_text())
            names, host, pid = set(facts["generations"]), facts["host"], int(facts["pid"])
            alive = host == place and started(pid) == facts["started"] != ""
            holds = alive if host == place else now_ms < int(facts["expires_ms"])
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError, OSError):
            holds, names = False, set()
        if holds:
            out[path.name] = names
        elif sweep:
            path.unlink(missing_ok=True)
    return out
