"""A real HTTP server on a real socket that says what a test tells it to say, byte by byte."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Request:
    """What was asked. number: from 1, over all connections."""

    number: int
    path: str
    headers: dict[str, str]

    @property
    def first_byte(self) -> int:
        """Of the range that is asked for; 0 without one."""
        return int(self._range[0])

    @property
    def last_byte(self) -> int | None:
        """Of the range that is asked for; None without one, or if it goes to the end."""
        return int(self._range[1]) if self._range[1] else None

    @property
    def _range(self) -> list[str]:
        return self.headers.get("range", "bytes=0-").removeprefix("bytes=").split("-")


Answer = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Server:
    """answer: called for each request; it may also close the writer, or never return."""

    answer: Answer
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    _handlers: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        try:
            # An answer that never returns is ended with the server.
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._answer(reader, writer)
        finally:
            self._handlers.discard(handler)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}
        request = Request(len(self.requests) + 1, first.split(" ")[1], headers)
        self.requests.append(request)
        try:
            await self.answer(request, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        await writer.drain()

    async def stop(self) -> None:
        """End all connections."""
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers)


@asynccontextmanager
async def serving(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """The server, while the block runs."""
    server = Server(answer)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    host, port = listening.sockets[0].getsockname()
    server.url = f"{'http' if tls is None else 'https'}://{host}:{port}"
    try:
        yield server
    finally:
        listening.close()
        await server.stop()


def self_signed(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1, and what a server needs to show it."""
    key, certificate = folder / "key.pem", folder / "cert.pem"
    request = (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(
        ["openssl", *request.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    return certificate, tls


def head(status: str, **headers: object) -> bytes:
    """The beginning of an answer; `content_length=3` becomes `content-length: 3`."""
    lines = [f"{key.replace('_', '-')}: {value}" for key, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", "connection: close", *lines, "", ""]).encode()


def whole(body: bytes, **headers: object) -> Answer:
    """Answer everything with 200 and that body."""

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head("200 OK", content_length=len(body), **headers) + body)

    return answer


def ranged(body: bytes, *, etag: str = '"1"', cut: int | None = None) -> Answer:
    """As an honest server does, with ranges; cut: hang up after that many bytes of each answer."""

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        first, last = request.first_byte, request.last_byte
        end = len(body) if last is None else min(last + 1, len(body))
        if first >= len(body):
            writer.write(head("416 Range Not Satisfiable", content_range=f"bytes */{len(body)}"))
            return
        if "range" in request.headers and request.headers.get("if-range", etag) == etag:
            headers = {"content_range": f"bytes {first}-{end - 1}/{len(body)}"}
            writer.write(head("206 Partial Content", content_length=end - first, etag=etag, **headers))
        else:
            first, end = 0, len(body)
            writer.write(head("200 OK", content_length=end, etag=etag, accept_ranges="bytes"))
        writer.write(memoryview(body)[first:end][:cut])

    return answer
