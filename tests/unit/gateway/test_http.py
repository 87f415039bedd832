"""What HTTP itself can get wrong, and what the gateway tells of itself."""

import asyncio
import json
import re
import socket

import httpx2
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.routing import Route

from gateway.app import create_app
from gateway.service import GatewayService, build
from gateway.settings import GatewaySettings
from gateway.upstream import FULL_NAMES
from services.kit import tracing
from services.kit.address import Address
from services.kit.errors import FailedPrecondition
from services.kit.host import Host
from services.kit.settings import Settings
from tests.unit.gateway.fake_services import FakeServices

CHAT = "/v1/chat/completions"
POST = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n".encode()


async def test_alive_is_alive_and_ready_needs_every_service(
    http: httpx2.AsyncClient, services: FakeServices
) -> None:
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    assert (await http.get("/readyz")).status_code == 200
    services.health.set(FULL_NAMES["speech"], False)
    answer = await http.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["services"]["speech"] == "not_serving"
    assert answer.json()["services"]["registry"] == "serving"


async def test_a_draining_gateway_is_not_ready(http: httpx2.AsyncClient, host: Host) -> None:
    host.draining.set()
    answer = await http.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["status"] == "draining"


async def test_what_is_not_there_and_not_offered_is_told_in_openais_shape(http: httpx2.AsyncClient) -> None:
    missing = await http.get("/v1/nothing")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "unknown_url"
    wrong = await http.put("/v1/models")
    assert wrong.status_code == 405
    assert wrong.headers["allow"]
    assert wrong.json()["error"]["code"] == "method_not_allowed"


async def test_metrics_name_routes_and_never_paths(http: httpx2.AsyncClient) -> None:
    await http.get("/v1/models/some-private-name")
    await http.get("/wp-admin.php")
    text = (await http.get("/metrics")).text
    assert 'route="/v1/models/{model}"' in text
    assert 'route="unmatched"' in text
    assert "private" not in text
    assert "wp-admin" not in text


async def test_a_request_is_a_span_that_names_its_route_and_machines_that_look_after_it_are_none(
    http: httpx2.AsyncClient,
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider)
    try:
        await http.get("/healthz")
        await http.get("/v1/models/some-private-name")
    finally:
        tracing.use(None)
        provider.shutdown()
    (span,) = [span for span in exporter.get_finished_spans() if not span.name.startswith("lares.")]
    assert span.name == "GET /v1/models/{model}"
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 404
    assert "private" not in str(span.attributes)


async def test_the_document_tells_of_every_route_and_of_no_other(
    http: httpx2.AsyncClient, host: Host
) -> None:
    document = (await http.get("/openapi.json")).json()
    told = {(path, method.upper()) for path, item in document["paths"].items() for method in item}
    app = create_app(host.channel, GatewaySettings(), on_loopback=True)
    routes = [route for route in app.routes if isinstance(route, Route)]
    served = {
        (re.sub(r":\w+}", "}", route.path), method)
        for route in routes
        for method in (route.methods or set()) - ({"HEAD"} if "GET" in (route.methods or set()) else set())
    }
    assert told == served
    ids = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(ids) == len(set(ids))


async def test_every_reference_in_the_document_leads_somewhere(http: httpx2.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    references = [part.split('"')[0] for part in json.dumps(document).split('"$ref": "')[1:]]
    assert references
    for reference in references:
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]


@pytest.mark.parametrize(
    "name", ["evil.example", "127.0.0.1.evil.example", "lares", "", "[::1", "127.0.0.1@evil"]
)
async def test_a_foreign_host_is_refused_on_loopback(http: httpx2.AsyncClient, name: str) -> None:
    answer = await http.get("/v1/models", headers={"host": name})
    assert answer.status_code in (400, 403)


@pytest.mark.parametrize("name", ["localhost:1", "127.0.0.1", "[::1]:80", "LOCALHOST"])
async def test_loopback_names_are_served(http: httpx2.AsyncClient, name: str) -> None:
    assert (await http.get("/v1/models", headers={"host": name})).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:9"])
async def test_a_page_of_another_origin_is_refused(http: httpx2.AsyncClient, origin: str) -> None:
    answer = await http.post(CHAT, json={}, headers={"origin": origin})
    assert answer.status_code == 403
    assert answer.json()["error"]["type"] == "permission_error"


async def test_a_page_of_its_own_origin_may_call(http: httpx2.AsyncClient, url: str) -> None:
    assert (await http.get("/v1/models", headers={"origin": url})).status_code == 200


