"""RELIABILITY.md, D4, D5, D7 and D8: servers that lie, hang up, ask for patience or lead elsewhere. D6 is in
test_http_fetch.py, as are the single lies.
"""

import asyncio
import email.utils
import hashlib
import json
import math
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from services.downloader.adapters import http_fetch, partial_file
from services.downloader.adapters.hf_source import HfSource
from services.downloader.adapters.http_client import HttpClient, HttpLimits
from services.downloader.adapters.http_fetch import fetch
from services.downloader.core import parts
from services.downloader.core.catalog import Layout
from services.downloader.core.sources import PullRequest, RemoteFile
from services.downloader.core.urls import follow
from services.downloader.settings import DownloaderSettings
from services.kit.errors import LaresError, SourceUnavailable
from services.kit.names import ModelRef
from tests.contract.source_rigs import COMMIT
from tests.unit.services.downloader.http_server import (
    Answer,
    Request,
    head,
    self_signed,
    serving,
    whole,
)

pytestmark = pytest.mark.torture

SEGMENT_BYTES = 64 * 1024
BODY = os.urandom(40 * SEGMENT_BYTES + 12_345)
SHA256 = hashlib.sha256(BODY).hexdigest()
LIMITS = HttpLimits(
    stall_timeout_s=0.5, max_attempts=3, first_backoff_s=0.001, grow_interval_s=0.01, max_connections=4
)
PIECE = 64 * 1024


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few MB are a large file."""
    monkeypatch.setattr(parts, "SEGMENT_BYTES", SEGMENT_BYTES)
    monkeypatch.setattr(parts, "_MIN_SPLIT_BYTES", 4 * SEGMENT_BYTES)
    monkeypatch.setattr(http_fetch, "SEGMENT_BYTES", SEGMENT_BYTES)
    monkeypatch.setattr(http_fetch, "_BUFFER_BYTES", SEGMENT_BYTES // 4)


@pytest.fixture
def farthest(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How far files were really written."""
    ends = [0]
    write_at = partial_file._write_at

    def noting(descriptor: int, chunk: bytes | memoryview, offset: int) -> int:
        ends.append(offset + len(chunk))
        return write_at(descriptor, chunk, offset)

    monkeypatch.setattr(partial_file, "_write_at", noting)
    return ends


def ignore(num_bytes: int, size_bytes: int | None) -> None:
    """Nobody watches."""


def told(request: Request, body: bytes, **changes: object) -> bytes:
    """What an honest server would say first; some of it changed, or left out where that is None."""
    first, last = request.first_byte, request.last_byte
    end = len(body) if last is None else last + 1
    says: dict[str, object] = {"content_length": end - first, "etag": '"1"', "accept_ranges": "bytes"}
    status = "200 OK"
    if "range" in request.headers:
        status, says["content_range"] = "206 Partial Content", f"bytes {first}-{end - 1}/{len(body)}"
    status = str(changes.pop("status", status))
    says |= changes
    return head(status, **{name: value for name, value in says.items() if value is not None})


def asked(request: Request, body: bytes) -> bytes:
    return body[request.first_byte : len(body) if request.last_byte is None else request.last_byte + 1]


