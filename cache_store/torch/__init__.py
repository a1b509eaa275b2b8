"""The store as torch modules and datasets: ``feature`` (ids in, tokens out), ``decode`` (its arithmetic), ``rows``
(as-of training rows).
"""
