"""Running a piece of work in a forked process that dies, by SIGKILL, at a chosen step.

Steps are counted in one of four ways: ``file`` (every open for writing, rename, remove, mkdir, rmdir, truncate,
flock and fsync, from audit events and a wrapped ``os.fsync``), ``any`` (the same, of every thread), ``line`` (every
line executed in ``cache_store``), or ``time`` (a share of the time the work took last). With ``power``, what had not
been fsynced when the process died is then lost: files are emptied, cut or zeroed, as after a power cut.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HANG_SECONDS = 300.0
"""Of work that takes a second; only what waits for ever takes so long, whatever else the machine does."""
_AUDITED = {
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "fcntl.flock", "shutil.rmtree",
}  # fmt: skip
_PACKAGE = f"{os.sep}cache_store{os.sep}"
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Outcome:
    """How a child ended.

    Attributes:
        killed: False if it finished before its step came.
        step: where it was killed: an audit event and file kind, or a source line.
        steps: steps counted until then.
        flip: those until a line's pointer was last replaced, 0 if it never was.
        seconds: it lived for so long.
        durable: (inode, mtime in ns) of files as fsynced.
        result: what the work returned, as text.
    """

    killed: bool
    step: str
    steps: int
    flip: int
    seconds: float
    durable: frozenset[tuple[int, int]]
    result: str

    @property
    def after_flip(self) -> bool:
        """Was it killed when a pointer had been replaced?"""
        return self.killed and 0 < self.flip < self.steps


class WorkFailed(AssertionError):
    """The work raised an error of its own; the text is its traceback."""


def run(work: Callable[[], object], mode: str, at: float | None) -> Outcome:
    """Run ``work`` in a forked child that dies at step ``at`` (a number of steps, or seconds in ``time`` mode).

    Raises:
        WorkFailed
    """
    return Child(work, mode, at).end(at if mode == "time" else None)


def told(work: Callable[[], Any]) -> Any:
    """What ``work`` returns in a forked child, as JSON gives it back.

    Raises:
        WorkFailed
    """
    return json.loads(run(lambda: json.dumps(work()), "any", None).result)


class Child:
    """A forked process at work.

    Args:
        stops: at its step it waits to be told (:meth:`go_on`, :meth:`kill`) instead of dying at once.
    """

    def __init__(self, work: Callable[[], object], mode: str, at: float | None, stops: bool = False) -> None:
        self._said, theirs = os.pipe()
        wait, self._gate = os.pipe()
        self._lines: list[str] = []
        self._rest, self._open = b"", True
        self._start = time.perf_counter()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._said)
            os.close(self._gate)
            _child(work, mode, at, theirs, wait if stops else None)
        os.close(theirs)
        os.close(wait)

    def until(self, what: str) -> bool:
        """Wait until the child says ``stopped``, ``flock`` or ``result`` once more; False if it ended instead."""
        before = self._count(what)
        while self._open and self._count(what) == before:
            self._listen(None)
        return self._count(what) > before

    def go_on(self) -> None:
        os.write(self._gate, b"g")

    def kill(self) -> None:
        os.write(self._gate, b"k")

    def end(self, seconds: float | None = None) -> Outcome:
        """Wait for its end; kill it after ``seconds``. One that hangs has failed, and its stack goes to stderr.

        Raises:
            WorkFailed
        """
        deadline: float | None = time.perf_counter() + (HANG_SECONDS if seconds is None else seconds)
        while self._open:
            left = None if deadline is None else max(0.0, deadline - time.perf_counter())
            if not self._listen(left):
                deadline = None
                os.kill(self._pid, signal.SIGKILL if seconds is not None else signal.SIGABRT)
        os.close(self._said)
        os.close(self._gate)
        _, status = os.waitpid(self._pid, 0)
        lived = time.perf_counter() - self._start
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        facts = [line.split("\t", 1) for line in self._lines if "\t" in line]

        def last(name: str, default: str) -> str:
            return next((value for n, value in reversed(facts) if n == name), default)

        error = last("error", "").replace("\v", "\n")
        if error or (os.WIFSIGNALED(status) and not killed) or (not killed and os.WEXITSTATUS(status)):
            raise WorkFailed(error or f"the child ended with status {status}")
        durable = {(int(a), int(b)) for name, v in facts if name == "fsync" for a, b in [v.split()]}
        return Outcome(
            killed, last("killed", "any time" if killed else ""), int(last("steps", "0")), int(last("flip", "0")),
            lived, frozenset(durable), last("result", ""),
        )  # fmt: skip

    def _count(self, what: str) -> int:
        return sum(line.startswith(f"{what}\t") for line in self._lines)

    def _listen(self, seconds: float | None) -> bool:
        """Take what the child says next; False if it said nothing for so long."""
        if not select.select([self._said], [], [], seconds)[0]:
            return False
        block = os.read(self._said, 1 << 16)
        self._open = bool(block)
        *lines, self._rest = (self._rest + block).split(b"\n")
        self._lines += [line.decode(errors="replace") for line in lines]
        return True


def _child(work: Callable[[], object], mode: str, at: float | None, pipe: int, gate: int | None) -> None:
    steps = _Steps(mode, at, pipe, gate)
    code = 1
    try:
        faulthandler.enable(2)
        os.fsync = steps.fsync
        sys.addaudithook(steps.audit)
        if mode == "line":
            sys.settrace(steps.trace)
        result = work()
        sys.settrace(None)
        steps.say("result", result)
        steps.say("steps", steps.count)
        code = 0
    except BaseException:
        sys.settrace(None)
        steps.say("error", traceback.format_exc().replace("\n", "\v"))
    finally:
        os._exit(code)


class _Steps:
    """Counts what the child does, tells it, and kills the child before step number ``at``."""

    def __init__(self, mode: str, at: float | None, pipe: int, gate: int | None) -> None:
        self.mode, self.at, self.pipe, self.gate, self.count = mode, at, pipe, gate, 0
        self._main, self._fsync = threading.get_ident(), os.fsync

    def say(self, name: str, value: object) -> None:
        os.write(self.pipe, f"{name}\t{value}\n".encode())

    def step(self, label: str) -> None:
        if self.mode != "any" and threading.get_ident() != self._main:
            return
        self.count += 1
        if self.count == self.at:
            if self.gate is not None:
                self.say("stopped", label)
                if os.read(self.gate, 1) == b"g":
                    return
            self.say("killed", label)
            self.say("steps", self.count)
            os.kill(os.getpid(), signal.SIGKILL)

    def fsync(self, fd: Any) -> None:
        if self.mode in ("file", "any"):
            self.step(f"before fsync of {_kind(os.readlink(f'/proc/self/fd/{fd}'))}")
        self._fsync(fd)
        facts = os.fstat(fd)
        self.say("fsync", f"{facts.st_ino} {facts.st_mtime_ns}")

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "fcntl.flock":
            self.say("flock", "")
        elif event == "os.rename" and _is_pointer(args[1]):
            self.say("flip", self.count + (self.mode in ("file", "any")))
        if self.mode not in ("file", "any"):
            return
        if event in _AUDITED:
            kind = _kind(args[0]) if args and isinstance(args[0], (str, os.PathLike)) else ""
            self.step(f"before {event} {kind}".strip())
        elif event == "open" and isinstance(args[2], int) and args[2] & WRITING:
            self.step(f"before open {_kind(args[0])}")

    def trace(self, frame: Any, event: str, _: Any) -> Any:
        if _PACKAGE not in frame.f_code.co_filename:
            return None
        if event == "line":
            self.step(f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}")
        return self.trace


def _kind(path: Any) -> str:
    """A file's kind, whatever its number: ``shard-*.mdb``, ``READY``, ``generation folder``."""
    name = os.path.basename(str(path)).lstrip(".")
    for start in ("shard-", "state-"):
        if name.startswith(start):
            return f"{start}*.{'idx' if '.idx' in name else 'receipt' if 'receipt' in name else 'mdb'}"
    for known in ("READY", "manifest.json", "CURRENT", "SEQUENCE", "LOCK", "FORMAT", "PARENT", "shadow"):
        if known in name:
            return known
    if name.startswith("deleting-") or (name[:8].isdigit()):
        return "generation folder"
    return "lease" if name.endswith((".json", ".json.tmp")) else "folder"


