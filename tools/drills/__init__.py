"""Drills of the cache store: processes killed at every step, bytes flipped everywhere, readers beside a publisher.

``truth`` is a store whose every value is a function of user and version, so a wrong or mixed value is recognised;
``drill`` kills, ``race`` lets two publishers meet, ``corruption`` damages, ``storm`` publishes as fast as it can,
``storage`` fills the disk. Each is a command: ``python -m tools.drills.drill --kills 2000 --seed 7``. What was drilled
and counted is in docs/faults.md.
"""
