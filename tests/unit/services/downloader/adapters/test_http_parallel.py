"""Several connections for one file, kept connections, proxies, trust, and one rate for all. All sockets are real."""

import asyncio
import contextlib
import hashlib
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from services.downloader.adapters import http_fetch
from services.downloader.adapters.http_client import HttpClient, HttpLimits, Throttle
from services.downloader.adapters.http_fetch import fetch
from services.downloader.core import parts
from services.downloader.core.sources import RemoteFile
from services.kit.errors import SourceUnavailable
from tests.unit.services.downloader.http_server import Answer, Request, head, self_signed, serving, whole

SEGMENT_BYTES = 64 * 1024
BODY = random.Random(1).randbytes(40 * SEGMENT_BYTES + 12345)
SHA256 = hashlib.sha256(BODY).hexdigest()
PIECE = 4 * 1024


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few MB are a large file."""
    monkeypatch.setattr(parts, "SEGMENT_BYTES", SEGMENT_BYTES)
    monkeypatch.setattr(parts, "_MIN_SPLIT_BYTES", 4 * SEGMENT_BYTES)
    monkeypatch.setattr(http_fetch, "SEGMENT_BYTES", SEGMENT_BYTES)
    monkeypatch.setattr(http_fetch, "_BUFFER_BYTES", SEGMENT_BYTES // 4)


@contextlib.asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """A server's port, while the block runs."""
    handlers: set[asyncio.Task[None] | None] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await serve(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await asyncio.gather(*(task for task in handlers if task is not None))


@contextlib.asynccontextmanager
async def client(**limits: float) -> AsyncIterator[HttpClient]:
    quick = {"grow_interval_s": 0.05, "enough_bytes_per_second": 1e12, "first_backoff_s": 0.001}
    made = HttpClient(limits=HttpLimits(**{**quick, **limits}))  # type: ignore[arg-type]  # Of mixed types.
    yield made
    await made.close()


def ignore(num_bytes: int, size_bytes: int | None) -> None:
    """Nobody watches."""


def remote(url: str, *, sha256: str | None = SHA256) -> RemoteFile:
    return RemoteFile("model", f"{url}/model", len(BODY), sha256)


def slow(body: bytes = BODY, *, fails: int = 0) -> Answer:
    """A server that gives each connection a share of its own, and takes ranges. fails: drop the first so many answers
    to ranges in their middle.
    """
    num_failed = 0

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal num_failed
        asked = request.headers.get("range", "bytes=0-").removeprefix("bytes=").split("-")
        first, last = int(asked[0]), int(asked[1] or len(body) - 1)
        size = last + 1 - first
        if "range" in request.headers:
            span = f"bytes {first}-{last}/{len(body)}"
            writer.write(head("206 Partial Content", content_length=size, content_range=span, etag='"1"'))
            if num_failed < fails:
                num_failed += 1
                size //= 2
        else:
            writer.write(head("200 OK", content_length=size, etag='"1"', accept_ranges="bytes"))
        for start in range(first, first + size, PIECE):
            writer.write(body[start : min(start + PIECE, first + size)])
            await writer.drain()
            await asyncio.sleep(0.001)

    return answer


async def test_connections_are_added_while_they_help_and_bring_the_file_whole(tmp_path: Path) -> None:
    async with serving(slow()) as server, client(max_connections=4) as http:
        await fetch(http, remote(server.url), tmp_path / "f", ignore)
    assert (tmp_path / "f").read_bytes() == BODY
    assert 2 <= len(server.requests) <= 12
    assert all(request.headers["range"] for request in server.requests[1:])


async def test_one_connection_is_one_connection(tmp_path: Path) -> None:
    async with serving(slow()) as server, client(max_connections=1) as http:
        await fetch(http, remote(server.url), tmp_path / "f", ignore)
    assert len(server.requests) == 1


async def test_helpers_that_fail_cost_nothing_but_their_help(tmp_path: Path) -> None:
    async with serving(slow(fails=3)) as server, client(max_connections=4) as http:
        await fetch(http, remote(server.url), tmp_path / "f", ignore)
    assert (tmp_path / "f").read_bytes() == BODY


async def test_a_file_with_gaps_is_gone_on_with_where_they_are(tmp_path: Path) -> None:
    async with serving(slow()) as server, client(max_connections=4) as http:

        def on_bytes(num_bytes: int, size_bytes: int | None) -> None:
            if (tmp_path / "f.map").exists() and num_bytes > 3 * SEGMENT_BYTES:
                fetching.cancel()

        fetching = asyncio.create_task(fetch(http, remote(server.url), tmp_path / "f", on_bytes))
        with pytest.raises(asyncio.CancelledError):
            await fetching
        told: list[int] = []
        await fetch(http, remote(server.url), tmp_path / "f", lambda num, size: told.append(num))
    assert told[0] > 2 * SEGMENT_BYTES
    assert (tmp_path / "f").read_bytes() == BODY


async def test_bytes_that_do_not_fit_together_are_fetched_once_more_in_one_go(tmp_path: Path) -> None:
    other = os.urandom(len(BODY))
    honest, lying = slow(), slow(other)

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        # Ranges come from another file that claims to be the same.
        await (lying if "range" in request.headers else honest)(request, writer)

    async with serving(answer) as server, client(max_connections=4) as http:
        await fetch(http, remote(server.url), tmp_path / "f", ignore)
    assert (tmp_path / "f").read_bytes() == BODY
    assert "range" not in server.requests[-1].headers


async def test_a_connection_is_used_for_the_next_request_too(tmp_path: Path) -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc")

    async with listening(serve) as port, client() as http:
        url = f"http://127.0.0.1:{port}"
        for number in range(5):
            await fetch(http, RemoteFile("f", f"{url}/f", 3, None), tmp_path / str(number), ignore)
            assert (await http.get_document(f"{url}/d")).body == b"abc"
    assert connections == 1


async def test_a_kept_connection_that_the_server_closed_is_made_anew(tmp_path: Path) -> None:
    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc")  # And then it hangs up, untold.

    async with serving(answer) as server, client(max_attempts=1) as http:
        for _ in range(3):
            assert (await http.get_document(f"{server.url}/d")).body == b"abc"


async def test_whoever_cancels_does_not_wait_for_a_host_that_says_nothing() -> None:
    with socket.socket() as deaf, contextlib.ExitStack() as others:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(3):  # Its queue is full: one more is not even refused.
            other = others.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(deaf.getsockname())
        http = HttpClient(limits=HttpLimits(stall_timeout_s=600))
        asking = asyncio.create_task(http.get_document(f"http://127.0.0.1:{deaf.getsockname()[1]}/x"))
        done, _ = await asyncio.wait([asking], timeout=0.2)
        assert not done
        asking.cancel()
        await asyncio.wait([asking])
        # The thread has ended too: the process would wait for it at its own end.
        async with asyncio.timeout(20):
            await asyncio.to_thread(http._threads.shutdown, wait=True)


async def test_a_proxy_of_the_environment_is_asked_but_for_what_it_says_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        serving(whole(b"from the proxy")) as proxy,
        serving(whole(b"itself")) as server,
        client() as http,
    ):
        monkeypatch.setenv("http_proxy", proxy.url.replace("://", "://user:secret@"))
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert (await http.get_document("http://model.example/list")).body == b"from the proxy"
        monkeypatch.setenv("no_proxy", "127.0.0.1,other.example")
        assert (await http.get_document(f"{server.url}/list")).body == b"itself"
    assert proxy.requests[0].path == "http://model.example/list"
    assert proxy.requests[0].headers["proxy-authorization"].startswith("Basic ")
    assert "proxy-authorization" not in server.requests[0].headers


