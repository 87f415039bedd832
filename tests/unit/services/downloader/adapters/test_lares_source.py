"""`lares:` against a gateway's answers, honest ones and others."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.downloader.adapters.http_client import HttpLimits
from services.downloader.adapters.lares_source import LaresSource
from services.downloader.core.catalog import Layout
from services.downloader.core.download import PullOptions
from services.downloader.core.models import About, Capability, ModelKind
from services.downloader.core.sources import PullRequest, Resolved
from services.kit.errors import (
    DigestMismatch,
    LaresError,
    SourceNotFound,
    SourceUnavailable,
    UnsupportedFormat,
)
from services.kit.names import ModelRef
from tests.unit.services.downloader.http_server import Request, Server, head, serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LIMITS = HttpLimits(max_attempts=2, first_backoff_s=0.001, stall_timeout_s=5)
FILES = {"config.json": b"{}", "deep/m \u00f6.gguf": b"weights"}


class House:
    """Another Lares, with one model."""

    def __init__(self) -> None:
        self.files = dict(FILES)
        self.info: dict[str, Any] = {
            "sha": COMMIT,
            "cardData": {"license": "apache-2.0"},
            "siblings": [
                {
                    "rfilename": path,
                    "size": len(content),
                    "lfs": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)},
                }
                for path, content in FILES.items()
            ],
            "lares": {
                "version": "0.1.2",
                "revision": "0.1.2",
                "provider": "pypi",
                "kind": "text_generation",
                "capabilities": ["chat", "telepathy"],
                "description": "A small model.",
                "languages": ["en"],
            },
        }
        self.server: Server

    async def answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        status, body = "200 OK", b""
        prefix = f"/hf/tiny/resolve/{COMMIT}/"
        paths = {"config.json": "config.json", "deep/m%20%C3%B6.gguf": "deep/m \u00f6.gguf"}
        if request.path.startswith("/hf/api/models/tiny/revision/"):
            body = json.dumps(self.info).encode()
        elif request.path.startswith(prefix):
            body = self.files[paths[request.path.removeprefix(prefix)]]
        else:
            status = "404 Not Found"
        writer.write(head(status, content_length=len(body)) + body)

    def ref(self, rest: str = "/tiny") -> str:
        return f"lares:{self.server.url.removeprefix('http://')}{rest}"


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = House()
    async with serving(house.answer) as server:
        house.server = server
        yield house


@pytest.fixture
async def source() -> AsyncIterator[LaresSource]:
    source = LaresSource(LIMITS)
    yield source
    await source.close()


async def resolve(source: LaresSource, ref: str) -> Resolved:
    return await source.resolve(PullRequest((ModelRef.parse(ref),), Layout()))


async def test_a_model_keeps_its_version_and_what_is_said_of_it(source: LaresSource, house: House) -> None:
    resolved = await resolve(source, house.ref())
    assert resolved.source == house.ref("/tiny:0.1.2")
    assert (resolved.version_id, resolved.revision) == ("0.1.2", "0.1.2")
    assert resolved.about == About(
        provider="pypi",
        kind=ModelKind.TEXT_GENERATION,
        capabilities=(Capability.CHAT,),
        description="A small model.",
        license="apache-2.0",
        languages=("en",),
    )
    assert house.server.requests[0].path == "/hf/api/models/tiny/revision/main?blobs=true"
    await resolve(source, resolved.source)
    assert house.server.requests[1].path == "/hf/api/models/tiny/revision/0.1.2?blobs=true"


async def test_patterns_choose_among_its_files(source: LaresSource, house: House) -> None:
    request = PullRequest((ModelRef.parse(house.ref()),), Layout(), PullOptions(("deep/",)))
    assert [file.path for file in (await source.resolve(request)).files] == ["deep/m \u00f6.gguf"]
    request = PullRequest(request.refs, Layout(), PullOptions(ignore_patterns=("*.gguf",)))
    assert [file.path for file in (await source.resolve(request)).files] == ["config.json"]


async def test_files_come_from_the_commit_and_are_checked(
    source: LaresSource, house: House, tmp_path: Path
) -> None:
    for number, file in enumerate((await resolve(source, house.ref())).files):
        await source.fetch(file, tmp_path / str(number), lambda num, size: None)
        assert (tmp_path / str(number)).read_bytes() == FILES[file.path]
    house.files["config.json"] = b"[]"
    file = (await resolve(source, house.ref())).files[0]
    with pytest.raises(DigestMismatch):
        await source.fetch(file, tmp_path / "flipped", lambda num, size: None)
    assert not (tmp_path / "flipped").exists()


async def test_what_the_other_house_lacks_is_not_found(source: LaresSource, house: House) -> None:
    with pytest.raises(SourceNotFound):
        await resolve(source, house.ref("/nope"))


@pytest.mark.parametrize(
    ("where", "value", "error"),
    [
        (("siblings", 0, "rfilename"), "../../etc/passwd", UnsupportedFormat),
        (("siblings", 0, "rfilename"), "/etc/passwd", UnsupportedFormat),
        (("siblings", 0, "rfilename"), "a\0b", UnsupportedFormat),
        (("siblings", 0, "rfilename"), "deep/m \u00f6.gguf", UnsupportedFormat),
        (("siblings", 0, "size"), -1, SourceUnavailable),
        (("siblings", 0, "size"), 2**60, SourceUnavailable),
        (("siblings", 0, "size"), None, SourceUnavailable),
        (("siblings", 0, "lfs"), None, SourceUnavailable),
        (("siblings", 0, "lfs", "sha256"), "../x", SourceUnavailable),
        (("siblings", 0, "lfs", "sha256"), "0" * 64 + "\n", SourceUnavailable),
        (("sha",), "main/../..", SourceUnavailable),
        (("lares",), None, SourceUnavailable),
        (("lares", "version"), "../../x", SourceUnavailable),
        (("lares", "version"), "", SourceUnavailable),
        (("lares", "revision"), "x" * 300, SourceUnavailable),
        (("lares", "description"), "x" * 5000, SourceUnavailable),
        (("lares", "languages"), ["en us"], SourceUnavailable),
    ],
)
async def test_a_house_that_lies_about_its_model_is_refused(
    source: LaresSource, house: House, where: tuple[Any, ...], value: object, error: type[LaresError]
) -> None:
    *path, last = where
    inside: Any = house.info
    for part in path:
        inside = inside[part]
    inside[last] = value
    with pytest.raises(error):
        await resolve(source, house.ref())


async def test_a_provider_and_a_kind_that_nobody_knows_are_left_to_the_files(
    source: LaresSource, house: House
) -> None:
    house.info["lares"] |= {"provider": "elsewhere", "kind": "clairvoyance"}
    about = (await resolve(source, house.ref())).about
    assert about is not None
    assert (about.provider, about.kind) == ("lares", ModelKind.UNSPECIFIED)


async def test_what_is_no_lares_is_told_as_such(source: LaresSource) -> None:
    async def page(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head("200 OK", content_length=6) + b"<html>")

    async with serving(page) as server:
        with pytest.raises(SourceUnavailable, match="as a Lares"):
            await resolve(source, f"lares:{server.url.removeprefix('http://')}/tiny")
