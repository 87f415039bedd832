"""Many small files in one go: what comes at the first try, and what is left for those who try harder."""

import asyncio
import hashlib
import os
import resource
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.downloader.adapters.http_client import HttpClient, HttpLimits
from services.downloader.adapters.http_small import fetch_small, git_id_of
from services.downloader.core.sources import RemoteFile
from services.kit.errors import DiskFull, StoreFull
from tests.unit.services.downloader.http_server import Answer, Request, Server, head, serving

NUM_FILES = 40
BODIES = {f"/{number}": os.urandom(1000 + number) for number in range(NUM_FILES)}


async def honest(request: Request, writer: asyncio.StreamWriter) -> None:
    body = BODIES[request.path]
    writer.write(head("200 OK", content_length=len(body)) + body)


@pytest.fixture
async def client() -> AsyncIterator[HttpClient]:
    client = HttpClient(limits=HttpLimits(stall_timeout_s=0.3))
    yield client
    await client.close()


def remote(server: Server, folder: Path) -> dict[Path, RemoteFile]:
    return {
        folder / path.strip("/"): RemoteFile(
            path, f"{server.url}{path}", len(body), hashlib.sha256(body).hexdigest()
        )
        for path, body in BODIES.items()
    }


def ignore(target: Path) -> None:
    """Nobody watches."""


async def fetched(client: HttpClient, answer: Answer, folder: Path) -> dict[str, str]:
    """Names of what came -> their digests."""
    async with serving(answer) as server:
        came = await fetch_small(client, remote(server, folder), ignore)
    return {f"/{target.name}": sha256 for target, sha256 in came.items()}


def answering(path: str, answer: bytes) -> Answer:
    """One of the files gets that answer, the others their own."""

    async def some(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.path == path:
            writer.write(answer)
        else:
            await honest(request, writer)

    return some


async def test_all_of_them_come_and_each_is_told(client: HttpClient, tmp_path: Path) -> None:
    told: list[Path] = []
    async with serving(honest) as server:
        files = remote(server, tmp_path)
        came = await fetch_small(client, files, told.append)
    assert came == {target: file.sha256 for target, file in files.items()}
    assert {f"/{target.name}": target.read_bytes() for target in told} == BODIES


WRONG = {
    "another byte": head("200 OK", content_length=1007) + bytes(1007),
    "too short": head("200 OK", content_length=1007) + BODIES["/7"][:500],
    "another length": head("200 OK", content_length=1008) + BODIES["/7"] + b"x",
    "no length": head("200 OK") + BODIES["/7"],
    "chunks without an end": head("200 OK", content_length=1007, transfer_encoding="chunked")
    + b"100000\r\n"
    + bytes(0x100000)
    + b"\r\n100000\r\n"
    + bytes(0x100000),
    "a part": head("206 Partial Content", content_length=1007, content_range="bytes 0-1006/1007")
    + BODIES["/7"],
    "compressed": head("200 OK", content_length=1007, content_encoding="gzip") + BODIES["/7"],
    "not found": head("404 Not Found", content_length=0),
    "busy": head("503 Service Unavailable", content_length=0, retry_after=300),
    "nonsense": b"nonsense\r\n\r\n",
    "a redirect to nowhere": head("302 Found", content_length=0, location="ftp://x/y"),
}


@pytest.mark.parametrize("lie", WRONG)
async def test_what_is_not_what_was_promised_is_left_and_not_written(
    client: HttpClient, tmp_path: Path, lie: str
) -> None:
    came = await fetched(client, answering("/7", WRONG[lie]), tmp_path)
    assert "/7" not in came
    assert not (tmp_path / "7").exists()
    assert all(BODIES[path] == (tmp_path / path[1:]).read_bytes() for path in came)


async def test_a_redirect_is_followed(client: HttpClient, tmp_path: Path) -> None:
    async def elsewhere(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.path.startswith("/real"):
            await honest(Request(request.number, request.path.removeprefix("/real"), {}), writer)
        else:
            writer.write(head("307 Temporary Redirect", content_length=0, location=f"/real{request.path}"))

    assert len(await fetched(client, elsewhere, tmp_path)) == NUM_FILES


async def test_a_file_that_git_knows_has_its_git_id_or_is_left(client: HttpClient, tmp_path: Path) -> None:
    async with serving(honest) as server:
        right = RemoteFile("a", f"{server.url}/1", 1001, git_id=git_id_of(BODIES["/1"]))
        wrong = RemoteFile("b", f"{server.url}/2", 1002, git_id=git_id_of(BODIES["/1"]))
        came = await fetch_small(client, {tmp_path / "a": right, tmp_path / "b": wrong}, ignore)
    assert list(came) == [tmp_path / "a"]


async def test_what_is_here_from_before_a_kill_is_read_and_not_fetched(
    client: HttpClient, tmp_path: Path
) -> None:
    (tmp_path / "3").write_bytes(BODIES["/3"])
    (tmp_path / "4").write_bytes(bytes(len(BODIES["/4"])))
    async with serving(honest) as server:
        came = await fetch_small(client, remote(server, tmp_path), ignore)
        asked = {request.path for request in server.requests}
    assert len(came) == NUM_FILES
    assert asked == BODIES.keys() - {"/3"}
    assert (tmp_path / "4").read_bytes() == BODIES["/4"]


async def test_where_each_answer_takes_its_time_several_are_asked_for_at_once(
    client: HttpClient, tmp_path: Path
) -> None:
    waiting: list[Request] = []
    are_many = asyncio.Event()

    async def when_there_are_many(request: Request, writer: asyncio.StreamWriter) -> None:
        waiting.append(request)
        if len(waiting) == 4:
            are_many.set()
        await are_many.wait()
        await honest(request, writer)

    patient = HttpClient(limits=HttpLimits(stall_timeout_s=60))
    assert len(await fetched(patient, when_there_are_many, tmp_path)) == NUM_FILES
    await patient.close()


async def test_a_server_that_stalls_is_given_up(client: HttpClient, tmp_path: Path) -> None:
    is_over = asyncio.Event()

    async def stall(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head("200 OK", content_length=1000 + int(request.path[1:])))
        await is_over.wait()

    assert await fetched(client, stall, tmp_path) == {}
    is_over.set()


async def test_whoever_is_told_may_refuse(client: HttpClient, tmp_path: Path) -> None:
    def refuse(target: Path) -> None:
        raise StoreFull("no more")

    async with serving(honest) as server:
        with pytest.raises(StoreFull):
            await fetch_small(client, remote(server, tmp_path), refuse)


async def test_cancelled_it_keeps_what_has_arrived(client: HttpClient, tmp_path: Path) -> None:
    arrived, is_over = asyncio.Event(), asyncio.Event()

    async def some(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.number > 10:
            await is_over.wait()
        await honest(request, writer)

    async with serving(some) as server:
        fetching = asyncio.ensure_future(
            fetch_small(client, remote(server, tmp_path), lambda target: arrived.set())
        )
        await arrived.wait()
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
    is_over.set()
    whole = [path for path in tmp_path.iterdir() if path.read_bytes() == BODIES[f"/{path.name}"]]
    assert whole


@pytest.mark.skipif(sys.platform == "win32", reason="a file's size is limited with setrlimit")
async def test_a_full_disk_ends_it(client: HttpClient, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        with pytest.raises(DiskFull):
            await fetched(client, honest, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
