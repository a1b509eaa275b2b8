"""``/healthz``, ``/readyz`` and ``/metrics`` of a server, over plain HTTP: for probes and for Prometheus."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from cache_store.read.counters import collector

if TYPE_CHECKING:
    from cache_store.flight.server import SummaryServer

TEXT = "text/plain; charset=utf-8"
METRICS = "text/plain; version=0.0.4; charset=utf-8"


class Pages:
    """Answers on ``host:port`` (0 takes a free one, see ``port``) until :meth:`close`."""

    def __init__(self, server: SummaryServer, host: str, port: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 5
            server_version, sys_version = "vista", ""

            def do_GET(self) -> None:
                code, kind, body = page(server, self.path.partition("?")[0])
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass  # a probe a second is no news

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            address_family = 10 if ":" in host else 2  # AF_INET6, AF_INET

        self._http = Server((host, port), Handler)
        self.port = int(self._http.server_address[1])
        self._thread = threading.Thread(
            target=self._http.serve_forever, name="vista-serve-pages", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._http.shutdown()
        self._http.server_close()


def page(server: SummaryServer, path: str) -> tuple[int, str, bytes]:
    """Status, type and body of a page."""
    if path == "/healthz":
        return 200, TEXT, b"alive\n"
    if path == "/readyz":
        why = server.ready
        return (200, TEXT, b"ready\n") if why is None else (503, TEXT, f"not ready: {why}\n".encode())
    if path == "/metrics":
        server.counts.ready.set(server.ready is None)
        return 200, METRICS, server.counts.text(collector(server.store.counters.as_dict))
    return 404, TEXT, b"expected /healthz, /readyz or /metrics\n"
