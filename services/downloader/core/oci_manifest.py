"""A manifest of Ollama's registry: which files a model has. Pure functions.

The form is that of https://github.com/opencontainers/image-spec/blob/main/manifest.md and of Docker's manifest version
2, schema 2; the media types of the layers are Ollama's own. It is not trusted: a digest becomes a path and a URL, so
it is parsed before it is used (Ollama CVE-2024-37032).
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final

from services.kit.errors import InvalidDigest, UnsupportedFormat
from services.kit.names import parse_digest

_MANIFESTS: Final = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
)
_INDEXES: Final = (
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.index.v1+json",
)

# Lists are asked for too, to be refused by their name: who does not ask for them is told that there is nothing.
ACCEPT: Final = ", ".join(_MANIFESTS + _INDEXES)

MODEL: Final = "model.gguf"
LICENSE: Final = "license"

_PREFIX: Final = "application/vnd.ollama.image."
# The template is in Go's language, which nothing here reads: it is kept as it is, and a chat is written by the Jinja
# template in the GGUF file itself.
_PATHS: Final = {
    "model": MODEL,
    "template": "template",
    "prompt": "template",
    "system": "system",
    "params": "params.json",
    "messages": "messages.json",
    "license": LICENSE,
}
# A model speaks without its eyes, without the smaller one that guesses ahead for it, and without what Ollama itself
# has given up reading.
_LEFT_OUT: Final = ("projector", "draft", "embed")
_MAX_LAYERS: Final = 64
_MAX_TEXT_BYTES: Final = 4 * 1024 * 1024
_MAX_MODEL_BYTES: Final = 4 * 1024**4


@dataclass(frozen=True, slots=True)
class Layer:
    """One file. path: in the model; digest: `sha256:<hex>`."""

    path: str
    digest: str
    size_bytes: int


def digest_of(body: bytes) -> str:
    """`sha256:<hex>` of a manifest, as it came."""
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def parse_manifest(body: bytes) -> tuple[Layer, ...]:
    """The files of a model, its weights first. Raises UnsupportedFormat."""
    manifest = _table(body)
    media_type = manifest.get("mediaType", _MANIFESTS[1])
    if "manifests" in manifest or media_type in _INDEXES:
        raise UnsupportedFormat(
            "this is a list of manifests, as container images have them; a model has one manifest"
        )
    if manifest.get("schemaVersion") != 2 or media_type not in _MANIFESTS:
        raise UnsupportedFormat(
            "this is no manifest of version 2, the only one in which models are published"
        )
    layers = manifest.get("layers")
    if not isinstance(layers, list) or len(layers) > _MAX_LAYERS:
        raise UnsupportedFormat(f"the manifest has no list of at most {_MAX_LAYERS} layers")
    found = [layer for entry in layers if (layer := _layer(entry)) is not None]
    return tuple(sorted(_numbered(found), key=lambda layer: layer.path != MODEL))


def _table(body: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UnsupportedFormat("the manifest is no JSON") from error
    if not isinstance(manifest, dict):
        raise UnsupportedFormat("the manifest is no table")
    return manifest


def _layer(entry: Any) -> Layer | None:
    match entry:
        case {"mediaType": str(media_type), "digest": str(digest), "size": int(size)} if type(size) is int:
            kind = media_type.removeprefix(_PREFIX)
        case _:
            raise UnsupportedFormat("a layer of the manifest is not described as it should be")
    if media_type == kind or (kind not in _PATHS and kind not in _LEFT_OUT):
        raise UnsupportedFormat(
            f"the model needs a layer of the kind {media_type[:120]!a}; Lares runs GGUF weights of one file,"
            " without adapters"
        )
    if kind in _LEFT_OUT:
        return None
    try:
        parse_digest(digest)
    except InvalidDigest as error:
        raise UnsupportedFormat(f"a layer of the manifest has no digest that can be read: {error}") from error
    if not 0 <= size <= (_MAX_MODEL_BYTES if kind == "model" else _MAX_TEXT_BYTES):
        raise UnsupportedFormat(f"a layer of the manifest claims to have {size} bytes")
    return Layer(_PATHS[kind], digest, size)


def _numbered(layers: list[Layer]) -> list[Layer]:
    """A model may have several licences; of everything else one, and of the weights no less."""
    paths = [layer.path for layer in layers]
    for path in {MODEL, *paths} - {LICENSE}:
        if paths.count(path) != 1:
            raise UnsupportedFormat(
                f"the manifest has {paths.count(path)} layers for {path}; a model has one"
            )
    licenses = [layer for layer in layers if layer.path == LICENSE]
    others = [layer for layer in layers if layer.path != LICENSE]
    return others + [
        Layer(LICENSE if number == 1 else f"{LICENSE}-{number}", layer.digest, layer.size_bytes)
        for number, layer in enumerate(licenses, 1)
    ]
