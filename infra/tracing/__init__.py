"""Traces for OpenTelemetry. Off unless OTEL_EXPORTER_OTLP_ENDPOINT is set; then nothing of it is imported, or costs.

A parent travels as the text of a W3C `traceparent` header, so that it may also go onto a queue. Where none is named, a
span's parent is the one whose block it begins in.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager

from infra.settings import Settings
from infra.tracing.base import Attributes, Kind, Span, Tracer

_tracer = Tracer()


def start_tracing(settings: Settings, role: str, instance: str) -> None:
    """Trace from now on, if the settings say where to.

    Args:
        settings: those of this process.
        role: what it is: "container" or "function".
        instance: which one of them.
    """
    global _tracer
    if settings.otel_exporter_otlp_endpoint and not _tracer.is_on:
        from infra.tracing.otel import OtelTracer

        _tracer = OtelTracer(settings, role, instance)


def stop_tracing(within: float) -> None:
    """Trace no more, once what has ended is sent or so many seconds have passed."""
    global _tracer
    stopped, _tracer = _tracer, Tracer()
    stopped.stop(within)


def flush(within: float) -> None:
    """See `Tracer.flush`."""
    _tracer.flush(within)


def is_on() -> bool:
    """Whether spans go anywhere."""
    return _tracer.is_on


def has_contents() -> bool:
    """Whether what people, models and tools said may be in a span."""
    return _tracer.contents


def begin(
    name: str,
    attributes: Attributes,
    *,
    parent: str | None = None,
    kind: Kind = "internal",
    links: Iterable[str] = (),
) -> Span:
    """A span that goes on until its `end`.

    Args:
        name: what it is, in few words of few kinds.
        attributes: what is known of it at its start; None is left out.
        parent: the `traceparent` of the one that it belongs to, if that is not the block it begins in.
        kind: its role between processes.
        links: the `traceparent` of others that it has to do with.
    """
    return _tracer.begin(name, attributes, parent=parent, kind=kind, links=links)


def span(
    name: str,
    attributes: Attributes,
    *,
    parent: str | None = None,
    kind: Kind = "internal",
    links: Iterable[str] = (),
) -> AbstractContextManager[Span]:
    """A span that is a block: those that begin in it belong to it. See `begin`."""
    return _tracer.block(_tracer.begin(name, attributes, parent=parent, kind=kind, links=links))
