"""An import that is killed at each of its steps: what is listed is whole, and what it came from is never touched."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from lares.downloader.v1 import downloader_pb2 as pb
from lares.downloader.v1 import downloader_pb2_grpc as rpc
from lares.registry.v1 import registry_pb2
from lares.registry.v1 import registry_pb2_grpc as registry_rpc
from services.kit.channels import connect
from tests.contract.local_caches import as_it_is, fill_ollama, num_names, sha256
from tests.unit.services.downloader.wheels import gguf_bytes

MODEL = gguf_bytes() + os.urandom(9_000_000)
LAYERS = {"model": MODEL, "template": b"{{ .Prompt }}"}


class House:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.downloader = rpc.DownloaderServiceStub(channel)
        self.registry = registry_rpc.RegistryServiceStub(channel)

    async def finish(self, models: Path) -> pb.Download:
        """Begin the import, or go on with the one that is there."""
        listed = (await self.downloader.ListDownloads(pb.ListDownloadsRequest())).downloads
        if listed:
            download = listed[0]
        else:
            options = pb.PullOptions(local_folder=str(models))
            request = pb.CreateDownloadRequest(source="ollama:tiny", options=options)
            download = (await self.downloader.CreateDownload(request)).download
        async for message in self.downloader.WatchDownload(pb.WatchDownloadRequest(name=download.name)):
            download = message.download
        return download

    async def is_listed(self) -> bool:
        models = (await self.registry.ListModels(registry_pb2.ListModelsRequest())).models
        return any(model.state == registry_pb2.MODEL_STATE_AVAILABLE for model in models)


@asynccontextmanager
async def house_at(home: Path, *arguments: str) -> AsyncIterator[House]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.contract.downloader_process",
        str(home),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
    )
    assert process.stdout is not None
    # Its log comes before its address.
    while not (line := (await process.stdout.readline()).decode()).startswith("127.0.0.1:"):
        pass
    channel = connect(line.strip())
    try:
        yield House(channel)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        await channel.close()


async def assert_whole(house: House, home: Path, models: Path) -> None:
    (name,) = [
        model.default_version
        for model in (await house.registry.ListModels(registry_pb2.ListModelsRequest())).models
    ]
    lease = (await house.downloader.CreateLease(pb.CreateLeaseRequest(version=name))).lease
    assert (Path(lease.path) / "model.gguf").read_bytes() == MODEL
    await house.downloader.CollectGarbage(pb.CollectGarbageRequest())
    assert list((home / "store" / "ingest").iterdir()) == []
    theirs = models / "blobs" / f"sha256-{sha256(MODEL)}"
    (ours,) = (home / "store" / "blobs").rglob(sha256(MODEL))
    assert ours.stat().st_nlink == theirs.stat().st_nlink == num_names(home)


async def test_a_killed_import_goes_on_and_the_folder_is_as_it_was(tmp_path: Path) -> None:
    kills = 0
    for number in range(1, 30):
        home, models = tmp_path / str(number) / "home", tmp_path / str(number) / "models"
        fill_ollama(models, "tiny", "latest", LAYERS)
        before = {path: as_it_is(path) for path in models.rglob("*") if path.is_file()}
        async with house_at(home, str(number)) as house:
            try:
                await house.finish(models)
                survived = True
            except grpc.aio.AioRpcError:
                survived = False
        assert {path: as_it_is(path) for path in before} == before
        if survived:
            break
        kills += 1
        async with house_at(home) as house:
            if await house.is_listed():
                await assert_whole(house, home, models)
            assert (await house.finish(models)).state == pb.DOWNLOAD_STATE_SUCCEEDED
            await assert_whole(house, home, models)
        assert {path: as_it_is(path) for path in before} == before
    assert kills >= 4, "sync, rename, sync of the folder, record: each is a point to die at"
