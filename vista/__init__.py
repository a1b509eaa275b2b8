"""The model and what it eats: no LMDB, no Beam.

Read in this order: ``config`` (what a model is), ``data.events`` (the jagged batch
every part exchanges), ``embedding`` (items and events as vectors), ``summarizer`` and
``slots`` (stage 1: a lifelong history becomes summary tokens and a resumable state),
``ranker`` (stage 2: retrieval and ranking over one context), ``model`` (both stages
together), then ``training``, ``bundle``, ``retrieval`` and ``serving``.
"""
