"""Changes of the tables: ``compact`` (small files into few) and ``forget`` (users out of everything)."""
