"""Histories and where they come from.

Read in this order: ``events`` (the jagged batch on the host), ``recent`` (its newest rows), ``logs`` (files as people
have them), ``tables`` (history, impressions and items), ``paths`` (files by URI), ``arrow`` (its columns as NumPy's),
``generator`` (made-up lives).
"""
