"""What the tests that kill have in common: a registry that lives, sources, and what must be true of a home."""

import hashlib
import json
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import grpc

from lares.downloader.v1 import downloader_pb2 as pb
from lares.registry.v1 import registry_pb2
from lares.registry.v1 import registry_pb2_grpc as registry_rpc
from services.downloader.adapters.partial_file import PartialFile
from services.kit.address import Address
from services.kit.channels import connect
from services.kit.host import Host
from services.kit.server import GrpcServer
from services.kit.settings import Settings
from services.registry.service import build as build_registry
from tests.contract.source_rigs import OllamaRig, Shelf, ShelfRig
from tests.docker_registry import docker_registry
from tests.torture.downloader_process import Death, House, Setup
from tests.torture.relay import Relay, relay


@dataclass
class Registry:
    """One that no test kills. address: where it answers."""

    address: str
    stub: "registry_rpc.RegistryServiceAsyncStub"

    async def files(self, model_id: str) -> dict[str, dict[str, bytes]]:
        """Of each version of a model that is listed as available: path -> digest, in bytes."""
        listed: dict[str, dict[str, bytes]] = {}
        request = registry_pb2.ListVersionsRequest(parent=f"models/{model_id}")
        try:
            versions = (await self.stub.ListVersions(request)).versions
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return listed
            raise
        for version in versions:
            if version.state == registry_pb2.VERSION_STATE_AVAILABLE:
                listed[version.name] = {
                    file.path: bytes.fromhex(file.digest.removeprefix("sha256:")) for file in version.files
                }
        return listed


@asynccontextmanager
async def registry(home: Path) -> AsyncIterator[Registry]:
    """A registry over a port, while the block runs."""
    host = Host(Settings(home=home, grpc=Address("127.0.0.1", 0)))
    server = GrpcServer(host, [build_registry])
    await server.start()
    address = str(server.address)
    channel = connect(address)
    try:
        yield Registry(address, registry_rpc.RegistryServiceStub(channel))
    finally:
        await channel.close()
        await server.stop(grace_s=1)


@dataclass
class Place:
    """Where one source pulls one model from, through a relay that counts."""

    rig: ShelfRig | OllamaRig
    line: Relay

    def setup(self, home: Path, registry: Registry, death: Death | None = None) -> Setup:
        """A downloader that pulls from there, and from nowhere else."""
        settings = {
            "downloader.hf_endpoint": self.line.url,
            "downloader.ollama_endpoint": self.line.url,
            "downloader.vosk_endpoint": self.line.url,
            "downloader.min_free_bytes": 0,
        }
        environment = {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": f"{self.line.url}/simple",
            "PIP_EXTRA_INDEX_URL": "",
            "PIP_FIND_LINKS": "",
        }
        return Setup(home, registry.address, settings, environment, death)


@asynccontextmanager
async def place(kind: type[ShelfRig | OllamaRig], folder: Path, weights: bytes) -> AsyncIterator[Place]:
    """Of a source, while the block runs. folder: an empty one."""
    async with relay() as line, AsyncExitStack() as served:
        if issubclass(kind, OllamaRig):
            server = served.enter_context(docker_registry(folder))
            line.lead_to(server.url)
            rig: ShelfRig | OllamaRig = kind(server, weights)
        else:
            shelf = Shelf()
            await shelf.open()
            served.push_async_callback(shelf.stop)
            line.lead_to(shelf.url)
            shelf.url = line.url
            rig = kind(shelf, weights)
        await rig.close()  # The process that pulls has a source of its own.
        yield Place(rig, line)


async def assert_listed_is_whole(registry: Registry, home: Path, model_id: str) -> None:
    """Whatever is listed lies in the store, byte by byte; whatever lies there under a digest has it."""
    for files in (await registry.files(model_id)).values():
        for digest in files.values():
            assert blob(home, digest).exists()
    for file in blobs(home):
        assert sha256(file).hex() == file.name


async def assert_one_whole_version(
    running: House, registry: Registry, home: Path, model_id: str, model: dict[str, bytes]
) -> None:
    """It is there once, it loads, and once garbage is collected nothing else lies about, on disk or in tables."""
    listed = await registry.files(model_id)
    expected = {path: hashlib.sha256(content).digest() for path, content in model.items()}
    assert list(listed.values()) == [expected]
    (version,) = listed
    lease = (await running.downloader.CreateLease(pb.CreateLeaseRequest(version=version))).lease
    shown = {path.relative_to(lease.path).as_posix(): path for path in Path(lease.path).rglob("*")}
    assert {path: sha256(file) for path, file in shown.items() if file.is_file()} == expected
    await running.downloader.DeleteLease(pb.DeleteLeaseRequest(name=lease.name))
    await running.downloader.CollectGarbage(pb.CollectGarbageRequest())
    store = home / "store"
    assert {file.name for file in blobs(home)} == {digest.hex() for digest in expected.values()}
    for folder in ("ingest", "views", "quarantine", "erasing"):
        assert list((store / folder).iterdir()) == []
    await assert_listed_is_whole(registry, home, model_id)
    downloads = (await running.downloader.ListDownloads(pb.ListDownloadsRequest())).downloads
    assert [download.state for download in downloads] == [pb.DOWNLOAD_STATE_SUCCEEDED]
    with closing(sqlite3.connect(f"file:{home / 'downloader.db'}?mode=ro", uri=True)) as database:
        for table, num_rows in (("downloads", 1), ("leases", 0), ("kept_blobs", 0)):
            assert database.execute(f"SELECT count(*) FROM {table}").fetchone() == (num_rows,), table


def arrived_bytes(home: Path) -> int:
    """Of all files on their way: what a process that is started now would not fetch again."""
    num_bytes = 0
    for note in (home / "store" / "ingest").glob("*/*.part.json"):
        partial = PartialFile(note.with_suffix(""), json.loads(note.read_text())["identity"])
        partial.open(None)
        num_bytes += partial.parts.num_bytes
        partial.close()
    return num_bytes


def blobs(home: Path) -> list[Path]:
    """Files of the store, by their digests."""
    return [path for path in (home / "store" / "blobs" / "sha256").glob("*/*") if path.is_file()]


def blob(home: Path, digest: bytes) -> Path:
    """Where that one lies."""
    return home / "store" / "blobs" / "sha256" / digest.hex()[:2] / digest.hex()


def sha256(file: Path) -> bytes:
    """Of its bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()
