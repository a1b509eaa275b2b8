"""Logs to tables.

Read ``job``, then ``options``, ``plan`` with ``text`` and ``vocabulary``, ``units``, ``read`` with ``spill``,
``build``, ``items``; ``preview`` is the look before all that.
"""
