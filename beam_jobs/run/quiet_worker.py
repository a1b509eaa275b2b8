"""A local worker process: Beam's own main, without the lines it prints at every start, and without the stack
traces of failed tasks (``RUN/failures/`` has them).

Started as ``python -m beam_jobs.run.quiet_worker MODULE...`` by ``pipeline.py``; imports the modules first.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys

if __name__ == "__main__":
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
