"""A lifelong history becomes summary tokens and a resumable state.

Read in this order: ``groups`` (what every group of tokens has in common), ``summarizer`` (the method), then the
groups: ``exact_tokens`` (the items that matter, exactly), whose record ``tokens`` writes and reads, over ``tables`` or,
on a GPU, ``tables_torch``; ``seed_tokens`` over ``seeds`` or ``places``, ``slot_tokens`` over ``slots`` with
``clusters``. ``packing`` (histories as full steps), ``state`` and ``resuming`` (what is kept), ``stream`` (a whole
bucket), ``reconstruction`` (training).
"""

from vista.errors import needs

needs("model", "torch")
