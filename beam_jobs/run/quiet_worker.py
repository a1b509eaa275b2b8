"""A local worker process: Beam's own main, without the lines it prints at every start, and without the stack
traces of failed tasks (``RUN/failures/`` has them).

Started as ``python -m beam_jobs.run.quiet_worker PID MODULE...`` by process PID (``runner.py``), with which it ends;
imports the modules first.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


def end_with(parent: int) -> None:
    """End this process once ``parent`` is no longer the one it was started by, however that ended."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal. Those that this thread starts meanwhile hold it back until they call
    :func:`end_by_interrupts`: it would be a stack trace of their imports."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_by_interrupts() -> None:
    """Ctrl-C is the end of this process, without a stack trace."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(int(sys.argv.pop(1)),), daemon=True).start()
    end_by_interrupts()
    # The level of the handler, not of the root logger: Beam sets the latter anew.
    handler = logging.StreamHandler()
    handler.setLevel(logging.CRITICAL)
    logging.getLogger().addHandler(handler)
    from apache_beam.runners.worker import sdk_worker_main

    for name in sys.argv[1:]:
        importlib.import_module(name)
    sdk_worker_main.main(sys.argv)
    # What it did is on disk and answered for; to take torch and Beam down in order would cost half a second.
    logging.shutdown()
    os._exit(0)
