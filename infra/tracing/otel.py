"""The OpenTelemetry SDK, behind `infra.tracing`: imported only where there is a collector to send to."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import Link, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from infra.settings import Settings
from infra.tracing.base import Attributes, Kind, Span, Tracer

CONVENTIONS = "https://opentelemetry.io/schemas/gen-ai/0.1.0"
"""The version of the GenAI conventions whose names are used; all of them may still change."""
SEND_SECONDS = 5.0
"""How long the collector may take for a batch, tries included. What it does not take is dropped."""
MOST_ATTRIBUTE_CHARS = 64 * 1024
MOST_LINKS = 32

KINDS = {
    "internal": SpanKind.INTERNAL,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}


class OtelSpan(Span):
    """A span that a collector will hear of."""

    def __init__(self, otel: trace.Span) -> None:
        self.otel = otel
        seen = otel.get_span_context()
        self.header = f"00-{seen.trace_id:032x}-{seen.span_id:016x}-{seen.trace_flags:02x}"

    def set(self, attributes: Attributes) -> None:
        """See `Span.set`."""
        self.otel.set_attributes(_known(attributes))

    def failed(self, error_type: str) -> None:
        """See `Span.failed`."""
        self.otel.set_attribute("error.type", error_type)
        self.otel.set_status(StatusCode.ERROR)

    def end(self) -> None:
        """See `Span.end`."""
        self.otel.end()


class OtelTracer(Tracer):
    """Sends spans in batches, from a thread of its own: a collector that is slow or down holds nobody up."""

    is_on = True

    def __init__(self, settings: Settings, role: str, instance: str) -> None:
        assert settings.otel_exporter_otlp_endpoint
        self.contents = settings.trace_contents
        named = {"service.name": settings.otel_service_name, "service.instance.id": instance, "realtime.role": role}
        self._provider = TracerProvider(
            resource=Resource.create(named),
            sampler=ParentBasedTraceIdRatio(settings.otel_traces_sampler_arg),
            span_limits=SpanLimits(max_span_attribute_length=MOST_ATTRIBUTE_CHARS, max_links=MOST_LINKS),
            shutdown_on_exit=False,  # we stop it ourselves, and wait only so long
        )
        exporter = OTLPSpanExporter(
            endpoint=settings.otel_exporter_otlp_endpoint.rstrip("/") + "/v1/traces",
            headers=settings.otel_headers,
            timeout=SEND_SECONDS,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("realtime-ai-backend", schema_url=CONVENTIONS)

    def begin(self, name: str, attributes: Attributes, *, parent: str | None, kind: Kind, links: Iterable[str]) -> Span:
        """See `Tracer.begin`."""
        return OtelSpan(
            self._tracer.start_span(
                name,
                context=_context(parent) if parent else None,
                kind=KINDS[kind],
                attributes=_known(attributes),
                links=[Link(trace.get_current_span(_context(link)).get_span_context()) for link in links],
            )
        )

    def block(self, span: Span) -> AbstractContextManager[Span]:
        """See `Tracer.block`."""
        assert isinstance(span, OtelSpan)
        return _block(span)

    def flush(self, within: float) -> None:
        """See `Tracer.flush`."""
        _bounded(self._provider.force_flush, within)

    def stop(self, within: float) -> None:
        """See `Tracer.stop`."""
        _bounded(self._provider.shutdown, within)


@contextmanager
def _block(span: OtelSpan) -> Iterator[Span]:
    token = context.attach(trace.set_span_in_context(span.otel))
    try:
        yield span
    except Exception as error:
        span.failed(type(error).__name__)
        raise
    finally:
        context.detach(token)
        span.end()


def _context(header: str) -> context.Context:
    """What the header names; nothing where it is not well formed, and then the span begins a trace of its own."""
    return TraceContextTextMapPropagator().extract({"traceparent": header}, context.Context())


def _known(attributes: Attributes) -> dict[str, AttributeValue]:
    return {name: value for name, value in attributes.items() if value is not None}


def _bounded(call: object, within: float) -> None:
    """Call it, and wait for so many seconds: the SDK's own bounds do not hold while a batch is under way."""
    assert callable(call)
    sending = threading.Thread(target=call, daemon=True)
    sending.start()
    sending.join(within)
