"""Leases over a real channel to a servicer of the test."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from lares.downloader.v1 import downloader_pb2 as downloads
from lares.downloader.v1 import downloader_pb2_grpc as downloads_rpc
from services.kit.channels import connect
from services.kit.leases import Leases


@pytest.fixture
def downloader() -> "FakeDownloader":
    return FakeDownloader()  # type: ignore[abstract]


@dataclass
class FakeDownloader(downloads_rpc.DownloaderServiceServicer):
    """Counts leases; `renewed` is set by each renewal, which finds nothing while `forgets` is."""

    held: list[str] = field(default_factory=list)
    num_created: int = 0
    artifact_id: str = "q4"
    forgets: bool = False
    renewed: asyncio.Event = field(default_factory=asyncio.Event)
    created: asyncio.Event = field(default_factory=asyncio.Event)

    async def CreateLease(
        self, request: downloads.CreateLeaseRequest, context: Any
    ) -> downloads.CreateLeaseResponse:
        self.num_created += 1
        assert request.artifact_id == self.artifact_id
        name = f"leases/{self.num_created}"
        self.held.append(name)
        self.created.set()
        lease = downloads.Lease(
            name=name,
            version=request.version,
            path=f"/store/{request.version}",
            artifact_id=request.artifact_id,
        )
        return downloads.CreateLeaseResponse(lease=lease)

    async def RenewLease(
        self, request: downloads.RenewLeaseRequest, context: Any
    ) -> downloads.RenewLeaseResponse:
        self.renewed.set()
        if self.forgets:
            self.held.remove(request.name)
            self.forgets = False
            await context.abort(grpc.StatusCode.NOT_FOUND, "gone")
        return downloads.RenewLeaseResponse()

    async def DeleteLease(
        self, request: downloads.DeleteLeaseRequest, context: Any
    ) -> downloads.DeleteLeaseResponse:
        self.held.remove(request.name)
        return downloads.DeleteLeaseResponse()


@asynccontextmanager
async def serving(downloader: FakeDownloader) -> AsyncIterator[tuple[grpc.aio.Channel, grpc.aio.Server]]:
    server = grpc.aio.server()
    downloads_rpc.add_DownloaderServiceServicer_to_server(downloader, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with connect(f"127.0.0.1:{port}") as channel:
            yield channel, server
    finally:
        await server.stop(None)


async def test_lease_is_renewed_while_it_is_held_and_given_back(downloader: FakeDownloader) -> None:
    async with serving(downloader) as (channel, _):
        lease = await Leases(channel, "test", ttl_s=0.03).lease("models/m/versions/1", "q4")
        assert str(lease.path) == "/store/models/m/versions/1"
        await asyncio.wait_for(downloader.renewed.wait(), 5)
        assert downloader.held == ["leases/1"]
        await lease.release()
        assert downloader.held == []


async def test_lease_that_was_lost_is_taken_again(downloader: FakeDownloader) -> None:
    async with serving(downloader) as (channel, _):
        lease = await Leases(channel, "test", ttl_s=0.03).lease("models/m/versions/1", "q4")
        downloader.created.clear()
        downloader.forgets = True
        await asyncio.wait_for(downloader.created.wait(), 5)
        assert downloader.held == ["leases/2"]
        await lease.release()


async def test_lease_can_be_released_when_the_downloader_is_gone(downloader: FakeDownloader) -> None:
    async with serving(downloader) as (channel, server):
        lease = await Leases(channel, "test").lease("models/m/versions/1", "q4")
        await server.stop(None)
        await lease.release()
