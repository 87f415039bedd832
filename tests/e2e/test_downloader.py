"""The downloader against pip's own index, with real weights."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from lares.downloader.v1 import downloader_pb2 as pb
from lares.downloader.v1 import downloader_pb2_grpc as rpc
from services.downloader.service import build as build_downloader
from services.kit.address import Address
from services.kit.host import Host
from services.kit.server import GrpcServer
from services.kit.settings import Settings
from services.registry.service import build as build_registry
from tests.docker_registry import docker_registry, ollama_layer
from tests.unit.services.downloader.http_server import Request, serving, whole
from tests.unit.services.downloader.wheels import gguf_bytes


@asynccontextmanager
async def running(home: Path) -> AsyncIterator[Host]:
    host = Host(Settings(home=home, grpc=Address("127.0.0.1", 0)))
    server = GrpcServer(host, [build_registry, build_downloader])
    await server.start()
    yield host
    await server.stop(grace_s=1)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with running(tmp_path) as host:
        yield host


async def pull(host: Host, source: str) -> list[pb.Download]:
    downloader: rpc.DownloaderServiceAsyncStub = rpc.DownloaderServiceStub(host.channel("downloader"))
    download = (await downloader.CreateDownload(pb.CreateDownloadRequest(source=source))).download
    watching = downloader.WatchDownload(pb.WatchDownloadRequest(name=download.name))
    return [message.download async for message in watching]


async def test_the_starter_comes_from_pips_index_with_its_progress(host: Host) -> None:
    seen = await pull(host, "smollm2-135m-instruct")
    done = seen[-1]
    assert done.state == pb.DOWNLOAD_STATE_SUCCEEDED, done.failure
    assert done.version == "models/smollm2-135m-instruct/versions/0.1.2"
    assert done.completed_bytes == done.total_bytes == 92_871_040
    phases = [download.phase for download in seen]
    assert pb.DOWNLOAD_PHASE_FETCHING in phases
    downloader: rpc.DownloaderServiceAsyncStub = rpc.DownloaderServiceStub(host.channel("downloader"))
    lease = (await downloader.CreateLease(pb.CreateLeaseRequest(version=done.version))).lease
    (gguf,) = Path(lease.path).glob("*.gguf")
    assert gguf.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert gguf.resolve().name.startswith("b179c952")
    again = (await pull(host, "smollm2-135m-instruct"))[-1]
    assert again.state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert not again.files, "nothing was fetched"


async def test_a_model_comes_from_an_ollama_registry_with_what_belongs_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "registry").mkdir()
    layers = {
        "model": gguf_bytes(),
        "template": b"{{ .Prompt }}",
        "params": b'{"stop": ["x"]}',
        "license": b"MIT License",
    }
    with docker_registry(tmp_path / "registry") as registry:
        digest = registry.push(
            "library/tiny", "1b", [(ollama_layer(kind), content) for kind, content in layers.items()]
        )
        monkeypatch.setenv("LARES_DOWNLOADER_OLLAMA_ENDPOINT", registry.url)
        async with running(tmp_path / "home") as host:
            done = (await pull(host, "ollama:tiny:1b"))[-1]
            assert done.state == pb.DOWNLOAD_STATE_SUCCEEDED, done.failure
            assert done.resolved_source == f"ollama:tiny:1b@{digest}"
            assert done.version == f"models/tiny-1b/versions/1b-{digest[7:19]}"
            downloader: rpc.DownloaderServiceAsyncStub = rpc.DownloaderServiceStub(host.channel("downloader"))
            lease = (await downloader.CreateLease(pb.CreateLeaseRequest(version=done.version))).lease
            files = {path.name: path.read_bytes() for path in Path(lease.path).iterdir()}
            names = ("model.gguf", "template", "params.json", "license")
            assert files == dict(zip(names, layers.values(), strict=True))
            again = (await pull(host, "ollama:tiny:1b"))[-1]
            assert again.state == pb.DOWNLOAD_STATE_SUCCEEDED
            assert not again.files, "nothing was fetched"


async def test_a_file_comes_from_an_address_and_again_if_it_has_changed(host: Host) -> None:
    bodies = [gguf_bytes(), gguf_bytes(template="")]

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        await whole(bodies[0])(request, writer)

    async with serving(answer) as server:
        source = f"{server.url}/models/Tiny%20Model.gguf"
        first = (await pull(host, source))[-1]
        assert first.state == pb.DOWNLOAD_STATE_SUCCEEDED, first.failure
        assert first.model == "models/tiny-model"
        bodies.pop(0)
        second = (await pull(host, f"{source}#sha256={hashlib.sha256(bodies[0]).hexdigest()}"))[-1]
        assert second.state == pb.DOWNLOAD_STATE_SUCCEEDED, second.failure
        assert second.model == first.model
        assert second.version != first.version
        wrong = (await pull(host, f"{source}#sha256={'0' * 64}"))[-1]
        assert (wrong.state, wrong.failure.reason) == (pb.DOWNLOAD_STATE_FAILED, "DIGEST_MISMATCH")
