"""What changes a store: ``publish``, ``compact`` and ``fold``, ``prune``, ``forget`` and ``forgotten``; and
``verify``; ``compare`` shows two generations side by side.
"""
