"""What there is to look at: for a screen (`vista status`, `vista runs`, `vista explain`) and a page (`vista report`).

Read in this order: ``run_history`` (runs), ``tables_seen`` (tables and what the store lacks of them), ``store_seen``
(lines, generations, clocks, damage), ``environment`` (the machine), ``health`` (what of it is wrong, and the next
command), ``explanation`` (one user); then ``assemble`` with ``sections``, ``asked``, ``charts`` and ``page``.
Everything here only reads, and nothing but ``explanation`` needs torch.
"""
