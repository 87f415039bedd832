"""The downloader as the gateway sees it: blobs in memory, over a real gRPC server."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

from lares.downloader.v1 import downloader_pb2 as downloader
from lares.downloader.v1 import downloader_pb2_grpc as downloader_rpc
from lares.registry.v1 import registry_pb2 as registry
from services.kit.errors import BlobNotFound, OffsetPastEnd

Context = Any


class FakeDownloader(downloader_rpc.DownloaderServiceServicer):
    """Blobs in memory, in chunks of `chunk_bytes`. num_open: reads under way; with `stalls` they never end."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.requests: list[downloader.ReadBlobRequest] = []
        self.chunk_bytes = 3
        self.num_open = 0
        self.idle = asyncio.Event()
        self.stalls = False

    def put(self, path: str, content: bytes) -> registry.File:
        """Store a blob, and return it as a file of a version."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.blobs[digest] = content
        return registry.File(path=path, size_bytes=len(content), digest=digest)

    async def ReadBlob(
        self, request: downloader.ReadBlobRequest, context_: Context
    ) -> AsyncIterator[downloader.ReadBlobResponse]:
        self.requests.append(request)
        if request.digest not in self.blobs:
            raise BlobNotFound.named(request.digest)
        content = self.blobs[request.digest]
        if request.offset_bytes > len(content):
            raise OffsetPastEnd.at("offset_bytes", "lies past the end")
        wanted = content[request.offset_bytes :][: request.max_bytes or None]
        self.num_open += 1
        self.idle.clear()
        try:
            for start in range(0, len(wanted), self.chunk_bytes):
                yield downloader.ReadBlobResponse(chunk=wanted[start : start + self.chunk_bytes])
                if self.stalls:
                    await asyncio.Event().wait()
        finally:
            self.num_open -= 1
            self.idle.set()
