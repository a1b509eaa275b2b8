"""What changes a store: ``publish``, ``compact`` and ``fold``, ``prune``, ``forget`` and ``forgotten``; and
``verify``. ``changes`` is what one generation has that another has not, ``compare`` shows two side by side.
"""
