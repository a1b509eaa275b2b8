"""The quality study: what of a long history each kind of summary keeps, measured by ranking.

Read protocol.py (data, slates, slices), then contexts.py (what stage 2 is given), then study.py (one run).
The benchmark that calls it is tools/studies/quality.py; its results are in docs/quality.md.
"""
