"""What every job has: ``record`` (its directory), ``runner`` (Beam), ``progress``, ``facts``, ``quiet_worker``."""
