"""From an event to the features that serving reads, within seconds: one process joins ingest and refresh.

Read ``service`` (a turn: take, commit, refresh, deliver, tidy), then the ``sources`` it takes from: ``folder`` (files
that appear), ``redis_streams`` and ``kafka``; then ``delivery`` to ``sinks``: ``redis``, ``kafka``, ``flight``;
``folding`` is what happens beside the turns. ``kafka_client`` is who a topic takes us for.
"""
