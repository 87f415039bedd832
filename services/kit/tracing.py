"""OpenTelemetry traces, sent where `OTEL_EXPORTER_OTLP_ENDPOINT` says; without it nothing of it is imported.

    span = tracing.begin("lares.inference.v1.InferenceService/Generate")   below its caller's, above what it calls
    tracing.annotate({"gen_ai.request.model": name})                       on the span that this task began last
    tracing.phases({"prefill": 20.5, "decode": 300.0})                     below it, one after the other, up to now
    tracing.end(span, {})

All other variables are OpenTelemetry's own, too: OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS.
"""

import asyncio
import importlib.metadata
import os
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

import structlog

from services.kit import context

if TYPE_CHECKING:  # An extra.
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

_log = structlog.get_logger(__name__)

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

Attributes = Mapping[str, str | int | float]

_tracer: "Tracer | None" = None
_current: "ContextVar[Span | None]" = ContextVar("span", default=None)


class Traces:
    """Sends the spans of this process, from `start` to `stop`. A `Part` of `services.kit.process`."""

    def __init__(self) -> None:
        self._provider: TracerProvider | None = None

    async def start(self) -> None:
        """Begin, if the environment says where to."""
        if not any(os.environ.get(name) for name in _ENDPOINTS):
            return
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ModuleNotFoundError:
            _log.warning("no traces are sent: they need OpenTelemetry; install lares[otel]")
            return
        facts = {
            "service.name": os.environ.get("OTEL_SERVICE_NAME", "lares"),
            "service.version": importlib.metadata.version("lares"),
        }
        self._provider = TracerProvider(resource=Resource.create(facts))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        use(self._provider)

    async def stop(self) -> None:
        """Send what is left."""
        use(None)
        if self._provider is not None:
            await asyncio.to_thread(self._provider.shutdown)


def use(provider: "TracerProvider | None") -> None:
    """Give spans to this provider from now on; to nobody with None."""
    global _tracer
    _tracer = None if provider is None else provider.get_tracer("lares")


def begin(name: str) -> "Span | None":
    """A span for the request that this task serves, below the one that its caller's traceparent names."""
    if _tracer is None:
        return None
    from opentelemetry.trace import SpanKind, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    travel = TraceContextTextMapPropagator()
    parent = travel.extract({context.TRACEPARENT_KEY: context.traceparent.get()})
    span = _tracer.start_span(name, context=parent, kind=SpanKind.SERVER)
    carrier: dict[str, str] = {}
    travel.inject(carrier, set_span_in_context(span))
    context.traceparent.set(carrier[context.TRACEPARENT_KEY])
    _current.set(span)
    span.set_attribute("lares.request_id", context.request_id.get())
    return span


def annotate(attributes: Attributes) -> None:
    """Facts about what this task serves."""
    if (span := _current.get()) is not None:
        span.set_attributes(dict(attributes))


def phases(lasted_ms: Mapping[str, float]) -> None:
    """What this task's request went through, in order, until now. lasted_ms: by name."""
    if _tracer is None or (span := _current.get()) is None:
        return
    from opentelemetry.trace import set_span_in_context

    began_ns = time.time_ns() - round(sum(lasted_ms.values()) * 1e6)
    for name, duration_ms in lasted_ms.items():
        ended_ns = began_ns + round(duration_ms * 1e6)
        phase = _tracer.start_span(name, context=set_span_in_context(span), start_time=began_ns)
        phase.end(ended_ns)
        began_ns = ended_ns


def end(span: "Span | None", attributes: Attributes, *, name: str = "", failure: str = "") -> None:
    """The request is answered. name: what it turned out to be. failure: why it went wrong, if it did."""
    if span is None:
        return
    from opentelemetry.trace import Status, StatusCode

    if name:
        span.update_name(name)
    span.set_attributes(dict(attributes))
    if failure:
        span.set_status(Status(StatusCode.ERROR, failure))
    span.end()
