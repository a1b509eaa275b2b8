"""A lifelong history becomes summary tokens and a resumable state.

Read in this order: ``summarizer`` (the method), ``seeds``, ``places`` and ``slots`` (the tokens), ``clusters``,
``packing`` (histories as full steps), ``state`` and ``resuming`` (what is kept), ``stream`` (a whole bucket),
``prefixes`` and ``reconstruction`` (training).
"""

from vista.errors import needs

needs("model", "torch")
