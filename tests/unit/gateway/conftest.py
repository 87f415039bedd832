from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from gateway.service import GatewayService, build
from services.kit.address import Address
from services.kit.host import Host
from services.kit.settings import Settings
from tests.unit.gateway.fake_services import FakeServices


@pytest.fixture
async def services() -> AsyncIterator[FakeServices]:
    fakes = FakeServices()
    await fakes.start()
    yield fakes
    await fakes.stop()


@pytest.fixture
async def host(services: FakeServices, tmp_path: Path) -> AsyncIterator[Host]:
    settings = Settings(
        home=tmp_path,
        http=Address("127.0.0.1", 0),
        grpc=Address("127.0.0.1", services.port),
        drain_timeout_s=5,
    )
    overrides = {
        "gateway.max_body_bytes": 1_000_000,
        "gateway.max_audio_bytes": 8_000_000,
        # A test changes a model and asks at once.
        "gateway.remember_repos_s": 0.0,
    }
    host = Host(settings, overrides)
    yield host
    await host.close()


@pytest.fixture
async def gateway(host: Host) -> AsyncIterator[GatewayService]:
    service = build(host)
    await service.start()
    yield service
    await service.stop()


@pytest.fixture
def url(gateway: GatewayService) -> str:
    return f"http://{gateway.bound}"


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=url, timeout=20, trust_env=False) as client:
        yield client


@pytest.fixture
async def client(url: str) -> AsyncIterator[AsyncOpenAI]:
    transport = openai.DefaultAsyncHttpxClient(trust_env=False)
    async with AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=transport
    ) as client:
        yield client
