"""The fetch against servers that lie, stall and hang up: RELIABILITY.md, D4 to D8, with tests/torture. All sockets are
real.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.downloader.adapters.http_client import HttpClient, HttpLimits
from services.downloader.adapters.http_fetch import fetch
from services.downloader.core.sources import RemoteFile
from services.kit.errors import (
    DigestMismatch,
    DiskFull,
    LaresError,
    PermissionDenied,
    SourceNotFound,
    SourceUnavailable,
)
from tests.unit.services.downloader.http_server import Request, head, ranged, serving, whole

pytestmark = pytest.mark.torture

BODY = os.urandom(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
LIMITS = HttpLimits(
    stall_timeout_s=0.3, speed_window_s=0.4, min_bytes_per_second=1000, max_attempts=3, first_backoff_s=0.001
)


class Sleeps(list[float]):
    """Takes the place of asyncio.sleep: notes how long, and does not."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def sleeps() -> Sleeps:
    return Sleeps()


@pytest.fixture
async def client(sleeps: Sleeps) -> AsyncIterator[HttpClient]:
    client = HttpClient(limits=LIMITS, sleep=sleeps)
    yield client
    await client.close()


def ignore(num_bytes: int, size_bytes: int | None) -> None:
    """Nobody watches."""


def remote(url: str, *, size: int | None = None, sha256: str | None = SHA256) -> RemoteFile:
    return RemoteFile("model", f"{url}/model", size, sha256)


