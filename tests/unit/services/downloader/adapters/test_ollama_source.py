"""`ollama:` against a real registry; where a registry has to lie or to want tokens, against one of our own."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest

from services.downloader.adapters.http_client import HttpLimits
from services.downloader.adapters.ollama_source import OllamaSource
from services.downloader.core.catalog import Layout
from services.downloader.core.sources import PullRequest, Resolved
from services.kit.errors import (
    DigestMismatch,
    InvalidDigest,
    PermissionDenied,
    SourceNotFound,
    SourceUnavailable,
    UnsupportedFormat,
)
from services.kit.names import ModelRef
from tests.docker_registry import (
    DockerRegistry,
    digest_of,
    docker_registry,
    manifest_of,
    ollama_layer,
)
from tests.unit.services.downloader.http_server import Request, Server, head, ranged, serving, whole
from tests.unit.services.downloader.wheels import gguf_bytes

LIMITS = HttpLimits(max_attempts=2, first_backoff_s=0.001, stall_timeout_s=5)
GGUF = gguf_bytes() + bytes(range(256)) * 8000
LICENSE = b"\n   Apache License\n   Version 2.0"
LAYERS = [(ollama_layer("model"), GGUF), (ollama_layer("license"), LICENSE)]
MANIFEST = manifest_of(LAYERS)
INDEX = "application/vnd.oci.image.index.v1+json"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as registry:
        registry.push("library/tiny", "1b", LAYERS)
        registry.push("library/tiny", "latest", LAYERS[:1])
        registry.push("somebody/tiny", "q4", LAYERS)
        yield registry


@pytest.fixture
async def source(registry: DockerRegistry) -> AsyncIterator[OllamaSource]:
    source = OllamaSource(f"{registry.url}/", LIMITS)
    yield source
    await source.close()


async def resolve(source: OllamaSource, ref: str) -> Resolved:
    return await source.resolve(PullRequest((ModelRef.parse(ref),), Layout()))


async def test_a_tag_is_pinned_to_the_digest_of_its_manifest(source: OllamaSource) -> None:
    resolved = await resolve(source, "ollama:tiny:1b")
    digest = digest_of(MANIFEST)
    assert resolved.source == f"ollama:tiny:1b@{digest}"
    assert (resolved.revision, resolved.license) == (digest, "Apache-2.0")
    assert resolved.version_id == f"1b-{digest[7:19]}"
    assert [(file.path, file.size_bytes) for file in resolved.files] == [
        ("model.gguf", len(GGUF)),
        ("license", len(LICENSE)),
    ]
    assert (await resolve(source, resolved.source)) == resolved


async def test_without_a_tag_it_is_latest_and_a_namespace_is_its_owners(source: OllamaSource) -> None:
    latest = await resolve(source, "ollama:tiny")
    assert latest.version_id == latest.revision[7:19]
    assert [file.path for file in latest.files] == ["model.gguf"]
    assert (
        (await resolve(source, "ollama:somebody/tiny:q4"))
        .files[0]
        .url.split("/v2/")[1]
        .startswith("somebody/")
    )


@pytest.mark.parametrize("ref", ["ollama:absent", "ollama:tiny:7b", f"ollama:tiny@sha256:{'0' * 64}"])
async def test_what_the_registry_lacks_is_said_so(source: OllamaSource, ref: str) -> None:
    with pytest.raises(SourceNotFound):
        await resolve(source, ref)


async def test_a_revision_that_is_no_digest_is_refused(source: OllamaSource) -> None:
    with pytest.raises(InvalidDigest):
        await resolve(source, "ollama:tiny:1b@sha256:ab")


async def test_a_list_of_manifests_in_a_registry_is_called_what_it_is(
    source: OllamaSource, registry: DockerRegistry
) -> None:
    described = {
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "digest": digest_of(MANIFEST),
    }
    platform = {"architecture": "amd64", "os": "linux"}
    listed = {**described, "size": len(MANIFEST), "platform": platform}
    body = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [listed]})
    url = f"{registry.url}/v2/library/tiny/manifests/many"
    httpx2.put(url, content=body, headers={"Content-Type": INDEX}).raise_for_status()
    with pytest.raises(UnsupportedFormat, match="list of manifests"):
        await resolve(source, "ollama:tiny:many")


async def test_a_registry_that_wants_a_password_is_given_none(tmp_path: Path) -> None:
    wants = f"auth: {{htpasswd: {{realm: private, path: {tmp_path}/htpasswd}}}}"
    with docker_registry(tmp_path, auth=wants) as private:
        source = OllamaSource(private.url, LIMITS)
        with pytest.raises(PermissionDenied):
            await resolve(source, "ollama:tiny")
        await source.close()


class OwnRegistry:
    """`library/tiny:1b`. wants: the token that it lets in, if any; realm: where it says that tokens are."""

    def __init__(self) -> None:
        self.server: Server
        self.manifest = MANIFEST
        self.manifest_paths = ("manifests/1b", f"manifests/{digest_of(MANIFEST)}")
        self.blobs = {f"blobs/{digest_of(content)}": content for _, content in LAYERS}
        self.wants = ""
        self.num_tokens = 0
        self.realm: str | None = None
        self.token_answer: bytes | None = None
        self.cut: int | None = None
        self.redirect = ""

    async def answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        path = request.path.removeprefix("/v2/library/tiny/")
        if path.startswith("/token"):
            self.num_tokens += 1
            self.wants = f"t{self.num_tokens}"
            body = self.token_answer or json.dumps({"token": self.wants}).encode()
            writer.write(head("200 OK", content_length=len(body)) + body)
        elif self.wants and request.headers.get("authorization") != f"Bearer {self.wants}":
            realm = self.realm if self.realm is not None else f"{self.server.url}/token?x=1"
            asks = f'Bearer realm="{realm}",service="reg,istry",scope="repository:library/tiny:pull"'
            writer.write(head("401 Unauthorized", content_length=0, www_authenticate=asks))
        elif self.redirect:
            writer.write(head("307 Temporary Redirect", content_length=0, location=self.redirect))
        elif path in self.manifest_paths:
            writer.write(head("200 OK", content_length=len(self.manifest)) + self.manifest)
        elif path in self.blobs:
            await ranged(self.blobs[path], cut=self.cut)(request, writer)
            if self.cut is not None:
                self.wants = "what nobody has yet"
        else:
            writer.write(head("404 Not Found", content_length=0))


@pytest.fixture
async def own() -> AsyncIterator[OwnRegistry]:
    own = OwnRegistry()
    async with serving(own.answer) as server:
        own.server = server
        yield own


@pytest.fixture
async def of_own(own: OwnRegistry) -> AsyncIterator[OllamaSource]:
    source = OllamaSource(own.server.url, LIMITS)
    yield source
    await source.close()


async def test_a_token_is_fetched_from_the_registrys_own_host_and_shown_to_it(
    own: OwnRegistry, of_own: OllamaSource
) -> None:
    own.wants = "a token"
    assert (await resolve(of_own, "ollama:tiny:1b")).license == "Apache-2.0"
    (asked,) = [request for request in own.server.requests if request.path.startswith("/token")]
    assert asked.path == "/token?x=1&service=reg%2Cistry&scope=repository%3Alibrary%2Ftiny%3Apull"
    assert "authorization" not in asked.headers
    assert own.num_tokens == 1


async def test_a_token_that_runs_out_in_the_middle_of_a_file_is_replaced(
    own: OwnRegistry, of_own: OllamaSource, tmp_path: Path
) -> None:
    file = (await resolve(of_own, "ollama:tiny:1b")).files[0]
    own.cut = 600_000
    told: list[int] = []
    await of_own.fetch(file, tmp_path / "0.part", lambda num_bytes, size_bytes: told.append(num_bytes))
    assert (tmp_path / "0.part").read_bytes() == GGUF
    assert own.num_tokens >= 3
    assert told == sorted(told)


@pytest.mark.torture
async def test_a_token_does_not_follow_a_redirect_to_where_the_blobs_lie(
    own: OwnRegistry, of_own: OllamaSource, tmp_path: Path
) -> None:
    own.wants = "a token"
    file = (await resolve(of_own, "ollama:tiny:1b")).files[0]
    async with serving(whole(GGUF)) as elsewhere:
        own.redirect = f"{elsewhere.url}/data"
        await of_own.fetch(file, tmp_path / "0.part", lambda num_bytes, size_bytes: None)
        (asked,) = elsewhere.requests
    assert own.server.requests[-1].headers["authorization"] == f"Bearer {own.wants}"
    assert "authorization" not in asked.headers


async def test_a_registry_that_takes_none_of_its_own_tokens_is_not_asked_for_ever(
    own: OwnRegistry, of_own: OllamaSource, tmp_path: Path
) -> None:
    file = (await resolve(of_own, "ollama:tiny:1b")).files[0]
    own.wants, own.token_answer = "x", b'{"access_token": "wrong"}'
    with pytest.raises(PermissionDenied):
        await of_own.fetch(file, tmp_path / "0.part", lambda num_bytes, size_bytes: None)
    assert own.num_tokens == 1


@pytest.mark.torture
async def test_no_token_is_asked_for_at_a_foreign_place_without_tls(
    own: OwnRegistry, of_own: OllamaSource
) -> None:
    async with serving(own.answer) as foreign:
        own.wants, own.realm = "x", f"{foreign.url}/token"
        with pytest.raises(PermissionDenied, match="not https"):
            await resolve(of_own, "ollama:tiny:1b")
        assert not foreign.requests


@pytest.mark.torture
@pytest.mark.parametrize("realm", ["", "file:///etc/passwd", "https://[", "not an address"])
async def test_a_realm_that_is_no_address_is_refused(
    own: OwnRegistry, of_own: OllamaSource, realm: str
) -> None:
    own.wants, own.realm = "x", realm
    with pytest.raises((SourceUnavailable, PermissionDenied)):
        await resolve(of_own, "ollama:tiny:1b")


@pytest.mark.parametrize(
    "answer", [b"no", b"[]", b"{}", b'{"token": 3}', b'{"token": "a\\r\\nX-Evil: 1"}', b"[" * 100_000]
)
async def test_an_answer_that_holds_no_token_is_refused(
    own: OwnRegistry, of_own: OllamaSource, answer: bytes
) -> None:
    own.wants, own.token_answer = "x", answer
    with pytest.raises(SourceUnavailable, match="no token"):
        await resolve(of_own, "ollama:tiny:1b")


async def test_a_manifest_that_is_not_the_pinned_one_is_refused(
    own: OwnRegistry, of_own: OllamaSource
) -> None:
    own.manifest = manifest_of(LAYERS[:1])
    with pytest.raises(DigestMismatch):
        await resolve(of_own, f"ollama:tiny:1b@{digest_of(MANIFEST)}")


async def test_a_pinned_manifest_is_found_where_ollamas_own_client_looks_for_it(
    own: OwnRegistry, of_own: OllamaSource
) -> None:
    own.manifest_paths = ("manifests/1b", f"blobs/{digest_of(MANIFEST)}")
    assert (await resolve(of_own, f"ollama:tiny:1b@{digest_of(MANIFEST)}")).files


async def test_a_licence_that_is_not_the_manifests_is_refused(own: OwnRegistry, of_own: OllamaSource) -> None:
    own.blobs[f"blobs/{digest_of(LICENSE)}"] = b"All rights are yours"
    with pytest.raises(DigestMismatch, match="licence"):
        await resolve(of_own, "ollama:tiny:1b")
