"""The downloader against pip's own index, with real weights."""

from collections.abc import AsyncIterator
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


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    host = Host(Settings(home=tmp_path, grpc=Address("127.0.0.1", 0)))
    server = GrpcServer(host, [build_registry, build_downloader])
    await server.start()
    yield host
    await server.stop(grace_s=1)


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