async def test_a_file_arrives_whole_and_its_progress_is_told(client: HttpClient, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    async with serving(whole(BODY)) as server:
        await fetch(client, remote(server.url), tmp_path / "f", lambda num, size: told.append((num, size)))
    assert (tmp_path / "f").read_bytes() == BODY
    assert told[-1] == (len(BODY), len(BODY))


async def test_a_hundred_dropped_connections_cost_no_byte_twice(client: HttpClient, tmp_path: Path) -> None:
    async with serving(ranged(BODY, cut=len(BODY) // 100)) as server:
        await fetch(client, remote(server.url), tmp_path / "f", ignore)
    assert (tmp_path / "f").read_bytes() == BODY
    assert len(server.requests) >= 100
    assert len({request.first_byte for request in server.requests}) == len(server.requests)


async def test_what_arrived_before_a_kill_is_not_fetched_again(client: HttpClient, tmp_path: Path) -> None:
    async with serving(ranged(BODY, cut=100_000)) as server:
        file = remote(server.url)

        def on_bytes(num_bytes: int, size_bytes: int | None) -> None:
            if num_bytes > 50_000:
                fetching.cancel()

        fetching = asyncio.create_task(fetch(client, file, tmp_path / "f", on_bytes))
        with pytest.raises(asyncio.CancelledError):
            await fetching
        kept = (tmp_path / "f").stat().st_size
        await fetch(client, file, tmp_path / "f", ignore)
    assert kept >= 50_000
    assert server.requests[1].first_byte == kept
    assert (tmp_path / "f").read_bytes() == BODY


async def test_who_watches_may_refuse_more_and_what_arrived_is_kept(
    client: HttpClient, tmp_path: Path
) -> None:
    def on_bytes(num_bytes: int, size_bytes: int | None) -> None:
        if num_bytes > 50_000:
            raise DiskFull("no room for more")

    async with serving(ranged(BODY, cut=100_000)) as server:
        with pytest.raises(DiskFull):
            await fetch(client, remote(server.url), tmp_path / "f", on_bytes)
        await fetch(client, remote(server.url), tmp_path / "f", ignore)
    assert server.requests[1].first_byte > 50_000


async def test_a_file_that_is_all_here_is_not_asked_for(client: HttpClient, tmp_path: Path) -> None:
    async with serving(ranged(BODY)) as server:
        await fetch(client, remote(server.url), tmp_path / "f", ignore)
        await fetch(client, remote(server.url), tmp_path / "f", ignore)
    assert len(server.requests) == 1


async def test_a_server_that_ignores_the_range_is_begun_anew(client: HttpClient, tmp_path: Path) -> None:
    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        body = BODY[:1000] if request.number == 1 else BODY
        writer.write(head("200 OK", content_length=len(BODY), etag='"1"') + body)

    async with serving(answer) as server:
        await fetch(client, remote(server.url), tmp_path / "f", ignore)
    assert server.requests[1].first_byte == 1000
    assert (tmp_path / "f").read_bytes() == BODY


async def test_a_changed_etag_begins_anew(client: HttpClient, tmp_path: Path) -> None:
    old, new = os.urandom(len(BODY)), BODY

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.number == 1:
            await ranged(old, etag='"old"', cut=5000)(request, writer)
        else:
            await ranged(new, etag='"new"')(request, writer)

    async with serving(answer) as server:
        await fetch(client, remote(server.url, sha256=None), tmp_path / "f", ignore)
    assert server.requests[1].headers["if-range"] == '"old"'
    assert (tmp_path / "f").read_bytes() == new


@pytest.mark.parametrize(
    "content_range", ["bytes 0-299999/300000", "bytes 6000-299999/300000", "bytes */300000", "none", ""]
)
async def test_a_wrong_content_range_is_not_believed(
    client: HttpClient, tmp_path: Path, content_range: str
) -> None:
    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.number == 2:
            body = os.urandom(len(BODY) - 5000)
            start = head("206 Partial Content", content_length=len(body), content_range=content_range)
            writer.write(start + body)
        else:
            await ranged(BODY, cut=5000 if request.number == 1 else None)(request, writer)

    async with serving(answer) as server:
        await fetch(client, remote(server.url), tmp_path / "f", ignore)
    assert (tmp_path / "f").read_bytes() == BODY


async def test_two_halves_of_different_files_are_fetched_once_more_in_one_go(
    client: HttpClient, tmp_path: Path
) -> None:
    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        # The same validator for other bytes: a broken mirror.
        body = os.urandom(len(BODY)) if request.number == 1 else BODY
        await ranged(body, cut=5000 if request.number == 1 else None)(request, writer)

    async with serving(answer) as server:
        await fetch(client, remote(server.url), tmp_path / "f", ignore)
    assert [request.first_byte for request in server.requests] == [0, 5000, 0]
    assert (tmp_path / "f").read_bytes() == BODY


async def test_one_flipped_byte_is_found_and_nothing_is_kept(client: HttpClient, tmp_path: Path) -> None:
    for position in (0, 1, len(BODY) // 2, len(BODY) - 1):
        flipped = bytearray(BODY)
        flipped[position] ^= 1
        async with serving(whole(bytes(flipped))) as server:
            with pytest.raises(DigestMismatch, match="sha256"):
                await fetch(client, remote(server.url), tmp_path / "f", ignore)
        assert list(tmp_path.iterdir()) == []


async def test_more_bytes_than_promised_are_never_written(client: HttpClient, tmp_path: Path) -> None:
    most = 0

    def note(num_bytes: int, size_bytes: int | None) -> None:
        nonlocal most
        most = max(most, num_bytes)

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head("200 OK") + BODY + BODY)  # No length: until the connection ends.

    async with serving(answer) as server:
        with pytest.raises(DigestMismatch, match="more than"):
            await fetch(client, remote(server.url, size=len(BODY)), tmp_path / "f", note)
    assert most <= len(BODY)
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("size", [len(BODY) - 1, len(BODY) + 1, 1])
async def test_a_length_other_than_promised_is_refused_at_once(
    client: HttpClient, tmp_path: Path, size: int
) -> None:
    async with serving(whole(BODY)) as server:
        with pytest.raises(DigestMismatch, match="instead of"):
            await fetch(client, remote(server.url, size=size), tmp_path / "f", ignore)
    assert len(server.requests) == 1


async def test_an_answer_without_a_length_is_fine_if_its_bytes_are(
    client: HttpClient, tmp_path: Path
) -> None:
    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head("200 OK") + BODY)

    async with serving(answer) as server:
        await fetch(client, remote(server.url), tmp_path / "f", ignore)
    assert (tmp_path / "f").read_bytes() == BODY


async def test_a_server_that_always_ends_early_is_given_up(client: HttpClient, tmp_path: Path) -> None:
    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head("200 OK", content_length=len(BODY)))

    async with serving(answer) as server:
        with pytest.raises(SourceUnavailable):
            await fetch(client, remote(server.url), tmp_path / "f", ignore)
    assert len(server.requests) == LIMITS.max_attempts


async def test_a_compressed_answer_is_refused(client: HttpClient, tmp_path: Path) -> None:
    async with serving(whole(BODY, content_encoding="gzip")) as server:
        with pytest.raises(SourceUnavailable, match="compressed"):
            await fetch(client, remote(server.url), tmp_path / "f", ignore)
    assert server.requests[0].headers["accept-encoding"] == "identity"


async def test_a_stall_is_noticed_and_what_came_before_is_kept(client: HttpClient, tmp_path: Path) -> None:
    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.number == 1:
            writer.write(head("200 OK", content_length=len(BODY), etag='"1"') + BODY[:7000])
            await writer.drain()
            await asyncio.Event().wait()  # Whoever does not notice waits for ever too.
        await ranged(BODY)(request, writer)

    async with serving(answer) as server:
        await fetch(client, remote(server.url), tmp_path / "f", ignore)
    assert server.requests[1].first_byte == 7000


async def test_headers_that_never_come_are_noticed(client: HttpClient, tmp_path: Path) -> None:
    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        while True:  # One byte after another: no read ever times out.
            writer.write(b"H")
            await writer.drain()
            await asyncio.sleep(0.05)

    async with serving(answer) as server:
        with pytest.raises(SourceUnavailable):
            await fetch(client, remote(server.url), tmp_path / "f", ignore)
    assert len(server.requests) == LIMITS.max_attempts


async def test_a_trickle_is_aborted(client: HttpClient, tmp_path: Path) -> None:
    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.number > 1:
            return await ranged(BODY)(request, writer)
        writer.write(head("200 OK", content_length=len(BODY), etag='"1"'))
        for byte in BODY:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.02)

    async with serving(answer) as server:
        await fetch(client, remote(server.url), tmp_path / "f", ignore)
    assert 5 < server.requests[1].first_byte < 100


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("404 Not Found", SourceNotFound),
        ("410 Gone", SourceNotFound),
        ("401 Unauthorized", PermissionDenied),
        ("403 Forbidden", PermissionDenied),
        ("400 Bad Request", SourceUnavailable),
    ],
)
async def test_an_answer_that_will_not_change_is_not_asked_for_again(
    client: HttpClient, tmp_path: Path, status: str, error: type[LaresError]
) -> None:
    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(status, content_length=0))

    async with serving(answer) as server:
        with pytest.raises(error):
            await fetch(client, remote(server.url), tmp_path / "f", ignore)
    assert len(server.requests) == 1


