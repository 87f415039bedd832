"""The store of bytes, through the Downloader: leases on folders, and blobs that go in."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import grpc

from lares.downloader.v1 import downloader_pb2 as pb
from lares.downloader.v1 import downloader_pb2_grpc as rpc
from lares.registry.v1 import registry_pb2
from services.kit.channels import translate_errors
from services.kit.errors import Unavailable
from services.kit.leases import Leases

_CHUNK_BYTES: Final = 1024 * 1024


class DownloaderStore:
    """Over the Downloader's stub."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = rpc.DownloaderServiceStub(channel)
        self._leases = Leases(channel, "inference")

    def lease(self, version: str, artifact_id: str = "") -> contextlib.AbstractAsyncContextManager[Path]:
        """A folder with a version's files, or an artifact's, that stays while the block runs."""
        return self._leases.hold(version, artifact_id)

    async def write(self, path: str, file: Path) -> registry_pb2.File:
        """Put a file into the store. path: what it is called in its version. Raises DiskFull, Unavailable."""
        size_bytes = (await asyncio.to_thread(file.stat)).st_size
        with translate_errors():
            written = await self._stub.WriteBlob(_parts(file, size_bytes))
        if written.size_bytes != size_bytes:
            raise Unavailable(f"{path} changed while it was stored; try again")
        return registry_pb2.File(path=path, size_bytes=written.size_bytes, digest=written.digest)


async def _parts(file: Path, size_bytes: int) -> AsyncIterator[pb.WriteBlobRequest]:
    yield pb.WriteBlobRequest(header=pb.BlobHeader(size_bytes=size_bytes))
    # Not in a thread, which would leave it open for a reader that is cancelled meanwhile.
    with file.open("rb") as opened:
        while chunk := await asyncio.to_thread(opened.read, _CHUNK_BYTES):
            yield pb.WriteBlobRequest(chunk=chunk)
