"""A relay between a source and its server: counts what really goes to the source, and can hold it at a byte."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Final

_CHUNK_BYTES: Final = 64 * 1024
# So that what is counted as sent is not still on its way: the system would take megabytes off our hands.
_UNSENT_BYTES: Final = 256 * 1024
# Each connection gets a share of its own, as over a real line, so that more are faster. All together are no faster
# than a line of a gigabit: of a faster one what fills the system's buffers, unread, would be lost with a kill too.
_PACE_S: Final = 0.003


class Relay:
    """url: to be asked instead of the server's. num_bytes: sent so far, headers too. connected: at the same time, at
    most.
    """

    def __init__(self) -> None:
        self.url = ""
        self.num_bytes = 0
        self.connected = 0
        self.paused = asyncio.Event()
        self._target: tuple[str, int] = ("", 0)
        self._pause_at: int | None = None
        self._go = asyncio.Event()
        self._sending: set[asyncio.StreamWriter] = set()
        self._handlers: set[asyncio.Task[None]] = set()

    def lead_to(self, url: str) -> None:
        """The server that answers."""
        host, _, port = url.removeprefix("http://").partition(":")
        self._target = (host, int(port))

    def pause_after(self, num_bytes: int | None) -> None:
        """Send so many more, then hold everything and set `paused`. None: hold nothing any more."""
        self._go.set()
        self._pause_at = None if num_bytes is None else self.num_bytes + num_bytes
        self.paused, self._go = asyncio.Event(), asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._relay(reader, writer)
        finally:
            self._handlers.discard(handler)
            writer.transport.abort()

    async def stop(self) -> None:
        """End all connections."""
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNSENT_BYTES)
        answers, questions = await asyncio.open_connection(*self._target)
        asking = asyncio.create_task(_pump(reader, questions))
        self._sending.add(writer)
        try:
            await self._send(answers, writer)
            writer.close()
            await writer.wait_closed()
        finally:
            self._sending.discard(writer)
            asking.cancel()
            await asyncio.wait([asking])
            questions.transport.abort()

    async def _send(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await answers.read(_CHUNK_BYTES):
            self.connected = max(self.connected, len(self._sending))
            if self._pause_at is not None and self.num_bytes + len(chunk) > self._pause_at:
                chunk = chunk[: max(0, self._pause_at - self.num_bytes)]
            self.num_bytes += len(chunk)
            writer.write(chunk)
            await writer.drain()
            if self._pause_at is not None and self.num_bytes >= self._pause_at:
                self.paused.set()
                await self._go.wait()
                return  # What was held back was cut: this connection is of no use any more.
            await asyncio.sleep(_PACE_S)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(_CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()


@contextlib.asynccontextmanager
async def relay() -> AsyncIterator[Relay]:
    """It listens, while the block runs."""
    relay = Relay()
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    relay.url = f"http://{host}:{port}"
    try:
        yield relay
    finally:
        server.close()
        await relay.stop()
