"""The store's housekeeping over a real port, with a real Registry beside it: rows D3 and D11, and the quota."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from lares.downloader.v1 import downloader_pb2 as pb
from lares.downloader.v1 import downloader_pb2_grpc as rpc
from lares.registry.v1 import registry_pb2
from lares.registry.v1 import registry_pb2_grpc as registry_rpc
from services.downloader.service import build
from services.kit.address import Address
from services.kit.channels import translate_errors
from services.kit.errors import (
    CorruptBlob,
    FailedPrecondition,
    InvalidArgument,
    ModelNotAvailable,
    ModelNotFound,
    ServiceDraining,
    StoreFull,
)
from services.kit.host import Host
from services.kit.server import GrpcServer
from services.kit.settings import Settings
from services.registry.service import build as build_registry
from tests.unit.services.downloader.wheels import gguf_bytes

pytestmark = pytest.mark.torture

MODEL = gguf_bytes() + os.urandom(200_000)
LIMIT_BYTES = 600_000


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Host, GrpcServer]]:
    monkeypatch.setenv("LARES_DOWNLOADER_MAX_STORE_BYTES", str(LIMIT_BYTES))
    monkeypatch.setenv("LARES_DOWNLOADER_MIN_FREE_BYTES", "0")
    host = Host(Settings(home=tmp_path / "home", grpc=Address("127.0.0.1", 0)))
    server = GrpcServer(host, [build_registry, build])
    await server.start()
    yield host, server
    await server.stop(grace_s=1)


@pytest.fixture
async def downloader(server: tuple[Host, GrpcServer]) -> "rpc.DownloaderServiceAsyncStub":
    return rpc.DownloaderServiceStub(server[0].channel("downloader"))


@pytest.fixture
async def registry(server: tuple[Host, GrpcServer]) -> "registry_rpc.RegistryServiceAsyncStub":
    return registry_rpc.RegistryServiceStub(server[0].channel("registry"))


async def pulled(
    downloader: "rpc.DownloaderServiceAsyncStub", tmp_path: Path, content: bytes = MODEL
) -> pb.Download:
    """A model `m` from the one file of that name; other content becomes another version of it."""
    (tmp_path / "m.gguf").write_bytes(content)
    request = pb.CreateDownloadRequest(source=f"file:{tmp_path / 'm.gguf'}")
    download = (await downloader.CreateDownload(request)).download
    async for message in downloader.WatchDownload(pb.WatchDownloadRequest(name=download.name)):
        download = message.download
    return download


async def validated(
    downloader: "rpc.DownloaderServiceAsyncStub", *names: str, repair: bool = False
) -> list[pb.ValidateModelsResponse]:
    request = pb.ValidateModelsRequest(names=names, repair=repair)
    return [message async for message in downloader.ValidateModels(request)]


def blob_of(tmp_path: Path) -> Path:
    (blob,) = [path for path in (tmp_path / "home" / "store" / "blobs").rglob("*") if path.is_file()]
    return blob


async def test_a_zeroed_blob_is_refused_found_and_repaired(
    downloader: "rpc.DownloaderServiceAsyncStub",
    registry: "registry_rpc.RegistryServiceAsyncStub",
    tmp_path: Path,
) -> None:
    done = await pulled(downloader, tmp_path)
    lease = pb.CreateLeaseRequest(version=done.version)
    blob = blob_of(tmp_path)
    blob.chmod(0o644)
    blob.write_bytes(bytes(len(MODEL)))
    with pytest.raises(CorruptBlob), translate_errors():
        await downloader.CreateLease(lease)
    *_, version, summary = await validated(downloader, done.model)
    assert version.version.verdict == pb.VERSION_VERDICT_QUARANTINED
    assert (summary.summary.num_damaged, summary.summary.num_quarantined) == (1, 1)
    with pytest.raises(ModelNotAvailable, match=r"m\.gguf is damaged"), translate_errors():
        await downloader.CreateLease(lease)
    model = (await registry.GetModel(registry_pb2.GetModelRequest(name=done.model))).model
    assert model.state == registry_pb2.MODEL_STATE_QUARANTINED
    aside = tmp_path / "home" / "store" / "quarantine" / blob.name
    assert aside.read_bytes() == bytes(len(MODEL))
    *_, version, summary = await validated(downloader, repair=True)
    assert version.version.verdict == pb.VERSION_VERDICT_REPAIRED, version
    assert summary.summary.num_repaired == 1
    assert blob.read_bytes() == MODEL
    await downloader.CreateLease(lease)


@pytest.mark.parametrize("position", [0, 1, len(MODEL) // 2, len(MODEL) - 1])
async def test_one_flipped_byte_is_quarantined_and_never_listed_as_good(
    downloader: "rpc.DownloaderServiceAsyncStub",
    registry: "registry_rpc.RegistryServiceAsyncStub",
    tmp_path: Path,
    position: int,
) -> None:
    done = await pulled(downloader, tmp_path)
    blob = blob_of(tmp_path)
    found = blob.stat()
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.seek(position)
        file.write(bytes([MODEL[position] ^ 1]))
    # As a failing disk does it: nothing but the bytes tells.
    os.utime(blob, ns=(found.st_atime_ns, found.st_mtime_ns))
    for _ in range(2):
        file_event = next(
            message.file
            for message in await validated(downloader)
            if message.WhichOneof("event") == "file" and message.file.version
        )
        assert file_event.verdict in (pb.FILE_VERDICT_DAMAGED, pb.FILE_VERDICT_MISSING)
        version = (await registry.GetVersion(registry_pb2.GetVersionRequest(name=done.version))).version
        assert version.state == registry_pb2.VERSION_STATE_QUARANTINED


async def test_a_validation_that_is_left_ends_and_a_second_one_is_refused_before(
    downloader: "rpc.DownloaderServiceAsyncStub", tmp_path: Path
) -> None:
    await pulled(downloader, tmp_path, MODEL + bytes(200_000))
    first = downloader.ValidateModels(pb.ValidateModelsRequest(max_bytes_per_second=1))
    begun = await anext(aiter(first))
    assert begun.progress.total_bytes == len(MODEL) + 200_000
    with pytest.raises(FailedPrecondition, match="under way"), translate_errors():
        await validated(downloader)
    first.cancel()
    while True:
        try:
            with translate_errors():
                *_, summary = await validated(downloader)
        except FailedPrecondition:
            continue
        break
    assert summary.summary.num_good == 1


async def test_garbage_is_told_with_its_reason_before_it_goes(
    downloader: "rpc.DownloaderServiceAsyncStub", tmp_path: Path
) -> None:
    left_over = tmp_path / "home" / "store" / "ingest" / "left-over"
    left_over.mkdir()
    (left_over / "0.part").write_bytes(b"12345")
    told = await downloader.CollectGarbage(pb.CollectGarbageRequest(dry_run=True))
    (item,) = told.items
    assert (item.name, item.reason, item.size_bytes) == ("left-over", pb.GARBAGE_REASON_ORPHANED_INGEST, 5)
    assert (told.num_partials, told.freed_bytes) == (1, 5)
    assert left_over.exists()
    assert (await downloader.CollectGarbage(pb.CollectGarbageRequest())).freed_bytes == 5
    assert not left_over.exists()


async def test_old_versions_go_and_the_current_one_stays(
    downloader: "rpc.DownloaderServiceAsyncStub", tmp_path: Path
) -> None:
    old, new = await pulled(downloader, tmp_path), await pulled(downloader, tmp_path, MODEL + b"2")
    assert old.model == new.model
    request = pb.CleanUpVersionsRequest(models=[old.model], dry_run=True)
    with pytest.raises(InvalidArgument, match="num_keep"), translate_errors():
        await downloader.CleanUpVersions(request)
    request.num_keep = 1
    told = await downloader.CleanUpVersions(request)
    assert [version.name for version in told.versions] == [old.version]
    assert told.freed_bytes == len(MODEL)
    request.dry_run = False
    assert (await downloader.CleanUpVersions(request)) == told
    usage = await downloader.GetStoreUsage(pb.GetStoreUsageRequest())
    assert (usage.referenced.count, usage.referenced.size_bytes) == (1, len(MODEL) + 1)
    request.models[0] = "models/none"
    with pytest.raises(ModelNotFound), translate_errors():
        await downloader.CleanUpVersions(request)


async def test_a_version_that_is_loaded_stays(
    downloader: "rpc.DownloaderServiceAsyncStub", tmp_path: Path
) -> None:
    old = await pulled(downloader, tmp_path)
    await downloader.CreateLease(pb.CreateLeaseRequest(version=old.version))
    new = await pulled(downloader, tmp_path, MODEL + b"2")
    told = await downloader.CleanUpVersions(pb.CleanUpVersionsRequest(num_keep=0))
    assert not told.versions
    assert {kept.name: kept.reason for kept in told.kept} == {
        old.version: pb.KEEP_REASON_LEASED,
        new.version: pb.KEEP_REASON_CURRENT,
    }


async def test_what_does_not_fit_the_quota_is_refused_with_the_numbers(
    downloader: "rpc.DownloaderServiceAsyncStub", tmp_path: Path
) -> None:
    refused = await pulled(downloader, tmp_path, MODEL + bytes(LIMIT_BYTES))
    assert refused.failure.reason == "STORE_FULL"
    assert f"of the {LIMIT_BYTES}" in refused.failure.message
    header = pb.BlobHeader(size_bytes=LIMIT_BYTES + 1)

    async def parts() -> AsyncIterator[pb.WriteBlobRequest]:
        yield pb.WriteBlobRequest(header=header)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await downloader.WriteBlob(parts())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(StoreFull), translate_errors():
        raise caught.value
    usage = await downloader.GetStoreUsage(pb.GetStoreUsageRequest(num_models=1))
    assert (usage.used_bytes, usage.max_store_bytes, usage.min_free_bytes) == (0, LIMIT_BYTES, 0)
    assert 0 < usage.free_bytes <= usage.disk_bytes
    with pytest.raises(InvalidArgument, match="num_models"), translate_errors():
        await downloader.GetStoreUsage(pb.GetStoreUsageRequest(num_models=1001))


async def test_a_validation_is_told_when_the_service_stops(
    downloader: "rpc.DownloaderServiceAsyncStub", server: tuple[Host, GrpcServer], tmp_path: Path
) -> None:
    await pulled(downloader, tmp_path)
    call = downloader.ValidateModels(pb.ValidateModelsRequest(max_bytes_per_second=1))
    await anext(aiter(call))
    await server[1].stop(grace_s=5)
    with pytest.raises(ServiceDraining), translate_errors():
        _ = [message async for message in call]
