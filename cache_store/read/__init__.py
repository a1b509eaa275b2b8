"""From users to tokens.

Read in this order: ``options`` (how a store is read), ``mapping`` (files as memory), ``generation`` (one of them),
``snapshot`` (a pinned chain and its batches), ``found`` and ``columns`` (what they give), ``views`` (which
generation), ``lookups`` (as of when, what of the missing), ``watch`` (files that change beneath a reader), ``leases``
(what ``prune`` must leave); then ``prefetch`` and ``counters``.
"""
