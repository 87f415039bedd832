"""Bytes of the store on their way to a client: as fast as it takes them, and no further ahead than a chunk or two."""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.endpoint import Gateway, until_disconnect
from gateway.errors import ClientDisconnected
from gateway.upstream import EventStream
from lares.downloader.v1 import downloader_pb2 as pb
from services.kit.errors import BlobNotFound, CorruptBlob

_PART_BYTES = 256 * 1024
"""What the downloader sends at a time."""


class BlobAnswer(Response):
    """A part of a blob, whose first chunk is here: what cannot be read is refused before the answer begins."""

    def __init__(
        self,
        stream: EventStream[pb.ReadBlobResponse],
        num_bytes: int,
        status_code: int,
        headers: Mapping[str, str],
        *,
        part_timeout_s: float,
    ) -> None:
        """headers: with the length. part_timeout_s: what a client gets to take a chunk in."""
        super().__init__(status_code=status_code, headers=headers, media_type="application/octet-stream")
        self._stream = stream
        self._num_bytes = num_bytes
        self._part_timeout_s = part_timeout_s

    @classmethod
    async def open(
        cls,
        gateway: Gateway,
        receive: Receive,
        wanted: pb.ReadBlobRequest,
        status_code: int,
        headers: Mapping[str, str],
    ) -> "BlobAnswer":
        """Begin to read: `max_bytes` of it, at least one. Raises LaresError, ClientDisconnected."""
        part_timeout_s = gateway.settings.body_timeout_s
        # The slowest client that is still served needs so long.
        timeout_s = part_timeout_s * (2 + wanted.max_bytes / _PART_BYTES)
        call = gateway.upstream.downloader.ReadBlob(wanted, timeout=timeout_s)
        try:
            stream = await until_disconnect(receive, EventStream.open(call))
        except BlobNotFound as error:
            # It is on record, so it is lost, which is no matter of a wrong address.
            raise CorruptBlob(f"{error.message}; pull the model again to repair it") from error
        return cls(stream, wanted.max_bytes, status_code, headers, part_timeout_s=part_timeout_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve. Raises ClientDisconnected, also for a client that takes nothing; CorruptBlob if bytes are missing."""
        try:
            await until_disconnect(receive, self._send_all(send))
        finally:
            self._stream.cancel()

    async def _send_all(self, send: Send) -> None:
        headers = self.raw_headers
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        num_left = await self._send_part(send, self._stream.first.chunk, self._num_bytes)
        async with aclosing(self._stream.rest()) as parts:
            # A client that has all of it hangs up: that must not be taken for a broken download.
            while num_left and (part := await anext(parts, None)) is not None:
                num_left = await self._send_part(send, part.chunk, num_left)
        if num_left:
            raise CorruptBlob(f"the store ended a blob {num_left} bytes before its end")

    async def _send_part(self, send: Send, chunk: bytes, num_left: int) -> int:
        num_left -= len(chunk)
        try:
            async with asyncio.timeout(self._part_timeout_s):
                await send({"type": "http.response.body", "body": chunk, "more_body": num_left > 0})
        except TimeoutError:
            raise ClientDisconnected from None
        return num_left
