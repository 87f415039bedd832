"""Leases on the files of versions, from the Downloader, renewed for as long as they are held."""

import asyncio
import contextlib
import os
import socket
from pathlib import Path

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration

from lares.downloader.v1 import downloader_pb2 as pb
from lares.downloader.v1 import downloader_pb2_grpc as rpc
from services.kit.channels import translate_errors
from services.kit.errors import LaresError, NotFound

_log = structlog.get_logger(__name__)

_MAX_HOLDER_CHARS = 128


class DownloaderLeases:
    """A LeaseBroker over the Downloader's stub."""

    def __init__(self, channel: grpc.aio.Channel, *, ttl_s: float = 300.0) -> None:
        """ttl_s: how long a lease outlives this process, should it be killed."""
        self._stub = rpc.DownloaderServiceStub(channel)
        self._ttl_s = ttl_s

    async def lease(self, version: str) -> "DownloaderLease":
        """Raises VersionNotFound, CorruptBlob, Unavailable."""
        return DownloaderLease(self, await self.create(version), self._ttl_s)

    async def create(self, version: str) -> pb.Lease:
        """A new lease."""
        request = pb.CreateLeaseRequest(version=version, holder=_holder(), ttl=_duration(self._ttl_s))
        with translate_errors():
            return (await self._stub.CreateLease(request)).lease

    async def renew(self, name: str) -> None:
        """Raises LeaseNotFound once it has ended."""
        with translate_errors():
            await self._stub.RenewLease(pb.RenewLeaseRequest(name=name, ttl=_duration(self._ttl_s)))

    async def delete(self, name: str) -> None:
        """Give it back."""
        with translate_errors():
            await self._stub.DeleteLease(pb.DeleteLeaseRequest(name=name))


class DownloaderLease:
    """One of them."""

    def __init__(self, broker: DownloaderLeases, lease: pb.Lease, ttl_s: float) -> None:
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
            self._lease = await self._broker.create(self._lease.version)
        except LaresError as error:
            _log.warning("lease was lost", lease=self._lease.name, why=str(error))


def _holder() -> str:
    return f"speech@{socket.gethostname()}:{os.getpid()}"[:_MAX_HOLDER_CHARS]


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMicroseconds(round(seconds * 1e6))
    return duration
