"""What there is to look at: for a screen (`vista status`, `vista runs`) and for a page (`vista report`).

Read in this order: ``run_history`` (runs), ``tables_seen`` (tables and what the store lacks of them), ``store_seen``
(lines, generations, clocks, damage), ``environment`` (the machine), ``health`` (what of it is wrong, and the next
command); then ``assemble`` with ``sections``, ``charts`` and ``page``. Everything here only reads.
"""
