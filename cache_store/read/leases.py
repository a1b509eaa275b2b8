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
from dataclasses import dataclass, field
from pathlib import Path

from cache_store.errors import NotPermitted
from cache_store.format.checked import MIB, Fields, NotSound, json_object, read_bounded
from cache_store.format.layout import GENERATION, Layout

ASIDE = ".aside-"
TTL_MS = 600_000
"""A lease that was not renewed for so long no longer holds, unless its process is seen alive."""
MOST_MS = 24 * 3_600_000
"""Nor does one of another host whose file is so old, whatever it says of when it expires."""


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


@dataclass
class HeldLeases:
    """What the files of ``leases/`` say.

    Attributes:
        names: of generations in use, by lease.
        aside: what is no lease, and why; by file name.
    """

    names: dict[str, set[str]] = field(default_factory=dict)
    aside: dict[str, str] = field(default_factory=dict)


def held(layout: Layout, now_ms: int, sweep: bool = False) -> HeldLeases:
    """Generations in use; leases that no longer hold are left out.

    Args:
        sweep: remove leases that no longer hold, and rename what is no lease to ``.aside-…``, out of the way.
    """
    out = HeldLeases()
    if not layout.leases.is_dir():
        return out
    place = here()
    for path in sorted(layout.leases.iterdir()):
        if path.name.startswith("."):
            if sweep and path.name.endswith(".tmp"):  # of a reader that was killed while it wrote
                with suppress(OSError):
                    if path.stat().st_mtime_ns // 1_000_000 < now_ms - TTL_MS:
                        path.unlink()
            continue
        try:
            names = _names(path, place, now_ms)
        except FileNotFoundError:
            continue
        except (NotSound, NotPermitted) as error:
            out.aside[path.name] = str(error)
            if sweep:
                with suppress(OSError):
                    path.rename(path.with_name(f"{ASIDE}{uuid.uuid4().hex[:12]}-{path.name[:100]}"))
            continue
        if names:
            out.names[path.name] = names
        elif names is None and sweep:
            with suppress(OSError):
                path.unlink(missing_ok=True)
    return out


def _names(path: Path, place: str, now_ms: int) -> set[str] | None:
    """Generations that one lease holds; None where it no longer does."""
    if path.suffix != ".json":
        raise NotSound("expected a lease, ID.json")
    facts = Fields(json_object(read_bounded(path, MIB)))
    names = {n for n in facts.list("generations") if isinstance(n, str) and GENERATION.fullmatch(n)}
    if len(names) != len(facts.list("generations")):
        raise NotSound("field generations: expected names of generations")
    host, pid, began = facts.text("host"), facts.integer("pid", 1, 1 << 31), facts.text("started")
    expires = facts.time("expires_ms")
    if host == place:
        holds = started(pid) == began != ""
    else:
        # Whoever renews it writes the file anew: a time far off does not make it hold for ever.
        holds = now_ms < min(expires, path.stat().st_mtime_ns // 1_000_000 + MOST_MS)
    return names if holds else None
