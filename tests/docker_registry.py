"""Debian's docker-registry on a free port, with a folder of its own, and how models are pushed to it."""

import hashlib
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx2

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"


def ollama_layer(kind: str) -> str:
    """The media type of a layer, as Ollama calls it."""
    return f"application/vnd.ollama.image.{kind}"


def digest_of(content: bytes) -> str:
    """`sha256:<hex>`."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def manifest_of(layers: list[tuple[str, bytes]], *, media_type: str = MANIFEST) -> bytes:
    """A manifest as Ollama writes it. layers: (media type, content)."""
    described = [
        {"mediaType": kind, "digest": digest_of(content), "size": len(content)} for kind, content in layers
    ]
    config = {"mediaType": CONFIG, "digest": digest_of(b"{}"), "size": 2}
    manifest = {"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": described}
    return json.dumps(manifest).encode()


class DockerRegistry:
    """A registry that runs. url: `http://127.0.0.1:<port>`; folder: its storage."""

    def __init__(self, folder: Path, process: subprocess.Popen[str], url: str) -> None:
        self.folder = folder
        self.url = url
        self._process = process

    def push(self, name: str, tag: str, layers: list[tuple[str, bytes]]) -> str:
        """Push a model. Returns the digest of its manifest."""
        with httpx2.Client(base_url=self.url) as client:
            for content in (b"{}", *(content for _, content in layers)):
                self._push_blob(client, name, content)
            manifest = manifest_of(layers)
            headers = {"Content-Type": MANIFEST}
            client.put(f"/v2/{name}/manifests/{tag}", content=manifest, headers=headers).raise_for_status()
        return digest_of(manifest)

    def blob_file(self, digest: str) -> Path:
        """Where it keeps a blob or a manifest: to damage it."""
        hex_digits = digest.removeprefix("sha256:")
        return self.folder / "docker/registry/v2/blobs/sha256" / hex_digits[:2] / hex_digits / "data"

    def stop(self) -> None:
        """Return when it is gone."""
        self._process.terminate()
        self._process.wait(30)

    @staticmethod
    def _push_blob(client: httpx2.Client, name: str, content: bytes) -> None:
        started = client.post(f"/v2/{name}/blobs/uploads/").raise_for_status()
        url = httpx2.URL(started.headers["location"]).copy_merge_params({"digest": digest_of(content)})
        client.put(url, content=content).raise_for_status()


@contextmanager
def docker_registry(folder: Path, *, auth: str = "") -> Iterator[DockerRegistry]:
    """The registry, while the block runs. auth: a section of its configuration, in YAML."""
    configuration = folder / "config.yml"
    configuration.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder}}}}}\nhttp: {{addr: 127.0.0.1:0}}\n{auth}\n"
    )
    with subprocess.Popen(
        ["docker-registry", "serve", configuration],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={},
    ) as process:
        try:
            assert process.stderr is not None
            found = next(
                re.finditer(r"listening on (127\.0\.0\.1:\d+)", _up_to(process.stderr, "listening on"))
            )
            # It logs every request, and stops when nobody reads that.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield DockerRegistry(folder, process, f"http://{found[1]}")
        finally:
            process.terminate()


def _up_to(lines: IO[str], word: str) -> str:
    seen = ""
    for line in lines:
        seen += line
        if word in line:
            return line
    raise AssertionError(f"docker-registry ended: {seen}")
