"""What a client streams, read by a task of its own, so that a refusal reaches a client that is still sending."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

from services.kit.errors import InvalidArgument

M = TypeVar("M")

# How long a client that is refused may go on sending, and how long a pause says that it has stopped.
_MAX_DRAIN_S: Final = 2.0
_PAUSE_S: Final = 0.02


class RequestStream(Generic[M]):
    """An async context manager and iterator over the messages of one RPC, at most one of them read ahead.

    When the block is left with an error, what the client still sends is read and dropped for a moment: grpc.aio's
    client reports a write that the server cut off as INTERNAL, in place of the status that says what was wrong.
    """

    def __init__(self, requests: AsyncIterator[M]) -> None:
        self._requests = requests
        self._queue: asyncio.Queue[M | Exception | None] = asyncio.Queue(1)
        self._is_over = False

    async def __aenter__(self) -> Self:
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if isinstance(exc, Exception):
                await self._drain()
        finally:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> M:
        item = None if self._is_over else await self._queue.get()
        if isinstance(item, Exception):
            self._is_over = True
            raise item
        if item is None:
            self._is_over = True
            raise StopAsyncIteration
        return item

    async def first(self, field: str) -> M:
        """The message that tells of the others. field: what it is to hold. Raises InvalidArgument if there is none."""
        try:
            return await anext(self)
        except StopAsyncIteration:
            raise InvalidArgument.at(field, "must be sent first; the stream was empty") from None

    async def _read(self) -> None:
        try:
            async for request in self._requests:
                await self._queue.put(request)
            await self._queue.put(None)
        except Exception as error:  # Raised again where the messages are read.
            await self._queue.put(error)

    async def _drain(self) -> None:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_MAX_DRAIN_S):
                while not self._is_over:
                    async with asyncio.timeout(_PAUSE_S):
                        await anext(self)
