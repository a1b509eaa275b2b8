"""Jobs over user buckets, on any Beam runner: ingest logs, summarise histories, refresh what changed.

Read in this order:
    errors.py          what can go wrong, and the exit code of each
    run_record.py      one run = one directory; receipts make it resumable
    pipeline.py        the runner: local by name, any other by its own options
    ingest.py          logs to bucketed, sorted tables (the only shuffle)
    compact_tables.py  the many small files of a bucket into few
    summarize.py       tables to a full generation; one task per bucket
    refresh.py         what changed since the parent generation to a delta
    plan.py            what a run would cost, before it runs
    forget.py          one user out of everything that is kept
"""

import logging


def _about_a_job(record: logging.LogRecord) -> bool:
    return "apitools not found" not in record.getMessage()


# Beam warns of Google's libraries on the root logger whenever it is imported, wanted or not. The package that imports
# it comes first in every process of a job.
logging.getLogger().addFilter(_about_a_job)
