"""Logs as people have them, to checked columns.

Read in this order: ``reading`` (how a log is read, one value), ``schema`` (which column means what), ``inspecting``
(the first look), ``importer`` (rows to checked columns, each by ``values``, with ``times`` and ``actions``;
``letters`` are rows set aside). What makes Parquet of other forms: ``text`` (with ``facts`` and ``guessing``, what a
first pass finds; ``weights`` of actions) over ``csv_rows`` and ``json_rows``, ``columnar`` and ``exploding``,
``arrays`` (vectors of items), ``git_history``.
"""
