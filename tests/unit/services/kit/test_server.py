import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.kit.address import Address
from services.kit.channels import translate_errors
from services.kit.errors import FailedPrecondition, NotFound, ServiceDraining, ServiceStarting
from services.kit.host import Host
from services.kit.server import GrpcServer
from services.kit.settings import Settings
from tests.unit.services.kit.conftest import Served
from tests.unit.services.kit.echo_service import NAME, Echo, EchoClient

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def health_stub(served: Served) -> Any:
    return health_pb2_grpc.HealthStub(served.channel)


async def health(served: Served, name: str = "") -> Any:
    return (await health_stub(served).Check(health_pb2.HealthCheckRequest(service=name))).status


async def test_a_started_server_serves_and_is_healthy(served: Served):
    assert served.server.address.port != 0
    assert await served.client.unary(b"a") == b"a"
    assert await health(served) == SERVING
    assert await health(served, NAME) == SERVING
    with pytest.raises(NotFound), translate_errors():
        await health(served, "no.such.Service")


async def test_until_a_service_has_started_calls_are_turned_away_and_health_says_so(idle: Served):
    idle.echo.may_start.clear()
    starting = asyncio.create_task(idle.server.start())
    await idle.echo.starting.wait()
    assert await health(idle) == NOT_SERVING
    assert await health(idle, NAME) == NOT_SERVING
    with pytest.raises(ServiceStarting) as caught, translate_errors():
        await idle.client.unary(b"a")
    assert caught.value.retry_after_s == 1.0
    idle.echo.may_start.set()
    await starting
    assert await idle.client.unary(b"a") == b"a"


async def test_a_watcher_of_health_sees_it_change_and_does_not_hold_up_the_end(idle: Served):
    idle.echo.may_start.clear()
    starting = asyncio.create_task(idle.server.start())
    await idle.echo.starting.wait()
    watch = health_stub(idle).Watch(health_pb2.HealthCheckRequest(service=NAME))
    assert (await watch.read()).status == NOT_SERVING
    idle.echo.may_start.set()
    await starting
    assert (await watch.read()).status == SERVING
    async with asyncio.timeout(10):
        await idle.server.stop(grace_s=60)
    assert (await watch.read()).status == NOT_SERVING
    assert await watch.read() is grpc.aio.EOF


async def test_reflection_lists_what_was_registered(served: Served):
    channel: Any = served.channel
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    names = {service.name for service in (await call.read()).list_services_response.service}
    call.cancel()
    assert names == {NAME, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def test_stopping_lets_running_calls_end_and_turns_new_ones_away(served: Served):
    call = served.client.both()
    await call.write(b"a")
    assert await call.read() == b"a"
    stopping = asyncio.create_task(served.server.stop(grace_s=60))
    await served.host.draining.wait()
    with pytest.raises(ServiceDraining), translate_errors():
        await served.client.unary(b"late")
    assert await health(served) == NOT_SERVING
    await call.write(b"b")
    assert await call.read() == b"b"
    assert served.echo.calls == ["start"]
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    await stopping
    assert served.echo.calls == ["start", "stop"]


async def test_a_stream_that_waits_for_news_ends_when_the_server_drains(served: Served):
    call = served.client.server(b"0 watch")
    assert await call.read() == b"first"
    async with asyncio.timeout(10):
        await served.server.stop(grace_s=60)
    with pytest.raises(ServiceDraining), translate_errors():
        await call.read()
    assert served.echo.cleaned_up.is_set()


async def test_calls_that_outlast_the_grace_are_cut_off_and_clean_up(served: Served):
    call = served.client.server(b"1 wait")
    await call.read()
    await served.server.stop(grace_s=0)
    assert served.echo.cleaned_up.is_set()
    await served.server.stop()
    assert served.echo.calls == ["start", "stop"]


async def test_a_service_that_fails_to_start_ends_those_that_did_and_is_told(host: Host):
    good, bad = Echo(host), Echo(host)
    bad.full_name = "test.v1.Bad"
    bad.register = lambda server: None  # type: ignore[method-assign]
    bad.start_error = FailedPrecondition("the database is from the future")
    server = GrpcServer(host, [lambda _: good, lambda _: bad])
    with pytest.raises(FailedPrecondition, match="from the future"):
        await server.start()
    assert good.calls == ["start", "stop"]
    assert bad.calls == ["start"]
    assert host.draining.is_set()


async def test_a_port_that_is_taken_is_a_clear_error(served: Served, tmp_path: Path):
    host = Host(Settings(home=tmp_path, grpc=served.server.address))
    with pytest.raises(FailedPrecondition, match=f"cannot listen on {served.server.address}.*LARES_GRPC"):
        GrpcServer(host, [])


async def test_services_of_one_process_reach_each_other_through_the_bound_port(served: Served):
    channel = served.host.channel("registry")
    assert served.host.channel("speech") is channel
    assert await EchoClient(channel).unary(b"a") == b"a"


async def test_a_service_elsewhere_has_a_channel_of_its_own(tmp_path: Path):
    settings = Settings(home=tmp_path, grpc=Address("127.0.0.1", 0), registry_endpoint="registry:7211")
    host = Host(settings)
    GrpcServer(host, [])
    assert host.endpoint("registry") == "registry:7211"
    assert host.endpoint("speech").startswith("127.0.0.1:")
    assert host.endpoint("speech") != "127.0.0.1:0"
    assert host.channel("registry") is not host.channel("speech")
    await host.close()
