"""Running a piece of work in a forked process that dies, by SIGKILL, at a chosen step.

Steps are counted in one of three ways: ``file`` (every open for writing, rename, remove, mkdir, rmdir, truncate,
flock and fsync, from audit events and a wrapped ``os.fsync``), ``line`` (every line executed in ``cache_store``), or
``time`` (a share of the time the work took last). With ``power``, what had not been fsynced when the process died is
then lost: files are emptied, cut or zeroed, as after a power cut.
"""

from __future__ import annotations

import errno
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

_AUDITED = frozenset(
    (
        "os.rename",
        "os.remove",
        "os.mkdir",
        "os.rmdir",
        "os.truncate",
        "os.link",
        "fcntl.flock",
        "shutil.rmtree",
    )
)
_PACKAGE = f"{os.sep}cache_store{os.sep}"


@dataclass(frozen=True)
class Outcome:
    """How a child ended.

    Attributes:
        killed: False if it finished before its step came.
        step: where it was killed: an audit event and file kind, or a source line.
        steps: steps counted until then. seconds: it lived for so long.
        durable: (inode, mtime in ns) of files as fsynced.
    """

    killed: bool
    step: str
    steps: int
    seconds: float
    durable: frozenset[tuple[int, int]]


class WorkFailed(AssertionError):
    """The work raised an error of its own; the text is its traceback."""


def run(work: Callable[[], None], mode: str, at: float | None) -> Outcome:
    """Run ``work`` in a forked child that dies at step ``at`` (a number of steps, or seconds in ``time`` mode).

    Raises:
        WorkFailed
    """
    steps_r, steps_w = os.pipe()
    start = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        os.close(steps_r)
        _child(work, mode, at, steps_w)
    os.close(steps_w)
    lines = _collect(steps_r, pid, at if mode == "time" else None)
    _, status = os.waitpid(pid, 0)
    seconds = time.perf_counter() - start
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    facts = [line.split("\t", 1) for line in lines if "\t" in line]
    error = "\n".join(value.replace("\v", "\n") for name, value in facts if name == "error")
    if error or (os.WIFSIGNALED(status) and not killed) or (not killed and os.WEXITSTATUS(status)):
        raise WorkFailed(error or f"the child ended with status {status}")
    durable = {(int(a), int(b)) for name, v in facts if name == "fsync" for a, b in [v.split()]}
    steps = max([int(value) for name, value in facts if name == "steps"], default=0)
    step = next((value for name, value in facts if name == "killed"), "any time" if killed else "")
    return Outcome(killed, step, steps, seconds, frozenset(durable))


def _collect(pipe: int, pid: int, seconds: float | None) -> list[str]:
    """What the child says until it ends; kills it after ``seconds``."""
    raw, deadline = b"", None if seconds is None else time.perf_counter() + seconds
    while True:
        wait = None if deadline is None else max(0.0, deadline - time.perf_counter())
        if select.select([pipe], [], [], wait)[0]:
            block = os.read(pipe, 1 << 16)
            if not block:
                break
            raw += block
        else:
            deadline = None
            os.kill(pid, signal.SIGKILL)
    os.close(pipe)
    return raw.decode(errors="replace").split("\n")


def _child(work: Callable[[], None], mode: str, at: float | None, pipe: int) -> None:
    def say(name: str, value: str) -> None:
        os.write(pipe, f"{name}\t{value}\n".encode())

    count = 0
    main = threading.get_ident()

    def step(label: str) -> None:
        nonlocal count
        if threading.get_ident() != main:
            return
        count += 1
        if count == at:
            say("killed", label)
            say("steps", str(count))
            os.kill(os.getpid(), signal.SIGKILL)

    fsync = os.fsync

    def counted_fsync(fd: int) -> None:
        if mode == "file":
            step(f"before fsync of {_kind(os.readlink(f'/proc/self/fd/{fd}'))}")
        fsync(fd)
        facts = os.fstat(fd)
        say("fsync", f"{facts.st_ino} {facts.st_mtime_ns}")

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event in _AUDITED:
            step(
                f"before {event} {_kind(args[0]) if args and isinstance(args[0], (str, os.PathLike)) else ''}".strip()
            )
        elif (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            step(f"before open {_kind(args[0])}")

    def trace(frame: Any, event: str, _: Any) -> Any:
        if _PACKAGE not in frame.f_code.co_filename:
            return None
        if event == "line":
            step(f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}")
        return trace

    code = 1
    try:
        os.fsync = counted_fsync
        if mode == "file":
            sys.addaudithook(audit)
        elif mode == "line":
            sys.settrace(trace)
        work()
        sys.settrace(None)
        say("steps", str(count))
        code = 0
    except BaseException:
        sys.settrace(None)
        say("error", traceback.format_exc().replace("\n", "\v"))
    finally:
        os._exit(code)


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


def files_of(root: Path) -> dict[Path, tuple[int, int]]:
    """(inode, mtime in ns) of every file below a folder."""
    out = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            facts = path.lstat()
            out[path] = (facts.st_ino, facts.st_mtime_ns)
    return out


def lose_unsynced(
    roots: list[Path], durable: set[tuple[int, int]], rng: np.random.Generator, keep: frozenset[str]
) -> list[str]:
    """What a power cut does: files changed and not fsynced since lose their content. Kinds of those files.

    Args:
        durable: (inode, mtime) of every file whose content is on the disk.
        keep: names of folders left alone (leases of readers that, unlike after a power cut, still live).
    """
    lost = []
    for root in roots:
        for path, facts in files_of(root).items():
            if facts in durable or path.parent.name in keep or path.name == "LOCK":
                continue
            size = path.stat().st_size
            how = rng.integers(3)
            try:
                if how == 0:
                    os.truncate(path, 0)
                elif how == 1:
                    os.truncate(path, int(rng.integers(0, size + 1)))
                else:
                    path.write_bytes(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
            lost.append(_kind(path))
    return lost
