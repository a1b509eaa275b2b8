"""A local worker process: Beam's own main, without the lines it prints at every start. Errors still show.

Started as ``python -m beam_jobs.quiet_worker`` by ``pipeline.py``.
"""

from __future__ import annotations

import logging
import sys

if __name__ == "__main__":
    # The level of the handler, not of the root logger: Beam sets the latter anew.
    handler = logging.StreamHandler()
    handler.setLevel(logging.ERROR)
    logging.getLogger().addHandler(handler)
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)
