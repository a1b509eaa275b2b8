"""The model and what it eats: no LMDB, no Beam.

Read in this order: ``config`` (what a model is), ``data`` (``events``, the jagged batch that all parts exchange, with
the arithmetic of ``jagged``; logs and tables), ``ops`` (the operations, each beside its naive twin), ``embedding``
(items and events as vectors), ``stage1`` (a lifelong history becomes summary tokens and a resumable state), ``stage2``
(retrieval and ranking over one context), ``model`` (both together); then ``training`` (tables to a ``bundle``),
``new_items`` (what came after it) and ``serving``. ``errors`` has what can go wrong, ``small_text`` reads small files
that anybody may have put there, and replaces them.
"""

__version__ = "0.2.0"
