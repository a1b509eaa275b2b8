"""Logs as people have them: ``text`` (CSV, TSV, JSON to Parquet), ``schema`` (which column means what), ``importer``
(checked columns, and the rows that are set aside).
"""