async def endless(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(bytes(PIECE))
        await writer.drain()


def lie(**changes: object) -> Answer:
    """In what is said, not in what is sent."""

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(told(request, BODY, **changes) + asked(request, BODY))

    return answer


async def short(request: Request, writer: asyncio.StreamWriter) -> None:
    body = asked(request, BODY)
    writer.write(told(request, BODY) + body[: len(body) // 2])


async def short_and_says_so(request: Request, writer: asyncio.StreamWriter) -> None:
    body = asked(request, BODY)
    writer.write(told(request, BODY, content_length=len(body) // 2) + body)


async def longer(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(told(request, BODY) + asked(request, BODY) + bytes(100_000))


async def longer_and_says_so(request: Request, writer: asyncio.StreamWriter) -> None:
    body = asked(request, BODY) + bytes(100_000)
    writer.write(told(request, BODY, content_length=len(body)) + body)


async def without_an_end(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(told(request, BODY, content_length=None) + asked(request, BODY))
    await endless(writer)


async def the_whole_for_a_part(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(head("200 OK", content_length=len(BODY), etag='"1"') + BODY)


async def another_file(request: Request, writer: asyncio.StreamWriter) -> None:
    other = BODY[::-1]
    writer.write(told(request, other, etag='"2"') + asked(request, other))


async def another_file_of_the_same_name(request: Request, writer: asyncio.StreamWriter) -> None:
    other = BODY[::-1]
    writer.write(told(request, other) + asked(request, other))


LIES: dict[str, Answer] = {
    "short": short,
    "short, and says so": short_and_says_so,
    "long": longer,
    "long, and says so": longer_and_says_so,
    "no length": lie(content_length=None),
    "a length that is none": lie(content_length="many"),
    "no length, no end": without_an_end,
    "the whole for a part": the_whole_for_a_part,
    "a part of nobody knows what": lie(content_range="bytes */9"),
    "a part from the beginning": lie(content_range=f"bytes 0-{len(BODY) - 1}/{len(BODY)}"),
    "a part of a larger file": lie(content_range=f"bytes 65536-{len(BODY) - 1}/{10 * len(BODY)}"),
    "a part without a place": lie(content_range=None),
    "another file": another_file,
    "another file of the same name": another_file_of_the_same_name,
    "gzip": lie(content_encoding="gzip"),
    "no such range": lie(status="416 Range Not Satisfiable"),
}


def only_to(is_lied_to: Callable[[Request], bool], lying: Answer) -> Answer:
    """Honest to the others, and so slow that several connections help."""

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        if is_lied_to(request):
            await lying(request, writer)
            return
        body = asked(request, BODY)
        writer.write(told(request, BODY))
        for start in range(0, len(body), PIECE):
            writer.write(body[start : start + PIECE])
            await writer.drain()
            await asyncio.sleep(0.001)

    return answer


@pytest.mark.parametrize("sha256", [SHA256, None], ids=["with a digest", "without one"])
@pytest.mark.parametrize("whom", ["to everybody", "to who asks for parts", "at first"])
@pytest.mark.parametrize("name", LIES)
async def test_a_lie_is_found_out_or_does_no_harm(
    tmp_path: Path, farthest: list[int], name: str, whom: str, sha256: str | None
) -> None:
    is_lied_to: dict[str, Callable[[Request], bool]] = {
        "to everybody": lambda request: True,
        "to who asks for parts": lambda request: "range" in request.headers,
        "at first": lambda request: request.number == 1,
    }
    client = HttpClient(limits=LIMITS)
    async with serving(only_to(is_lied_to[whom], LIES[name])) as server:
        file = RemoteFile("m", f"{server.url}/m", len(BODY), sha256)
        with suppress(LaresError):
            found = await fetch(client, file, tmp_path / "f", ignore)
            taken = (tmp_path / "f").read_bytes()
            assert found == hashlib.sha256(taken).hexdigest()
            # Nothing but a digest can tell apart what calls itself the same.
            assert taken == BODY or (sha256 is None and (taken == BODY[::-1] or "same name" in name))
    await client.close()
    assert max(farthest) <= len(BODY)


async def test_a_body_without_an_end_of_which_nothing_is_known_ends_where_there_is_no_room(
    tmp_path: Path, farthest: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_fetch, "_MAX_UNKNOWN_BYTES", len(BODY))
    client = HttpClient(limits=LIMITS)
    async with serving(without_an_end) as server:
        with pytest.raises(LaresError, match="has no end"):
            await fetch(client, RemoteFile("m", f"{server.url}/m"), tmp_path / "f", ignore)
    await client.close()
    assert max(farthest) <= len(BODY) + SEGMENT_BYTES
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("max_connections", [1, 4])
async def test_a_hundred_dropped_connections_cost_hardly_a_byte_twice(
    tmp_path: Path, max_connections: int
) -> None:
    sent_bytes = num_dropped = 0
    choose = random.Random(5)

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal sent_bytes, num_dropped
        body = asked(request, BODY)
        cut = choose.randrange(1, len(BODY) // 75)
        num_dropped += cut < len(body)
        writer.write(told(request, BODY) + body[:cut])
        await writer.drain()
        sent_bytes += len(body[:cut])

    limits = replace(LIMITS, max_connections=max_connections)
    client = HttpClient(limits=limits)
    async with serving(answer) as server:
        await fetch(client, RemoteFile("m", f"{server.url}/m", len(BODY), SHA256), tmp_path / "f", ignore)
    await client.close()
    assert (tmp_path / "f").read_bytes() == BODY
    assert num_dropped >= 100
    assert sent_bytes <= 1.05 * len(BODY)


def test_a_stall_is_noticed_in_half_a_minute_and_a_trickle_in_a_minute_unless_somebody_says_otherwise() -> (
    None
):
    defaults = DownloaderSettings.model_fields
    limits = HttpLimits()
    assert limits.stall_timeout_s == defaults["stall_timeout_s"].default == 30
    assert limits.speed_window_s == defaults["speed_window_s"].default == 60
    assert limits.min_bytes_per_second == defaults["min_bytes_per_second"].default > 1


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
@pytest.mark.parametrize("wait_s", [0, 1, 7, 299, 300, 301, 100_000])
@pytest.mark.parametrize("as_date", [False, True], ids=["in seconds", "as a date"])
@pytest.mark.parametrize("is_file", [True, False], ids=["a file", "a document"])
async def test_who_is_told_to_come_later_comes_no_earlier_and_hardly_later(
    tmp_path: Path, status: str, wait_s: int, as_date: bool, is_file: bool
) -> None:
    slept: list[tuple[float, float]] = []
    due = 0.0

    async def sleep(seconds: float) -> None:
        slept.append((time.time(), seconds))

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal due
        if request.number > 1:
            await whole(BODY)(request, writer)
            return
        due = math.floor(time.time()) + wait_s if as_date else time.time() + wait_s
        later = email.utils.formatdate(due, usegmt=True) if as_date else wait_s
        writer.write(head(status, content_length=0, retry_after=later))

    client = HttpClient(limits=LIMITS, sleep=sleep)
    async with serving(answer) as server:
        if is_file:
            await fetch(client, RemoteFile("m", f"{server.url}/m", len(BODY), SHA256), tmp_path / "f", ignore)
        else:
            assert (await client.get_document(f"{server.url}/m")).body == BODY
    await client.close()
    [(at, seconds)] = slept
    if wait_s > LIMITS.max_retry_after_s:
        assert seconds == LIMITS.max_retry_after_s == 300
    else:
        assert at + seconds >= due
        assert seconds <= wait_s


@pytest.mark.parametrize(
    "location", ["http://other.example/m", "http://secure.example/m", "//u:p@x/..", "ftp://x/m"]
)
def test_no_redirect_leads_from_https_to_http(location: str) -> None:
    if location.startswith("//"):
        assert follow("https://secure.example/a", location) == "https://x/.."
        return
    with pytest.raises(SourceUnavailable):
        follow("https://secure.example/a", location)


async def test_a_file_is_not_followed_from_https_to_http(tmp_path: Path) -> None:
    certificate, tls = self_signed(tmp_path)
    async with serving(whole(BODY)) as plain, serving(redirect(lambda: f"{plain.url}/m"), tls) as secure:
        limits = replace(LIMITS, ca_file=str(certificate))
        client = HttpClient(limits=limits, credentials={secure.url: "Bearer secret"})
        with pytest.raises(SourceUnavailable, match="from https to http"):
            await fetch(client, RemoteFile("m", f"{secure.url}/m", len(BODY), SHA256), tmp_path / "f", ignore)
        await client.close()
    assert secure.requests[0].headers["authorization"] == "Bearer secret"
    assert plain.requests == []


def redirect(target: Callable[[], str]) -> Answer:
    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head("302 Found", content_length=0, location=target()))

    return answer


async def resolve(source: HfSource) -> None:
    try:
        await source.resolve(PullRequest((ModelRef.parse(f"hf:org/repo@{COMMIT}"),), Layout()))
    finally:
        await source.close()


async def test_what_the_hub_says_of_a_model_is_not_followed_from_https_to_http(tmp_path: Path) -> None:
    certificate, tls = self_signed(tmp_path)
    async with serving(whole(b"{}")) as plain, serving(redirect(lambda: f"{plain.url}/m"), tls) as secure:
        source = HfSource(secure.url, "secret", replace(LIMITS, ca_file=str(certificate)))
        with pytest.raises(SourceUnavailable, match="from https to http"):
            await resolve(source)
    assert secure.requests[0].headers["authorization"] == "Bearer secret"
    assert plain.requests == []


async def test_the_hubs_token_does_not_follow_a_redirect_of_what_it_says_of_a_model() -> None:
    info = json.dumps(
        {"id": "org/repo", "sha": COMMIT, "tags": [], "siblings": [{"rfilename": "m.gguf", "size": 1}]}
    )
    async with (
        serving(whole(info.encode(), content_type="application/json")) as other,
        serving(redirect(lambda: f"{other.url}/m")) as hub,
    ):
        await resolve(HfSource(hub.url, "secret", LIMITS))
    assert hub.requests[0].headers["authorization"] == "Bearer secret"
    assert "authorization" not in other.requests[0].headers


async def test_what_the_hub_says_of_a_model_is_followed_five_times() -> None:
    async with serving(redirect(lambda: f"/{len(hub.requests)}")) as hub:
        with pytest.raises(SourceUnavailable):
            await resolve(HfSource(hub.url, "secret", LIMITS))
    assert len(hub.requests) == 6
