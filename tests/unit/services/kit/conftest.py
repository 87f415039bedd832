"""Fixtures for the tests that need a served echo."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from services.kit.address import Address
from services.kit.channels import connect
from services.kit.host import Host
from services.kit.server import GrpcServer
from services.kit.settings import Settings
from tests.unit.services.kit.echo_service import Echo, EchoClient


@dataclass
class Served:
    """A server with an echo in it, not started yet, and a client of it."""

    host: Host
    echo: Echo
    server: GrpcServer
    channel: grpc.aio.Channel
    client: EchoClient


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(Settings(home=tmp_path, grpc=Address("127.0.0.1", 0)))


@pytest.fixture(params=["wire", "local"])
async def idle(host: Host, request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    """Over gRPC's own transport, and without it: the same is to hold."""
    echoes: list[Echo] = []

    def build(host: Host) -> Echo:
        echoes.append(Echo(host))
        return echoes[0]

    server = GrpcServer(host, [build])
    channel = connect(str(server.address), local=host.local if request.param == "local" else None)
    yield Served(host, echoes[0], server, channel, EchoClient(channel))
    await channel.close()
    await server.stop(grace_s=0)


@pytest.fixture
async def served(idle: Served) -> Served:
    await idle.server.start()
    return idle
