import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lares.inference.v1 import inference_pb2_grpc as rpc
from lares.registry.v1 import registry_pb2 as rpb
from services.inference.service import build
from services.kit.address import Address
from services.kit.channels import connect
from services.kit.host import Host
from services.kit.server import GrpcServer
from services.kit.settings import Settings
from tests.unit.services.inference.fake_house import FakeHouse
from tests.unit.services.inference.tiny_folder import save_tiny_model


@dataclass
class Running:
    """Inference on a real server, with a house around it."""

    stub: "rpc.InferenceServiceAsyncStub"
    house: FakeHouse
    host: Host


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@contextlib.asynccontextmanager
async def serve(tmp_path: Path, tiny_folder: Path, **settings: Any) -> AsyncIterator[Running]:
    """Inference with the tiny model, on the CPU. settings: of the service, by name."""
    house = FakeHouse(tmp_path)  # type: ignore[abstract]  # It answers only what Inference asks.
    house.add("tiny", tiny_folder, rpb.MODEL_KIND_TEXT_GENERATION, rpb.FORMAT_SAFETENSORS)
    limits = {"max_sequences": 4, "device": "cpu", **settings}
    host = Host(Settings(home=tmp_path), {f"inference.{name}": value for name, value in limits.items()})
    server = GrpcServer(host, [lambda _: house, build], address=Address("127.0.0.1", 0))
    await server.start()
    channel = connect(str(server.address))  # Over the wire, as callers from elsewhere.
    try:
        yield Running(rpc.InferenceServiceStub(channel), house, host)
    finally:
        await channel.close()
        await server.stop()
        await host.close()


@pytest.fixture
async def running(tmp_path: Path, tiny_folder: Path) -> AsyncIterator[Running]:
    async with serve(tmp_path, tiny_folder) as running:
        yield running
