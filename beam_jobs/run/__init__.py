"""What every job has.

Read in this order: ``job`` (the one skeleton), ``record`` (its directory) with ``files`` and ``secrets`` (what it must
not hold), ``engines`` (where tasks run: ``runner`` is Beam, ``children`` stay for the next, ``clusters`` the others,
``reach`` asks whether a service answers), ``pieces`` (work that stores and tables deal out themselves), ``limits``
(disk and memory, told before), ``progress``, ``spans`` (OpenTelemetry), ``quiet_worker``; ``leftovers`` is what runs
leave behind.
"""