async def test_through_a_proxy_tls_is_a_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")

    async with listening(serve) as port, client(max_attempts=1) as http:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        with pytest.raises(SourceUnavailable, match="cannot be reached"):
            await http.get_document("https://model.example/list")
    assert asked[0].startswith(b"CONNECT model.example:443 ")


async def test_who_signs_for_a_server_can_be_named(tmp_path: Path) -> None:
    certificate, tls = self_signed(tmp_path)
    async with serving(whole(BODY), tls) as server, client() as http:
        trusting = HttpClient(limits=HttpLimits(ca_file=str(certificate)))
        await fetch(trusting, remote(server.url), tmp_path / "f", ignore)
        await trusting.close()
        assert (tmp_path / "f").read_bytes() == BODY
        with pytest.raises(SourceUnavailable, match=r"not trusted.*ca_file"):
            await http.get_document(server.url)


def test_a_throttle_lets_all_together_pass_at_its_rate() -> None:
    waits: list[float] = []
    throttle = Throttle(1000, sleep=waits.append)
    for _ in range(5):
        throttle.take(500)
    # None for the first; the others wait for those before them, as nobody really slept.
    assert [round(wait_s, 1) for wait_s in waits] == [0.5, 1.0, 1.5, 2.0]
    Throttle().take(10**12)
    assert Throttle(10**6).max_bytes == 250_000
