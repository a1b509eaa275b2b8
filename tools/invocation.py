"""How this process was called, so that commands it prints work as they stand; and how it is asked to end."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def vista() -> str:
    """``vista`` where the shell finds this one by that name, else its path, else the module of this Python."""
    called = Path(sys.argv[0])
    beside = Path(sys.executable).with_name("vista")
    script = called if called.name == "vista" and called.exists() else beside if beside.exists() else None
    if script is None:
        return f"{shlex.quote(sys.executable)} -m vista"
    found = shutil.which("vista")
    if found and os.path.realpath(found) == os.path.realpath(script):
        return "vista"
    near = os.path.relpath(script)
    return shlex.quote(near if not near.startswith("..") else str(script.absolute()))


def command(*words: object) -> str:
    """A whole command as a shell reads it."""
    return " ".join([vista(), *(shlex.quote(str(word)) for word in words)])


@contextmanager
def asked_to_stop(*numbers: signal.Signals) -> Iterator[threading.Event]:
    """An event that these signals set; a second one does what it did before, and so does each afterwards."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def ask(number: int, frame: object) -> None:
        stop.set()
        restore()

    for number in numbers:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        restore()
