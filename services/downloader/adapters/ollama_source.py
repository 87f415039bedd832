"""`ollama:`: models of Ollama's registry, or of any that speaks the OCI distribution protocol."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from services.downloader.adapters.http_client import HttpLimits
from services.downloader.adapters.oci_repository import OciRepository
from services.downloader.core.ids import as_id
from services.downloader.core.licenses import license_of_text
from services.downloader.core.oci_manifest import (
    ACCEPT,
    LICENSE,
    Layer,
    digest_of,
    parse_manifest,
)
from services.downloader.core.sources import LocalFile, OnBytes, PullRequest, RemoteFile, Resolved
from services.downloader.core.urls import parse_url
from services.kit.errors import DigestMismatch, SourceNotFound
from services.kit.names import ModelRef, parse_digest

_DIGEST_CHARS: Final = 12


class OllamaSource:
    """See `Source`. endpoint: of the registry. Nobody is logged in: what is public is pulled."""

    def __init__(self, endpoint: str, limits: HttpLimits) -> None:
        self._endpoint = endpoint
        self._limits = limits
        self._repositories: dict[str, OciRepository] = {}

    async def resolve(self, request: PullRequest) -> Resolved:
        """Read the manifest of a tag, or the one of that digest."""
        ref = request.refs[0]
        name = ref.name if "/" in ref.name else f"library/{ref.name}"
        repository = self._repository(f"{parse_url(self._endpoint).url.rstrip('/')}/v2/{name}")
        body = await _manifest(repository, ref)
        digest = digest_of(body)
        layers = parse_manifest(body)
        return Resolved(
            source=str(replace(ref, revision=digest)),
            revision=digest,
            version_id=version_id_of(ref, digest),
            files=tuple(
                RemoteFile(
                    layer.path,
                    repository.blob_url(layer.digest),
                    layer.size_bytes,
                    layer.digest.removeprefix("sha256:"),
                )
                for layer in layers
            ),
            license=await _license(repository, layers),
        )

    async def latest(self, request: PullRequest) -> Resolved:
        """What the tag points to."""
        return await self.resolve(request.unpinned)

    async def fetch(self, file: RemoteFile, target: Path, on_bytes: OnBytes) -> str:
        """Bring a layer here."""
        return await self._repository(file.url.rpartition("/blobs/")[0]).fetch(file, target, on_bytes)

    async def unpack(
        self, request: PullRequest, fetched: Mapping[str, Path], folder: Path
    ) -> Sequence[LocalFile]:
        """They are what they are."""
        return [LocalFile(path, local) for path, local in fetched.items()]

    async def close(self) -> None:
        """Close connections."""
        for repository in self._repositories.values():
            await repository.close()

    def _repository(self, url: str) -> OciRepository:
        """One for each, because a token is good for one."""
        if url not in self._repositories:
            self._repositories[url] = OciRepository(url, self._limits)
        return self._repositories[url]


def version_id_of(ref: ModelRef, digest: str) -> str:
    """Id of the version that a reference is with that manifest."""
    short = digest.removeprefix("sha256:")[:_DIGEST_CHARS]
    return as_id(f"{ref.tag}-{short}" if ref.tag else short)


async def _manifest(repository: OciRepository, ref: ModelRef) -> bytes:
    """Raises DigestMismatch if it is not the one that was asked for."""
    if ref.revision is None:
        return (
            await repository.get_document(repository.manifest_url(ref.tag or "latest"), accept=ACCEPT)
        ).body
    digest = parse_digest(ref.revision, field="source")
    try:
        document = await repository.get_document(repository.manifest_url(digest), accept=ACCEPT)
    except SourceNotFound:
        # Where Ollama's own client asks for it.
        document = await repository.get_document(repository.blob_url(digest))
    if digest_of(document.body) != digest:
        raise DigestMismatch(
            f"the manifest of {ref} has the digest {digest_of(document.body)}; nothing was pulled"
        )
    return document.body


async def _license(repository: OciRepository, layers: Sequence[Layer]) -> str:
    for layer in layers:
        if layer.path == LICENSE:
            text = (await repository.get_document(repository.blob_url(layer.digest))).body
            if digest_of(text) != layer.digest:
                raise DigestMismatch("the licence is not the one that the manifest names; nothing was pulled")
            return license_of_text(text)
    return ""
