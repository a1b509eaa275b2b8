"""How fast: a module NAME here has ``run(quick, **params) -> Result`` and is ``vista bench NAME``.

``harness`` times, compares and reports. The store: ``lookup``, ``write``, ``storage``, ``feature``; its server:
``serve`` (beside Redis, ``redis_rows``), and ``looking`` at it. Jobs: ``ingest``, ``job``, ``engines`` (on
``clusters``), ``refresh``, ``freshness``, ``memory``, ``scale``. Stage 1: ``summarize``, ``length``. Serving:
``rank``, ``cascade``, ``flat``, ``index``. The whole device path on one card: ``gpu`` (``device`` around its parts);
its kernels by the compiler alone: ``kernels``.
"""
