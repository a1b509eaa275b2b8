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


def end_with(parent: int) -> None:
    """End this process once ``parent`` is no longer the one it was started by, however that ended."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(int(sys.argv.pop(1)),), daemon=True).start()
    # Ctrl-C reaches all processes of a terminal: the end, without a stack trace.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
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
