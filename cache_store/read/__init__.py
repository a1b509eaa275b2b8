"""From users to tokens: ``mapping`` (files as memory), ``generation`` (one of them), ``snapshot`` (a pinned chain and
its batches), ``views`` (which generation), ``leases`` (what ``prune`` must leave); ``prefetch`` and ``counters``.
"""
