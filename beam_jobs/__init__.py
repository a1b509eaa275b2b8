"""Jobs over user buckets, on any Beam runner: ingest logs, summarise histories, refresh what changed.

Read in this order: ``run`` (what every job has: one run, one directory, one runner), ``ingest`` (logs to tables, the
only shuffle), ``generation`` (``summarize`` all, ``refresh`` what changed), ``tables`` (compact, forget), ``follow``
(a stream, within seconds). ``errors`` has what can go wrong with the exit code of each, ``horizon`` how far back the
tables must stay as they are.
"""

import logging

from vista.errors import needs

needs("jobs", "apache_beam")

__version__ = "0.2.0"


def _about_a_job(record: logging.LogRecord) -> bool:
    return "apitools not found" not in record.getMessage()


# Beam warns of Google's libraries on the root logger whenever it is imported, wanted or not. The package that imports
# it comes first in every process of a job.
logging.getLogger().addFilter(_about_a_job)
