"""Summaries for readers on other hosts and in other languages, by Arrow Flight (extra ``flight``).

    SummaryServer(Store(path), port=8815)           answers until it is closed; `vista serve` is this with options
    SummaryClient("grpc://127.0.0.1:8815").lookup(users)

To read the code: ``asking`` (what a request says), ``coalescing`` (many requests, one lookup), ``server``, ``counts``
and ``pages`` (health and metrics over HTTP), ``client``. docs/serve-protocol.md is what a client in another language
is written from.
"""
