"""What other programs leave on a machine: a cache that huggingface_hub itself makes, and Ollama's folder."""

import asyncio
import hashlib
import json
import os
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import huggingface_hub

from services.downloader.adapters.takeover import Takeover
from tests.docker_registry import manifest_of, ollama_layer
from tests.unit.services.downloader.http_server import Request, Server, head, ranged, serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LONG_AGO_S = 1_600_000_000


class Hub:
    """One repository, `org/repo`, at one commit. files: by path, changed as a test likes."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.server: Server

    async def answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        path = request.path.split("?")[0]
        name = path.removeprefix(f"/org/repo/resolve/{COMMIT}/")
        if path.startswith("/api/models/org/repo/tree/"):
            _send_json(writer, [_tree_entry(name, content) for name, content in self.files.items()])
        elif path.startswith("/api/models/org/repo/revision/"):
            siblings = [_sibling(name, content) for name, content in self.files.items()]
            _send_json(writer, {"id": "org/repo", "sha": COMMIT, "siblings": siblings, "tags": []})
        elif name not in self.files:
            writer.write(head("404 Not Found", content_length=0))
        elif request.headers.get("range"):
            await ranged(self.files[name])(request, writer)
        else:
            content = self.files[name]
            told: dict[str, object] = {"etag": f'"{git_id(content)}"', "x_repo_commit": COMMIT}
            if _is_lfs(name):
                told |= {"x_linked_etag": f'"{sha256(content)}"', "x_linked_size": len(content)}
            writer.write(head("200 OK", content_length=len(content), **told) + content)


@asynccontextmanager
async def hub_of(files: Mapping[str, bytes]) -> AsyncIterator[Hub]:
    """The hub, while the block runs."""
    hub = Hub(files)
    async with serving(hub.answer) as server:
        hub.server = server
        yield hub


async def fill_hf_cache(cache: Path, files: Mapping[str, bytes], *only: str) -> Path:
    """Have huggingface_hub download a repository, or only those files of it. Returns the repository's folder."""
    async with hub_of(files) as hub:
        if only:
            for name in only:
                await asyncio.to_thread(
                    huggingface_hub.hf_hub_download,
                    "org/repo",
                    name,
                    revision=COMMIT,
                    cache_dir=cache,
                    endpoint=hub.server.url,
                    token=False,
                )
        else:
            await asyncio.to_thread(
                huggingface_hub.snapshot_download,
                "org/repo",
                revision="main",
                cache_dir=cache,
                endpoint=hub.server.url,
                token=False,
            )
    repository = cache / "models--org--repo"
    for blob in (repository / "blobs").iterdir():
        age(blob)
    return repository


def fill_ollama(
    models: Path, name: str, tag: str, kinds: Mapping[str, bytes], *, is_new: bool = False
) -> str:
    """A model as `ollama pull` leaves it. kinds: content by layer. Returns the manifest's digest.

    is_new: as versions do that keep manifests as blobs.
    """
    layers = [(ollama_layer(kind), content) for kind, content in kinds.items()]
    (models / "blobs").mkdir(parents=True, exist_ok=True)
    for content in (b"{}", *kinds.values()):
        blob = models / "blobs" / f"sha256-{sha256(content)}"
        blob.write_bytes(content)
        age(blob)
    manifest = manifest_of(layers)
    namespace = name if "/" in name else f"library/{name}"
    if is_new:
        path = models / "manifests-v2" / "ollama.com" / namespace / tag
        path.parent.mkdir(parents=True)
        blob = models / "blobs" / f"sha256-{sha256(manifest)}"
        blob.write_bytes(manifest)
        path.symlink_to(os.path.relpath(blob, path.parent))
    else:
        path = models / "manifests" / "registry.ollama.ai" / namespace / tag
        path.parent.mkdir(parents=True)
        path.write_bytes(manifest)
    return f"sha256:{sha256(manifest)}"


def age(file: Path) -> None:
    """As if it had lain there for years: the store trusts no file that has just changed."""
    os.utime(file, (LONG_AGO_S, LONG_AGO_S))


def as_it_is(file: Path) -> tuple[bytes, int, int]:
    """What of a file must not change: bytes, mode and time."""
    found = file.stat()
    return file.read_bytes(), found.st_mode, found.st_mtime_ns


def num_names(folder: Path) -> int:
    """How many names a file has that a store in that folder shares: one where the file system clones files."""
    return 1 if Takeover(folder).clones else 2


def safetensors_bytes(num_bytes: int = 16) -> bytes:
    """One tensor, with a header as real files have."""
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [num_bytes // 4], "data_offsets": [0, num_bytes]}}
    ).encode()
    return struct.pack("<Q", len(header)) + header + os.urandom(num_bytes)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _is_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".gguf"))


def _tree_entry(name: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": git_id(content)}
    if _is_lfs(name):
        entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
    return entry


def _sibling(name: str, content: bytes) -> dict[str, Any]:
    sibling: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_id(content)}
    if _is_lfs(name):
        sibling["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 130}
    return sibling


def _send_json(writer: asyncio.StreamWriter, value: object) -> None:
    body = json.dumps(value).encode()
    writer.write(head("200 OK", content_length=len(body), content_type="application/json") + body)
