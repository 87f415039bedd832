"""What calls within a process have to themselves; the rest holds over the wire too, and is tested with both."""

import asyncio
import gc
from pathlib import Path

import pytest

from services.kit.address import Address
from services.kit.channels import translate_errors
from services.kit.errors import ServiceUnreachable
from services.kit.host import Host
from services.kit.server import GrpcServer
from services.kit.settings import Settings
from tests.unit.services.kit.conftest import Served
from tests.unit.services.kit.echo_service import EchoClient


@pytest.fixture
def client(served: Served) -> EchoClient:
    """As a service calls another one of its process."""
    return EchoClient(served.host.channel("registry"))


async def test_a_host_calls_its_own_services_without_a_socket(served: Served, client: EchoClient) -> None:
    assert await client.unary(b"peer") == b"local"
    elsewhere = Host(Settings(home=Path("/nowhere"), grpc=served.server.address))
    assert (await EchoClient(elsewhere.channel("registry")).unary(b"peer")).startswith(b"ipv4:")
    await elsewhere.close()


async def test_a_call_that_is_dropped_is_cancelled(served: Served, client: EchoClient) -> None:
    call = client.server(b"1 wait")
    assert await call.read() == b"0"
    del call
    gc.collect()
    async with asyncio.timeout(10):
        await served.echo.cleaned_up.wait()


async def test_a_servicer_waits_for_a_reader_that_is_slow(served: Served, client: EchoClient) -> None:
    call = client.server(b"0 flood")
    assert len(await call.read()) == 100_000
    for _ in range(100):
        await asyncio.sleep(0)
    assert served.echo.num_flooded <= 13
    for _ in range(20):
        await call.read()
    assert served.echo.num_flooded > 20
    call.cancel()


async def test_calls_that_outlast_the_grace_are_told_that_the_service_stopped(
    served: Served, client: EchoClient
) -> None:
    call = client.server(b"1 wait")
    await call.read()
    await served.server.stop(grace_s=0)
    assert served.echo.cleaned_up.is_set()
    with pytest.raises(ServiceUnreachable, match="stopped"), translate_errors():
        await call.read()


async def test_a_task_that_stops_waiting_cancels_its_call(served: Served, client: EchoClient) -> None:
    call = client.server(b"1 wait")
    await call.read()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await call.read()
    async with asyncio.timeout(10):
        await served.echo.cleaned_up.wait()
    assert call.cancelled()


async def test_a_service_that_is_not_here_is_called_over_the_network(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, grpc=Address("127.0.0.1", 0), registry_endpoint="127.0.0.1:1")
    host = Host(settings)
    GrpcServer(host, [])
    with pytest.raises(ServiceUnreachable), translate_errors():
        await EchoClient(host.channel("registry")).unary(b"a", timeout=5)
    await host.close()