async def test_credentials_stay_with_their_host(tmp_path: Path) -> None:
    async with serving(whole(BODY)) as other:

        async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
            writer.write(head("302 Found", content_length=0, location=f"{other.url}/elsewhere"))

        async with serving(answer) as server:
            client = HttpClient(limits=LIMITS, credentials={server.url: "Bearer secret"})
            await fetch(client, remote(server.url), tmp_path / "f", ignore)
            await client.close()
    assert server.requests[0].headers["authorization"] == "Bearer secret"
    assert "authorization" not in other.requests[0].headers


async def test_redirects_without_end_are_followed_five_times(client: HttpClient, tmp_path: Path) -> None:
    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head("302 Found", content_length=0, location=f"/{request.number}"))

    async with serving(answer) as server:
        with pytest.raises(SourceUnavailable, match="redirects more than 5 times"):
            await fetch(client, remote(server.url), tmp_path / "f", ignore)
    assert len(server.requests) == 6


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://[::1", ""])
async def test_a_redirect_to_what_is_no_web_address_is_refused(
    client: HttpClient, tmp_path: Path, location: str
) -> None:
    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head("302 Found", content_length=0, location=location))

    async with serving(answer) as server:
        with pytest.raises(SourceUnavailable):
            await fetch(client, remote(server.url), tmp_path / "f", ignore)


async def test_a_secret_in_an_address_reaches_no_error(client: HttpClient, tmp_path: Path) -> None:
    file = RemoteFile("model", "http://user:hunter2@127.0.0.1:1/model?token=hunter2", None, SHA256)
    with pytest.raises(SourceUnavailable) as caught:
        await fetch(client, file, tmp_path / "f", ignore)
    assert "hunter2" not in str(caught.value)


async def test_metadata_is_read_up_to_its_cap_only(client: HttpClient) -> None:
    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head("200 OK"))
        for _ in range(64):
            writer.write(bytes(1024 * 1024))
            await writer.drain()

    async with serving(answer) as server:
        with pytest.raises(SourceUnavailable, match="too much for metadata"):
            await client.get_document(server.url)


async def test_a_file_that_cannot_fit_is_refused_before_it_is_fetched(
    client: HttpClient, tmp_path: Path
) -> None:
    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head("200 OK", content_length=10**17))

    async with serving(answer) as server:
        with pytest.raises(DiskFull, match="more bytes are needed"):
            await fetch(client, remote(server.url), tmp_path / "f", ignore)
