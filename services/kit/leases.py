"""Leases on the files of versions, from the Downloader, renewed for as long as they are held."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import structlog

from lares.downloader.v1 import downloader_pb2 as pb
from lares.downloader.v1 import downloader_pb2_grpc as rpc
from services.kit.channels import translate_errors
from services.kit.durations import duration_to_proto
from services.kit.errors import LaresError, NotFound

_log = structlog.get_logger(__name__)

_MAX_HOLDER_CHARS = 128


class Leases:
    """Over the Downloader's stub."""

    def __init__(self, channel: grpc.aio.Channel, service: str, *, ttl_s: float = 300.0) -> None:
        """service: who holds them, for people. ttl_s: how long a lease outlives this process, should it be killed."""
        self._stub = rpc.DownloaderServiceStub(channel)
        self._holder = f"{service}@{socket.gethostname()}:{os.getpid()}"[:_MAX_HOLDER_CHARS]
        self._ttl_s = ttl_s

    async def lease(self, version: str, artifact_id: str = "") -> "Lease":
        """A folder with a version's files, or an artifact's. Raises VersionNotFound, CorruptBlob, Unavailable."""
        return Lease(self, await self.create(version, artifact_id), self._ttl_s)

    @contextlib.asynccontextmanager
    async def hold(self, version: str, artifact_id: str = "") -> AsyncIterator[Path]:
        """The folder of a lease that lasts as long as the block. Raises as `lease`."""
        lease = await self.lease(version, artifact_id)
        try:
            yield lease.path
        finally:
            await lease.release()

    async def create(self, version: str, artifact_id: str) -> pb.Lease:
        """A new lease."""
        request = pb.CreateLeaseRequest(
            version=version, artifact_id=artifact_id, holder=self._holder, ttl=duration_to_proto(self._ttl_s)
        )
        with translate_errors():
            return (await self._stub.CreateLease(request)).lease

    async def renew(self, name: str) -> None:
        """Raises LeaseNotFound once it has ended."""
        with translate_errors():
            await self._stub.RenewLease(pb.RenewLeaseRequest(name=name, ttl=duration_to_proto(self._ttl_s)))

    async def delete(self, name: str) -> None:
        """Give it back."""
        with translate_errors():
            await self._stub.DeleteLease(pb.DeleteLeaseRequest(name=name))


class Lease:
    """One of them. path: the folder, which stays until `release`."""

    def __init__(self, broker: Leases, lease: pb.Lease, ttl_s: float) -> None:
        self.path = Path(lease.path)
        self._broker = broker
        self._lease = lease
        self._ttl_s = ttl_s
        self._renewal = asyncio.create_task(self._renew())

    async def release(self) -> None:
        """Give the files back. Never raises: what cannot be given back runs out."""
        self._renewal.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._renewal
        try:
            await self._broker.delete(self._lease.name)
        except LaresError as error:
            _log.info("lease is left to run out", lease=self._lease.name, why=str(error))

    async def _renew(self) -> None:
        while True:
            # Two tries may fail before it ends.
            await asyncio.sleep(self._ttl_s / 3)
            try:
                await self._broker.renew(self._lease.name)
            except NotFound:
                await self._replace()
            except LaresError as error:
                _log.warning("lease was not renewed", lease=self._lease.name, why=str(error))

    async def _replace(self) -> None:
        """The model stays in memory whatever happens; a new lease keeps its files for the next load."""
        try:
            self._lease = await self._broker.create(self._lease.version, self._lease.artifact_id)
        except LaresError as error:
            _log.warning("lease was lost", lease=self._lease.name, why=str(error))
