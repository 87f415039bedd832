"""Requests sent ahead on one connection, to servers that keep it, end it, or mix up what they answer."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.downloader.adapters.http_client import HttpClient, HttpLimits
from services.downloader.adapters.http_small import fetch_small
from services.downloader.core.sources import RemoteFile

NUM_FILES = 100
BODIES = {f"/{number}": os.urandom(500 + number) for number in range(NUM_FILES)}

Answer = Callable[[str, int], bytes]
"""(path, how many this connection has answered before) -> all that is sent for it; empty: the connection ends."""


class Keeping:
    """A server that keeps its connections."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.num_connections = 0
        self.most_waiting = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        num_answered = 0
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                # What lies in the buffer was sent without waiting for an answer.
                self.most_waiting = max(self.most_waiting, bytes(reader._buffer).count(b"\r\n\r\n"))  # type: ignore[attr-defined]  # No other way to see it.
                answer = self.answer(head.split(" ")[1], num_answered)
                if not answer:
                    break
                writer.write(answer)
                num_answered += 1
                if b"connection: close" in answer:
                    break
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def honest(path: str, num_answered: int = 0) -> bytes:
    body = BODIES[path]
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@asynccontextmanager
async def fetched(answer: Answer, folder: Path) -> AsyncIterator[tuple[set[str], Keeping]]:
    """(paths of what came, the server)."""
    keeping = Keeping(answer)
    server = await asyncio.start_server(keeping.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    client = HttpClient(limits=HttpLimits(stall_timeout_s=10))
    files = {
        folder / path[1:]: RemoteFile(path, f"{url}{path}", len(body), hashlib.sha256(body).hexdigest())
        for path, body in BODIES.items()
    }
    try:
        came = await fetch_small(client, files, lambda target: None)
        assert all(target.read_bytes() == BODIES[f"/{target.name}"] for target in came)
        assert {target.name for target in folder.iterdir()} == {target.name for target in came}
        yield {f"/{target.name}" for target in came}, keeping
    finally:
        await client.close()
        server.close()


async def test_requests_are_sent_ahead_and_each_answer_is_taken_for_its_own(tmp_path: Path) -> None:
    async with fetched(honest, tmp_path) as (came, server):
        assert came == BODIES.keys()
        assert server.most_waiting > 1
        assert server.num_connections <= 8


async def test_a_server_that_ends_a_connection_after_some_answers_is_asked_again(tmp_path: Path) -> None:
    def some(path: str, num_answered: int) -> bytes:
        answer = honest(path)
        return (
            answer.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1) if num_answered == 6 else answer
        )

    async with fetched(some, tmp_path) as (came, server):
        assert came == BODIES.keys()
        assert server.num_connections >= NUM_FILES // 7


async def test_what_was_asked_of_a_connection_that_just_ends_is_left(tmp_path: Path) -> None:
    async with fetched(lambda path, number: b"" if number == 3 else honest(path), tmp_path) as (came, _):
        assert 0 < len(came) < NUM_FILES


async def test_answers_that_are_mixed_up_are_not_taken(tmp_path: Path) -> None:
    held: list[str] = []

    def swapped(path: str, number: int) -> bytes:
        """Each pair the other way round, with the lengths that were wanted."""
        held.append(path)
        other = f"/{int(path[1:]) ^ 1}"
        body = BODIES[other][: len(BODIES[path])].ljust(len(BODIES[path]), b"x")
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    async with fetched(swapped, tmp_path) as (came, _):
        assert came == set()
    assert held


async def test_redirects_are_followed_on_the_same_connection(tmp_path: Path) -> None:
    def elsewhere(path: str, number: int) -> bytes:
        if path.startswith("/real"):
            return honest(path.removeprefix("/real"))
        return b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /real%s\r\nContent-Length: 4\r\n\r\nmove" % (
            path.encode()
        )

    async with fetched(elsewhere, tmp_path) as (came, server):
        assert came == BODIES.keys()
        assert server.num_connections <= 8


async def test_a_redirect_in_a_circle_ends(tmp_path: Path) -> None:
    async with fetched(
        lambda path, number: (
            b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % path.encode()
        ),
        tmp_path,
    ) as (came, _):
        assert came == set()


async def test_a_server_that_has_had_enough_is_left_alone(tmp_path: Path) -> None:
    asked: list[str] = []

    def tired(path: str, number: int) -> bytes:
        asked.append(path)
        if len(asked) <= 20:
            return honest(path)
        return b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 60\r\nContent-Length: 0\r\n\r\n"

    async with fetched(tired, tmp_path) as (came, _):
        assert len(came) == 20
    # What was sent ahead when the first refusal came, and no more.
    assert len(asked) < 60


BROKEN = {
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 507\r\nContent-Length: 5\r\n\r\n",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 507\r\n\r\n5\r\nabcde\r\n",
    "a line without end": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
    "headers without end": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 10_000,
    "an old version": b"HTTP/1.0 200 OK\r\nContent-Length: 507\r\n\r\n" + BODIES["/7"],
    "a long page of excuses": b"HTTP/1.1 500 No\r\nContent-Length: 999999\r\n\r\n" + bytes(999_999),
    "a length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: +507\r\n\r\n" + BODIES["/7"],
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN.keys())
async def test_an_answer_that_is_not_plain_ends_its_connection(tmp_path: Path, answer: bytes) -> None:
    async with fetched(lambda path, number: answer if path == "/7" else honest(path), tmp_path) as (came, _):
        assert "/7" not in came
