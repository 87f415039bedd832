from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lares.registry.v1 import registry_pb2_grpc as rpc
from services.kit.address import Address
from services.kit.host import Host
from services.kit.server import GrpcServer
from services.kit.settings import Settings
from services.registry.service import build


@pytest.fixture
async def host(tmp_path: Path) -> Host:
    return Host(Settings(home=tmp_path, grpc=Address("127.0.0.1", 0)))


@pytest.fixture
async def server(host: Host) -> AsyncIterator[GrpcServer]:
    """A registry on a port of its own, with an empty database."""
    grpc_server = GrpcServer(host, [build])
    await grpc_server.start()
    yield grpc_server
    await grpc_server.stop(grace_s=1)


@pytest.fixture
async def registry(host: Host, server: GrpcServer) -> "rpc.RegistryServiceAsyncStub":
    """A client of it, over a real channel."""
    return rpc.RegistryServiceStub(host.channel("registry"))
