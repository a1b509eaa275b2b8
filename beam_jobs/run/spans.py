"""OpenTelemetry spans of a run: run > step > task > phase. Extra ``otel``; nothing is imported unless it is asked for.

Asked for by OpenTelemetry's own means: OTEL_TRACES_EXPORTER in the environment, or a tracer provider that the program
around a job has set. Exporter, endpoint, sampler and resource are OTEL_* variables as well; TRACEPARENT names the span
of whoever started the command. Only the driver exports: workers, of whatever engine, leave their times in the run's
folder.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import cache_store
from beam_jobs.run.record import RunDirectory

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

NO_PHASE = ("seconds", "total", "model_cpu")
"""Timings of a receipt that are no part of the task's time."""


def tracer() -> Tracer | None:
    """Where spans go; None where nobody asked."""
    named = os.environ.get("OTEL_TRACES_EXPORTER", "none").strip().lower() not in ("", "none")
    off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if off or not (named or "opentelemetry.sdk.trace" in sys.modules):
        return None
    try:
        from opentelemetry import trace

        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            if not named:
                return None
            _provide()
    except (ImportError, ValueError) as error:  # no reason for a job not to run
        _warn(f"OTEL_TRACES_EXPORTER is set, but no spans are sent: {error}; pip install 'vista-cache[otel]'")
        return None
    return trace.get_tracer("vista", cache_store.__version__)


@functools.cache  # once is enough
def _warn(text: str) -> None:
    logging.getLogger(__name__).warning(text)


def _provide() -> None:
    """Set the provider that the environment describes; it sends what is left when the process ends."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
    )
    otlp = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    provider = TracerProvider()
    for word in os.environ["OTEL_TRACES_EXPORTER"].split(","):
        name = otlp if word.strip() == "otlp" else word.strip()
        found = list(entry_points(group="opentelemetry_traces_exporter", name=name))
        if not found:
            raise ValueError(f"no exporter {name} is installed")
        provider.add_span_processor(BatchSpanProcessor(found[0].load()()))
    trace.set_tracer_provider(provider)


@contextlib.contextmanager
def span(name: str, **facts: Any) -> Iterator[Span | None]:
    """The body as a span below the current one, with its error where it raises; None where nobody asked."""
    to = tracer()
    if to is None:
        yield None
        return
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    above = None
    if not trace.get_current_span().get_span_context().is_valid and "TRACEPARENT" in os.environ:
        above = TraceContextTextMapPropagator().extract({"traceparent": os.environ["TRACEPARENT"]})
    with to.start_as_current_span(name, context=above, attributes=attributes(facts)) as begun:
        yield begun


def attributes(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Names below ``vista.``; what is not known is left out."""
    return {f"vista.{name}": value for name, value in facts.items() if value is not None}


def tasks(directory: RunDirectory) -> None:
    """A span for each task that was worked on, below the current one, and below it its phases: their times are sums
    over the task, drawn one after the other from its beginning."""
    to = tracer()
    if to is None:
        return
    from opentelemetry import trace

    failures = directory.failures()
    for name, (began, ended) in directory.times().items():
        receipt = directory.receipt(name, verify=False) or {}
        counts = {
            k: receipt.get("counts", {}).get(k)
            for k in ("users", "events", "rows", "written", "dead_letters")
        }
        task = to.start_span(
            name, start_time=began, attributes=attributes({**counts, "host": receipt.get("host")})
        )
        if name in failures:
            text = f"{failures[name]['error']}: {failures[name]['text']}"
            task.set_status(trace.Status(trace.StatusCode.ERROR, text))
        inside, at = trace.set_span_in_context(task), began
        for phase, seconds in receipt.get("timings", {}).items():
            if phase not in NO_PHASE and name not in failures:
                to.start_span(phase, inside, start_time=at).end(at := min(at + int(seconds * 1e9), ended))
        task.end(ended)
