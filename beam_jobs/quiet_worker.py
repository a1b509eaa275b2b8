"""A local worker process: Beam's own main, without the lines it prints at every start. Errors still show.

Started as ``python -m beam_jobs.quiet_worker MODULE...`` by ``pipeline.py``; imports the modules first.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys

if __name__ == "__main__":
    # The level of the handler, not of the root logger: Beam sets the latter anew.
    handler = logging.StreamHandler()
    handler.setLevel(logging.ERROR)
    logging.getLogger().addHandler(handler)
    from apache_beam.runners.worker import sdk_worker_main

    for name in sys.argv[1:]:
        importlib.import_module(name)
    sdk_worker_main.main(sys.argv)
    # What it did is on disk and answered for; to take torch and Beam down in order would cost half a second.
    logging.shutdown()
    os._exit(0)
