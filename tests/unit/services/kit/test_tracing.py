import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from services.kit import context, tracing
from tests.unit.services.kit.conftest import Served
from tests.unit.services.kit.echo_service import NAME

TRACE_ID, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{CALLER}-01"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider)
    yield exporter
    tracing.use(None)
    provider.shutdown()


async def the_span(spans: InMemorySpanExporter) -> ReadableSpan:
    """A call's span ends a moment after its answer has come."""
    async with asyncio.timeout(10):
        while not (found := spans.get_finished_spans()):  # noqa: ASYNC110 - an exporter has no event
            await asyncio.sleep(0)
    (span,) = found
    return span


async def test_a_call_is_a_span_below_its_callers_and_what_it_calls_is_below_that(
    served: Served, spans: InMemorySpanExporter
) -> None:
    told = await served.client.unary(b"ids", metadata=(("x-request-id", "abc"), ("traceparent", TRACEPARENT)))
    span = await the_span(spans)
    assert span.name == f"{NAME}/Unary"
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == CALLER
    assert told.decode() == f"abc 00-{TRACE_ID}-{span.context.span_id:016x}-01"
    assert span.attributes is not None
    assert span.attributes["lares.request_id"] == "abc"
    assert span.attributes["rpc.grpc.status_code"] == 0


async def test_a_failed_call_is_a_failed_span(served: Served, spans: InMemorySpanExporter) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await served.client.unary(b"missing")
    span = await the_span(spans)
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "NOT_FOUND")


async def test_phases_follow_one_another_below_the_span_up_to_now(spans: InMemorySpanExporter) -> None:
    context.bind_request([])
    span = tracing.begin("generation")
    tracing.phases({"prefill": 20.0, "decode": 300.0})
    tracing.annotate({"gen_ai.request.model": "m"})
    tracing.end(span, {"n": 1}, name="chat")
    prefill, decode, whole = spans.get_finished_spans()
    assert (prefill.name, decode.name, whole.name) == ("prefill", "decode", "chat")
    assert prefill.end_time == decode.start_time
    assert [phase.end_time - phase.start_time for phase in (prefill, decode)] == [20_000_000, 300_000_000]  # type: ignore[operator]  # A span that ended has both.
    assert all(phase.parent == whole.context for phase in (prefill, decode))
    assert dict(whole.attributes or {}).items() >= {"gen_ai.request.model": "m", "n": 1}.items()


async def test_without_an_endpoint_there_are_no_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    traces = tracing.Traces()
    await traces.start()
    context.bind_request([("traceparent", TRACEPARENT)])
    assert tracing.begin("nothing") is None
    assert context.traceparent.get() == TRACEPARENT
    await traces.stop()


async def test_spans_arrive_at_a_collector_the_last_ones_when_the_process_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    received: list[str] = []

    class Collector(rpc.TraceServiceServicer):
        async def Export(self, request: Any, context: Any) -> pb.ExportTraceServiceResponse:
            received.extend(
                span.name
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            )
            return pb.ExportTraceServiceResponse()

    server = grpc.aio.server()
    rpc.add_TraceServiceServicer_to_server(Collector(), server)  # type: ignore[no-untyped-call]  # Its stubs have no types.
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    traces = tracing.Traces()
    await traces.start()
    context.bind_request([])
    tracing.end(tracing.begin("served"), {})
    await traces.stop()
    await server.stop(None)
    assert received == ["served"]