async def test_a_listed_origin_may_call_and_is_told_so(services: FakeServices, host: Host) -> None:
    host._overrides["gateway.allowed_origins"] = ("https://chat.example.org",)
    service = build(host)
    await service.start()
    async with httpx2.AsyncClient(base_url=f"http://{service.bound}", trust_env=False) as http:
        headers = {"origin": "https://chat.example.org", "access-control-request-method": "POST"}
        preflight = await http.options(CHAT, headers=headers)
        assert preflight.status_code == 200
        answer = await http.get("/v1/models", headers=headers)
        assert answer.headers["access-control-allow-origin"] == "https://chat.example.org"
    await service.stop()


async def test_a_body_that_says_it_is_too_large_is_refused_at_once(gateway: GatewayService) -> None:
    assert await raw(gateway, POST + b"content-length: 1000001\r\n\r\n") == 413


async def test_headers_without_end_are_cut_at_the_limit(gateway: GatewayService) -> None:
    line = b"x-more: " + b"x" * 1000 + b"\r\n"
    assert await raw(gateway, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n" + line * 60 + b"\r\n") == 200
    assert await raw(gateway, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n" + line * 70) == 431


async def test_a_chunked_body_is_cut_at_the_limit(gateway: GatewayService) -> None:
    reader, writer = await connect(gateway)
    writer.write(POST + b"transfer-encoding: chunked\r\n\r\n")
    num_sent = 0
    answer = asyncio.ensure_future(reader.readline())
    while not answer.done() and num_sent < 10_000_000:
        writer.write(b"8000\r\n" + b" " * 0x8000 + b"\r\n")
        await writer.drain()
        num_sent += 0x8000
        await asyncio.sleep(0)
    assert b"413" in await answer
    writer.close()


async def test_a_form_of_too_many_parts_is_refused(http: httpx2.AsyncClient) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nz\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = await http.post(
        "/v1/audio/transcriptions", content=part * 10_000 + b"--x--\r\n", headers=headers
    )
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({}, 415),
        ({"content-type": "application/json", "content-encoding": "gzip"}, 415),
        ({"content-type": "application/json; charset=utf-8"}, 400),
    ],
)
async def test_only_json_is_taken_for_json(
    http: httpx2.AsyncClient, headers: dict[str, str], status: int
) -> None:
    answer = await http.post(CHAT, content=b"{}", headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


async def test_a_client_that_trickles_is_cut(services: FakeServices, host: Host) -> None:
    host._overrides |= {"gateway.header_timeout_s": 0.2, "gateway.body_timeout_s": 0.2}
    service = build(host)
    await service.start()
    reader, writer = await connect(service)
    writer.write(b"GET /healthz HTTP/1.1\r\nhost: lo")
    assert await asyncio.wait_for(reader.read(), 3) == b""
    writer.close()
    assert await raw(service, POST + b"content-length: 9\r\n\r\n{") == 408
    await service.stop()


async def test_a_taken_port_is_a_clear_error(
    gateway: GatewayService, host: Host, services: FakeServices
) -> None:
    assert gateway.bound is not None
    settings = Settings(home=host.settings.home, http=gateway.bound, grpc=Address("127.0.0.1", services.port))
    with pytest.raises(FailedPrecondition, match="cannot listen on"):
        await build(Host(settings)).start()


async def test_a_stream_in_flight_ends_well_when_the_gateway_stops(
    host: Host, services: FakeServices
) -> None:
    service = build(host)
    await service.start()
    assert service.bound is not None
    port = service.bound.port
    body = {"model": "tiny", "messages": [{"role": "user", "content": "one !wait two"}], "stream": True}
    async with (
        httpx2.AsyncClient(base_url=f"http://{service.bound}", trust_env=False, timeout=20) as http,
        http.stream("POST", CHAT, json=body) as answer,
    ):
        lines = answer.aiter_lines()
        assert "role" in await anext(lines)
        stopping = asyncio.create_task(service.stop())
        while _accepts(port):  # noqa: ASYNC110 - the kernel tells nobody that a port has closed.
            await asyncio.sleep(0.02)
        services.inference.go_on.set()
        rest = [line async for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    await asyncio.wait_for(stopping, 3)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def connect(gateway: GatewayService) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    assert gateway.bound is not None
    return await asyncio.open_connection(gateway.bound.host, gateway.bound.port)


async def raw(gateway: GatewayService, data: bytes) -> int:
    """Send bytes as they are. Returns the status of the answer."""
    reader, writer = await connect(gateway)
    writer.write(data)
    line = await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    return int(line.split()[1])