def _is_pointer(path: Any) -> bool:
    folder, name = os.path.split(str(path))
    return name == "CURRENT" or os.path.basename(folder) == "lines"


def files_of(root: Path) -> dict[Path, tuple[int, int]]:
    """(inode, mtime in ns) of every file below a folder."""
    files = {Path(folder, name) for folder, _, names in os.walk(root) for name in names}
    return {path: (facts.st_ino, facts.st_mtime_ns) for path in files for facts in [path.lstat()]}


def lose_unsynced(roots: list[Path], durable: set[tuple[int, int]], rng: np.random.Generator) -> list[str]:
    """What a power cut does: files changed and not fsynced since lose their content. Kinds of those files.

    Leases are left alone, whose readers live on here.

    Args:
        durable: (inode, mtime) of every file whose content is on the disk.
    """
    lost = []
    for root in roots:
        for path, facts in files_of(root).items():
            if facts in durable or path.parent.name == "leases" or path.name == "LOCK":
                continue
            size = path.stat().st_size
            how = rng.integers(3)
            with contextlib.suppress(FileNotFoundError):
                if how == 0:
                    os.truncate(path, 0)
                elif how == 1:
                    os.truncate(path, int(rng.integers(0, size + 1)))
                else:
                    path.write_bytes(bytes(size))
            lost.append(_kind(path))
    return lost
