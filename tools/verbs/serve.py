"""``vista serve``: summaries for readers on other hosts and in other languages, by Arrow Flight."""

from __future__ import annotations

import ipaddress
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tools import console
from tools.home import Home
from tools.invocation import asked_to_stop
from tools.options import HomeOfStore, JsonOption, LineOption, as_ms

if TYPE_CHECKING:
    from cache_store.flight.server import SummaryServer, Tls

TOKEN = "VISTA_SERVE_TOKEN"


def command(
    *,
    at: HomeOfStore,
    line: LineOption = "main",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of Flight; 0 takes a free one.")] = 8815,
    http_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of /healthz, /readyz and /metrics; 0 takes a free one.")
    ] = 8816,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help=f"File of tokens, one a line, of which callers show one.  [default: ${TOKEN}, or nobody is asked]"
        ),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Only callers with a certificate by this authority, PEM.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen to other hosts also without a token or without TLS.")
    ] = False,
    vectors: Annotated[
        Path | None,
        typer.Option(
            help="Item vectors of sequences, as in a bundle's vectors.npz.  [default: of the bundle in HOME that made "
            "what is live]"
        ),
    ] = None,
    max_age_days: Annotated[float | None, typer.Option(min=0, help="Older summaries are STALE.")] = None,
    refresh_seconds: Annotated[
        float, typer.Option(min=0.05, help="How often to look for a new generation.")
    ] = 1.0,
    max_users: Annotated[int, typer.Option(min=1, help="Users of one request.")] = 8192,
    streams: Annotated[int, typer.Option(min=1, help="Exchanges that may be open.")] = 256,
    drain_seconds: Annotated[
        float, typer.Option(min=0, help="On SIGTERM, answer so much longer while /readyz says no.")
    ] = 0.0,
    grace_seconds: Annotated[
        float, typer.Option(min=0, help="And wait so long for what is under way.")
    ] = 10.0,
    json: JsonOption = False,
) -> int:
    """Answer lookups of readers on other hosts and in other languages, until SIGTERM or ^C.

    Follows the live generation. docs/serve-protocol.md has a client in ten lines, and what others are written from.
    """
    from cache_store import Store
    from cache_store.errors import needs

    needs("flight", "pyarrow", "prometheus_client")
    from cache_store.flight.pages import Pages
    from cache_store.flight.server import Limits, SummaryServer
    from cache_store.format.layout import check_name

    tokens, tls = _tokens(token_file), _tls(tls_cert, tls_key, tls_client_ca)
    if not insecure and not _is_loopback(host) and not (tokens and tls):
        lacks = " and ".join(
            w for w, there in (("--token-file", tokens), ("--tls-cert and --tls-key", tls)) if not there
        )
        raise typer.BadParameter(
            f"--host {host} can be reached by other hosts: expected {lacks} as well, or --insecure to do without"
        )
    check_name(line, "line")
    with asked_to_stop(signal.SIGTERM, signal.SIGINT) as stop:
        opened = Store(at.store, line=line, max_age_ms=as_ms(max_age_days))
        find = _vectors(at, vectors)
        limits = Limits(per_request=max_users, streams=streams)
        server = None
        try:
            server = SummaryServer(
                opened, host, port, tokens=tokens, tls=tls, vectors=find, limits=limits, refresh_s=refresh_seconds
            )  # fmt: skip
            pages = Pages(server, host, http_port)
        except OSError as error:  # of Flight and of HTTP alike: the address is taken, or not ours
            if server is not None:
                server.close(0)
            raise typer.BadParameter(f"--host, --port, --http-port: cannot listen there: {error}") from error
        shown = f"[{host}]" if ":" in host else host
        told = {
            "flight": f"grpc{'+tls' if tls else ''}://{shown}:{server.port}", "http": f"http://{shown}:{pages.port}",
            "generation": opened.generation_read, "pid": os.getpid(),
        }  # fmt: skip
        what = "nothing yet, and waits for a generation"
        if told["generation"]:
            what = f"generation {told['generation']}"
        text = f"serving {what} on {told['flight']}; {told['http']}/readyz and /metrics; ^C ends"
        console.json_line(told) if json else console.note(text)
        stop.wait()
        return _end(server, pages, drain_seconds, grace_seconds)


def _end(server: SummaryServer, pages: Any, drain_s: float, grace_s: float) -> int:
    server.drain()
    console.note("stopping: what is under way is answered")
    threading.Event().wait(drain_s)
    done = server.close(grace_s)
    pages.close()
    if not done:
        console.note(f"requests were still under way after {grace_s:g} s; they are cut off")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if done else 4)  # exchanges that callers keep open would hold the interpreter


def _tokens(path: Path | None) -> list[str]:
    if path is None:
        found = os.environ.get(TOKEN)
        where = f"${TOKEN}"
        lines = [] if found is None else [found]
    else:
        where = f"--token-file {path}"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"{where}: expected tokens, one a line, found {error}") from error
    tokens = [line.strip() for line in lines if line.strip()]
    if (path is not None or lines) and not tokens:
        raise typer.BadParameter(f"{where}: expected a token, found none; `openssl rand -hex 32` makes one")
    if any(len(t) < 16 or not t.isascii() or not t.isprintable() for t in tokens):
        raise typer.BadParameter(f"{where}: expected tokens of at least 16 printable ASCII characters")
    return tokens


def _tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> Tls | None:
    from cache_store.flight.server import Tls

    if certificate is None and key is None:
        if client_ca is not None:
            raise typer.BadParameter("--tls-client-ca: expected --tls-cert and --tls-key as well")
        return None
    if certificate is None or key is None:
        raise typer.BadParameter("expected --tls-cert and --tls-key together")
    try:
        return Tls(certificate.read_bytes(), key.read_bytes(), client_ca.read_bytes() if client_ca else None)
    except OSError as error:
        raise typer.BadParameter(f"--tls-cert, --tls-key, --tls-client-ca: {error}") from error


def _vectors(at: Home, given: Path | None) -> Any:
    """For a model's fingerprint its item vectors: the file given, or those of the bundle in the home."""
    from cache_store.flight.server import read_vectors
    from tools.home import fingerprint_of

    if given is not None:
        found = read_vectors(given)
        return lambda fingerprint: found

    def of_bundle(fingerprint: str) -> Any:
        bundle = next((p for p in at.models if fingerprint_of(p) == fingerprint), None)
        path = bundle / "vectors.npz" if bundle else None
        return read_vectors(path) if path is not None and path.exists() else None

    return of_bundle


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
