"""`hf:` through the real huggingface_hub, against a hub on a local port that answers as the real one does."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.downloader.adapters.hf_source import HfSource
from services.downloader.adapters.http_client import HttpLimits
from services.downloader.core.catalog import Layout
from services.downloader.core.sources import PullRequest, Resolved
from services.kit.errors import (
    DigestMismatch,
    LaresError,
    PermissionDenied,
    SourceNotFound,
    SourceUnavailable,
    Unpinned,
    UnsupportedFormat,
)
from services.kit.names import ModelRef
from tests.unit.services.downloader.http_server import Request, Server, head, serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LIMITS = HttpLimits(max_attempts=2, first_backoff_s=0.001, stall_timeout_s=5)
FILES = {
    "config.json": b'{"architectures": []}',
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"pickle",
}


class Hub:
    """One repository, `org/repo`, at one commit."""

    def __init__(self) -> None:
        self.files = dict(FILES)
        self.status = "200 OK"
        self.headers: dict[str, str] = {}
        self.padding = ""
        self.card: dict[str, Any] = {"license": "apache-2.0"}
        self.sha = COMMIT
        self.server: Server

    async def answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        path = request.path.split("?")[0]
        prefix = f"/org/repo/resolve/{COMMIT}/"
        if path.startswith("/api/models/"):
            body = json.dumps(self.info()).encode()
        elif path.startswith(prefix):
            body = self.files[path.removeprefix(prefix)]
        else:
            self.status, body = "404 Not Found", b""
        writer.write(head(self.status, content_length=len(body), **self.headers) + body)

    def info(self) -> dict[str, Any]:
        siblings = [self.sibling(name, content) for name, content in self.files.items()]
        card = {**self.card, "padding": self.padding}
        return {"id": "org/repo", "sha": self.sha, "siblings": siblings, "cardData": card, "tags": []}

    def sibling(self, name: str, content: bytes) -> dict[str, Any]:
        content = FILES.get(name, content)
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        sibling: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
        if not name.endswith(".json"):
            sha256 = hashlib.sha256(content).hexdigest()
            sibling["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
        return sibling


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    hub = Hub()
    async with serving(hub.answer) as server:
        hub.server = server
        yield hub


@pytest.fixture
async def source(hub: Hub) -> AsyncIterator[HfSource]:
    source = HfSource(hub.server.url, "hf_secret", LIMITS)
    yield source
    await source.close()


async def resolve(source: HfSource, ref: str = f"hf:org/repo@{COMMIT}") -> Resolved:
    return await source.resolve(PullRequest((ModelRef.parse(ref),), Layout()))


async def test_a_repository_is_pinned_to_its_commit_and_pickles_are_left_out(
    source: HfSource, hub: Hub
) -> None:
    resolved = await resolve(source)
    assert resolved.source == f"hf:org/repo@{COMMIT}"
    assert (resolved.revision, resolved.version_id, resolved.license) == (COMMIT, COMMIT[:12], "apache-2.0")
    by_path = {file.path: file for file in resolved.files}
    assert by_path.keys() == {"config.json", "model.safetensors"}
    assert by_path["model.safetensors"].sha256 == hashlib.sha256(b"weights").hexdigest()
    assert by_path["model.safetensors"].url.endswith(f"/org/repo/resolve/{COMMIT}/model.safetensors")
    assert hub.server.requests[0].headers["authorization"] == "Bearer hf_secret"


async def test_what_is_left_out_is_named_and_a_signature_is_fetched(source: HfSource, hub: Hub) -> None:
    hub.files |= {"model.sig": b"{}", "sub/optimizer.pt": b"x", "evil\n.pkl": b"x"}
    resolved = await resolve(source)
    assert "model.sig" in {file.path for file in resolved.files}
    left_out = {left.path for left in resolved.left_out}
    assert left_out >= {"sub/optimizer.pt", "evil\n.pkl"}
    assert not left_out & {file.path for file in resolved.files}
    assert all(left.local is None for left in resolved.left_out)


@pytest.mark.parametrize(
    ("card", "license_"),
    [
        ({"license": "mit"}, "mit"),
        ({"license": ["mit", "cc-by-4.0"]}, "mit AND cc-by-4.0"),
        ({"license": "other", "license_name": "llama3"}, "llama3"),
        ({"license": "other"}, "other"),
        ({}, ""),
    ],
)
async def test_the_licence_is_that_of_the_card(
    source: HfSource, hub: Hub, card: dict[str, Any], license_: str
) -> None:
    hub.card = card
    assert (await resolve(source)).license == license_


async def test_files_arrive_and_are_checked(source: HfSource, tmp_path: Path) -> None:
    for file in (await resolve(source)).files:
        await source.fetch(file, tmp_path / file.path, lambda num, size: None)
        assert (tmp_path / file.path).read_bytes() == FILES[file.path]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
async def test_a_flipped_byte_is_found_with_and_without_a_sha256(
    source: HfSource, hub: Hub, tmp_path: Path, name: str
) -> None:
    (file,) = [file for file in (await resolve(source)).files if file.path == name]
    hub.files[name] = b"X" + FILES[name][1:]
    with pytest.raises(DigestMismatch):
        await source.fetch(file, tmp_path / "f", lambda num, size: None)
    assert not (tmp_path / "f").exists()


async def test_a_tag_chooses_a_quantization_and_names_the_version(source: HfSource, hub: Hub) -> None:
    hub.files = {"m-Q4_K_M.gguf": b"a", "m-Q8_0.gguf": b"b"}
    resolved = await resolve(source, f"hf:org/repo:Q8_0@{COMMIT}")
    assert [file.path for file in resolved.files] == ["m-Q8_0.gguf"]
    assert resolved.version_id == f"q8_0-{COMMIT[:12]}"
    assert resolved.source == f"hf:org/repo:Q8_0@{COMMIT}"


@pytest.mark.parametrize("asked", ["", "@main", "@refs/pr/1", f"@{COMMIT[:12]}", f"@{'A' * 40}", ":Q8_0"])
async def test_without_a_whole_commit_nothing_is_pulled_and_the_one_to_ask_for_is_told(
    source: HfSource, asked: str
) -> None:
    with pytest.raises(Unpinned) as caught:
        await resolve(source, f"hf:org/repo{asked}")
    pinned = f"hf:org/repo{asked if asked.startswith(':') else ''}@{COMMIT}"
    assert pinned in caught.value.message
    assert caught.value.metadata == {"source": pinned}
    assert caught.value.reason == "UNPINNED"


@pytest.mark.parametrize("sha", ["", "main", "f" * 40])
async def test_a_hub_that_answers_with_another_commit_is_not_believed(
    source: HfSource, hub: Hub, sha: str
) -> None:
    hub.sha = sha
    with pytest.raises(SourceUnavailable):
        await resolve(source)


async def test_a_repository_of_pickles_is_refused(source: HfSource, hub: Hub) -> None:
    del hub.files["model.safetensors"]
    with pytest.raises(UnsupportedFormat, match=r"pytorch_model\.bin"):
        await resolve(source)


@pytest.mark.parametrize(
    ("status", "headers", "error"),
    [
        ("404 Not Found", {"x-error-code": "RepoNotFound"}, SourceNotFound),
        ("404 Not Found", {"x-error-code": "RevisionNotFound"}, SourceNotFound),
        ("403 Forbidden", {"x-error-code": "GatedRepo"}, PermissionDenied),
        ("400 Bad Request", {}, SourceUnavailable),
    ],
)
async def test_the_hubs_refusals_are_told_in_our_words(
    source: HfSource, hub: Hub, status: str, headers: dict[str, str], error: type[LaresError]
) -> None:
    hub.status, hub.headers = status, headers
    with pytest.raises(error) as caught:
        await resolve(source)
    assert "hf_secret" not in str(caught.value)


async def test_metadata_without_end_is_not_read_to_its_end(source: HfSource, hub: Hub) -> None:
    hub.padding = "x" * 8 * 1024 * 1024
    with pytest.raises(SourceUnavailable, match="bytes of metadata"):
        await resolve(source)


async def test_a_hub_that_is_not_there_is_said_so() -> None:
    with pytest.raises(SourceUnavailable):
        await resolve(HfSource("http://127.0.0.1:1", "", LIMITS))


async def test_a_name_that_leads_out_of_the_folder_is_refused(source: HfSource, hub: Hub) -> None:
    hub.files["../../evil.json"] = b"{}"
    resolved = await resolve(source)
    assert all(".." not in file.path for file in resolved.files)
