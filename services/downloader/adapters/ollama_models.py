"""`ollama:` out of the models folder of an Ollama on this machine. The network is never asked.

    <models>/manifests/registry.ollama.ai/<namespace>/<model>/<tag>    the manifest, as the registry sent it
    <models>/manifests-v2/ollama.com/<namespace>/<model>/<tag>         newer: a link to the manifest's blob
    <models>/blobs/sha256-<64 hex>                                     layers and, newer, manifests

As Ollama's own `manifest/paths.go` looks for them. The folder is not trusted: no link is followed out of it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from services.downloader.adapters.http_client import MAX_DOCUMENT_BYTES
from services.downloader.adapters.local_files import plain_file
from services.downloader.adapters.ollama_source import version_id_of
from services.downloader.adapters.takeover import LocalSide, local_root
from services.downloader.core.licenses import license_of_text
from services.downloader.core.oci_manifest import LICENSE, Layer, digest_of, parse_manifest
from services.downloader.core.sources import PullRequest, RemoteFile, Resolved
from services.kit.errors import DigestMismatch, SourceNotFound, UnsupportedFormat
from services.kit.names import ModelRef

MANIFESTS: Final = ("manifests-v2", "manifests")
# Two names of one registry.
_HOSTS: Final = ("ollama.com", "registry.ollama.ai")
_OFFICIAL: Final = "library"


class OllamaModels(LocalSide):
    """See `Source`. PullOptions.local_folder: the models folder, such as ~/.ollama/models."""

    def _resolve(self, request: PullRequest) -> Resolved:
        """The layers of a manifest, as the registry would tell them.

        Raises SourceNotFound, with the layer, for what was not downloaded whole.
        """
        ref, root = request.refs[0], local_root(request)
        body = _manifest(root, ref)
        digest, layers = digest_of(body), parse_manifest(body)
        return Resolved(
            source=str(ModelRef("ollama", ref.name, tag=ref.tag, revision=digest)),
            revision=digest,
            version_id=version_id_of(ref, digest),
            files=tuple(self._file(request, root, layer) for layer in layers),
            license=_license(root, layers),
        )

    def _file(self, request: PullRequest, root: Path, layer: Layer) -> RemoteFile:
        sha256 = layer.digest.removeprefix("sha256:")
        file = self._remote_file(request, layer.path, _blob(root, layer), sha256=sha256)
        if file.size_bytes != layer.size_bytes:
            raise SourceNotFound(
                f"{layer.path} of {request.refs[0]} has {file.size_bytes} of {layer.size_bytes} bytes in {root}: it"
                " was not downloaded whole"
            )
        return file


def references(root: Path) -> Iterator[tuple[str, str]]:
    """(reference, what is wrong with it) of every manifest in a models folder, in order. Raises PermissionError."""
    seen = set()
    for folder in MANIFESTS:
        for path in sorted((root / folder).glob("*/*/*/*")):
            host, namespace, model, tag = path.relative_to(root / folder).parts
            name = model if namespace == _OFFICIAL else f"{namespace}/{model}"
            reference = f"ollama:{name}:{tag}"
            problem = "" if host in _HOSTS else f"it came from {host}, which `ollama:` does not name"
            if (reference, problem) not in seen and not path.name.startswith("."):
                seen.add((reference, problem))
                yield reference, problem


def _manifest(root: Path, ref: ModelRef) -> bytes:
    """The one of that digest, if the reference has one. Raises SourceNotFound, UnsupportedFormat."""
    name = ref.name if "/" in ref.name else f"{_OFFICIAL}/{ref.name}"
    found: list[str] = []
    for folder in MANIFESTS:
        for host in _HOSTS:
            path = root / folder / host / name / (ref.tag or "latest")
            if path.is_file():
                body = _read(root, path)
                found.append(digest_of(body))
                if ref.revision in (None, found[-1]):
                    return body
    told = f"what is there has the digest {found[0]}" if found else "`lares import` lists what is"
    raise SourceNotFound(f"{ref} is not in {root}; {told}")


def _blob(root: Path, layer: Layer) -> Path:
    try:
        return plain_file(root, root / "blobs" / layer.digest.replace(":", "-"))
    except SourceNotFound as error:
        raise SourceNotFound(
            f"{layer.path} ({layer.digest}) is not in {root}: the model was not downloaded whole"
        ) from error


def _license(root: Path, layers: tuple[Layer, ...]) -> str:
    for layer in layers:
        if layer.path == LICENSE:
            text = _read(root, _blob(root, layer))
            if digest_of(text) != layer.digest:
                raise DigestMismatch(f"the licence in {root} is damaged; nothing was imported")
            return license_of_text(text)
    return ""


def _read(root: Path, path: Path) -> bytes:
    with plain_file(root, path).open("rb") as file:
        body = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(body) > MAX_DOCUMENT_BYTES:
        raise UnsupportedFormat(
            f"{path} has more than {MAX_DOCUMENT_BYTES} bytes: too much for what it is to be"
        )
    return body
