"""Logs to tables.

Read ``job``, then ``options``, ``plan`` with ``text`` and ``vocabulary``, ``units``, ``pipeline`` with ``read``,
``spill`` and ``build``, ``items``; ``preview`` is the look before all that.
"""
