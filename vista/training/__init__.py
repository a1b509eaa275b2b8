"""Both stages in one run, from tables to a bundle.

Read in this order: ``config``, ``survey`` (one pass before training), ``examples``, ``batches`` and ``loader``
(tables to batches), ``objective`` and ``losses``, ``count_min``, ``trainer`` (a step) with ``compiled`` layers,
``train`` (the run), ``checkpoint``, ``log``, ``evaluate``, ``metrics``, ``slices``, ``personal`` and ``verdict``.
"""

from vista.errors import needs

needs("model", "torch")
