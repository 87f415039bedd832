"""Imports over a real port, with a real Registry beside it: out of caches as other programs leave them."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from lares.downloader.v1 import downloader_pb2 as pb
from lares.downloader.v1 import downloader_pb2_grpc as rpc
from lares.registry.v1 import registry_pb2
from lares.registry.v1 import registry_pb2_grpc as registry_rpc
from services.downloader.adapters import takeover as takeover_module
from services.downloader.service import build
from services.kit.address import Address
from services.kit.channels import translate_errors
from services.kit.errors import CorruptBlob, InvalidArgument
from services.kit.host import Host
from services.kit.server import GrpcServer
from services.kit.settings import Settings
from services.registry.service import build as build_registry
from tests.contract.local_caches import (
    COMMIT,
    Hub,
    age,
    as_it_is,
    fill_hf_cache,
    fill_ollama,
    git_id,
    hub_of,
    safetensors_bytes,
    sha256,
)
from tests.unit.services.downloader.wheels import gguf_bytes

GGUF = gguf_bytes() + os.urandom(200_000)
FILES = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 64}',
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b'{"chat_template": "x"}',
    "model.safetensors": safetensors_bytes(400_000),
    "README.md": b"---\nlicense: mit\n---\n",
}


class House:
    def __init__(self, host: Host) -> None:
        self.store = host.settings.store_path
        self.downloader = rpc.DownloaderServiceStub(host.channel("downloader"))
        self.registry = registry_rpc.RegistryServiceStub(host.channel("registry"))

    async def pull(self, source: str, folder: Path | None = None, *, copy: bool = False) -> pb.Download:
        options = pb.PullOptions(local_folder=str(folder or ""), copy_local_files=copy)
        request = pb.CreateDownloadRequest(source=source, options=options)
        download = (await self.downloader.CreateDownload(request)).download
        async for message in self.downloader.WatchDownload(pb.WatchDownloadRequest(name=download.name)):
            download = message.download
        return download

    async def imported(self, source: str, folder: Path) -> registry_pb2.Version:
        download = await self.pull(source, folder)
        assert download.state == pb.DOWNLOAD_STATE_SUCCEEDED, download.failure
        request = registry_pb2.GetVersionRequest(name=download.version)
        return (await self.registry.GetVersion(request)).version

    async def found(self, *folders: Path) -> list[pb.LocalModel]:
        request = pb.FindLocalModelsRequest(folders=map(str, folders))
        return [response.model async for response in self.downloader.FindLocalModels(request)]

    async def lease(self, version: str) -> Path:
        return Path((await self.downloader.CreateLease(pb.CreateLeaseRequest(version=version))).lease.path)

    def blob(self, content: bytes) -> Path:
        return self.store / "blobs" / "sha256" / sha256(content)[:2] / sha256(content)


@asynccontextmanager
async def house_at(home: Path) -> AsyncIterator[House]:
    host = Host(Settings(home=home, grpc=Address("127.0.0.1", 0)))
    server = GrpcServer(host, [build_registry, build])
    await server.start()
    try:
        yield House(host)
    finally:
        await server.stop(grace_s=1)


@pytest.fixture(autouse=True)
def no_clones(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on most file systems: what is shared is one file with two names."""
    monkeypatch.setattr(takeover_module, "_clone", lambda source, target: False)


@pytest.fixture
async def hub(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hub]:
    """What `hf:` means in a house that is built after it."""
    async with hub_of(FILES) as hub:
        monkeypatch.setenv("LARES_DOWNLOADER_HF_ENDPOINT", hub.server.url)
        yield hub


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with house_at(tmp_path / "home") as house:
        yield house


async def test_a_model_of_a_cache_is_the_version_that_a_pull_makes(
    hub: Hub, house: House, tmp_path: Path
) -> None:
    repository = await fill_hf_cache(tmp_path / "hub", FILES)
    before = {blob: as_it_is(blob) for blob in (repository / "blobs").iterdir()}
    async with house_at(tmp_path / "other") as other:
        done = await other.pull(f"hf:org/repo@{COMMIT}")
        assert done.state == pb.DOWNLOAD_STATE_SUCCEEDED, done.failure
        request = registry_pb2.GetVersionRequest(name=done.version)
        pulled = (await other.registry.GetVersion(request)).version
    num_requests = len(hub.server.requests)
    imported = await house.imported(f"hf:org/repo@{COMMIT}", tmp_path / "hub")
    assert len(hub.server.requests) == num_requests
    assert (imported.name, imported.source, imported.revision) == (
        pulled.name,
        pulled.source,
        pulled.revision,
    )
    assert {(file.path, file.digest) for file in imported.files} == {
        (file.path, file.digest) for file in pulled.files
    }
    theirs = repository / "blobs" / sha256(FILES["model.safetensors"])
    assert house.blob(FILES["model.safetensors"]).stat().st_ino == theirs.stat().st_ino
    assert {blob: as_it_is(blob) for blob in before} == before
    assert not list((house.store / "ingest").iterdir())
    folder = await house.lease(imported.name)
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


async def test_a_model_of_ollama_comes_with_all_of_its_layers(house: House, tmp_path: Path) -> None:
    digest = fill_ollama(tmp_path / "models", "tiny", "1b", {"model": GGUF, "template": b"{{ .Prompt }}"})
    version = await house.imported("ollama:tiny:1b", tmp_path / "models")
    assert version.source == f"ollama:tiny:1b@{digest}"
    assert {file.path for file in version.files} == {"model.gguf", "template"}
    theirs = tmp_path / "models" / "blobs" / f"sha256-{sha256(GGUF)}"
    assert house.blob(GGUF).stat().st_ino == theirs.stat().st_ino


async def test_a_damaged_file_fails_the_import_and_is_left_as_it_is(house: House, tmp_path: Path) -> None:
    repository = await fill_hf_cache(tmp_path / "hub", FILES)
    weights = repository / "blobs" / sha256(FILES["model.safetensors"])
    content = bytearray(FILES["model.safetensors"])
    content[-1] ^= 1
    weights.write_bytes(content)
    age(weights)
    before = {blob: as_it_is(blob) for blob in (repository / "blobs").iterdir()}
    failed = await house.pull(f"hf:org/repo@{COMMIT}", tmp_path / "hub")
    assert failed.state == pb.DOWNLOAD_STATE_FAILED
    assert (failed.failure.reason, str(weights) in failed.failure.message) == ("DIGEST_MISMATCH", True)
    assert {blob: as_it_is(blob) for blob in before} == before
    weights.write_bytes(FILES["model.safetensors"])
    await house.imported(f"hf:org/repo@{COMMIT}", tmp_path / "hub")


async def test_a_pull_after_an_import_that_failed_touches_nothing_of_the_cache(
    hub: Hub, house: House, tmp_path: Path
) -> None:
    repository = await fill_hf_cache(tmp_path / "hub", FILES)
    weights = repository / "blobs" / sha256(FILES["model.safetensors"])
    weights.write_bytes(b"X" + FILES["model.safetensors"][1:])
    before = {blob: as_it_is(blob) for blob in (repository / "blobs").iterdir()}
    await house.pull(f"hf:org/repo@{COMMIT}", tmp_path / "hub")
    (left,) = (house.store / "ingest").iterdir()
    for number in range(len(FILES)):  # What had come when it failed; which of them had is a matter of time.
        target = left / f"{number:05}.part"
        if not target.exists():
            os.link(repository / "blobs" / git_id(FILES["README.md"]), target)
    pulled = await house.pull(f"hf:org/repo@{COMMIT}")
    assert pulled.state == pb.DOWNLOAD_STATE_SUCCEEDED, pulled.failure
    assert {blob: as_it_is(blob) for blob in before} == before


async def test_what_lares_deletes_stays_in_the_folder_it_came_from(house: House, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(GGUF)
    age(file)
    before = as_it_is(file)
    await house.imported(f"file:{file}", tmp_path)
    assert file.stat().st_nlink == 2
    await house.registry.DeleteModel(registry_pb2.DeleteModelRequest(name="models/m"))
    await house.downloader.CollectGarbage(pb.CollectGarbageRequest())
    assert not house.blob(GGUF).exists()
    assert as_it_is(file) == before
    assert file.stat().st_nlink == 1


async def test_what_is_written_into_the_folder_later_is_noticed_and_another_import_mends_it(
    house: House, tmp_path: Path
) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(GGUF)
    version = await house.imported(f"file:{file}", tmp_path)
    await house.lease(version.name)
    with file.open("r+b") as opened:
        opened.seek(1000)
        opened.write(b"another")
    with pytest.raises(CorruptBlob, match=r"m\.gguf"), translate_errors():
        await house.lease(version.name)
    file.unlink()
    file.write_bytes(GGUF)
    await house.imported(f"file:{file}", tmp_path)
    await house.lease(version.name)


async def test_a_copy_shares_nothing(house: House, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(GGUF)
    done = await house.pull(f"file:{file}", tmp_path, copy=True)
    assert done.state == pb.DOWNLOAD_STATE_SUCCEEDED, done.failure
    assert done.options.copy_local_files
    assert file.stat().st_nlink == 1
    file.write_bytes(b"something else")
    await house.lease(done.version)


async def test_a_folder_is_only_for_sources_that_can_lie_in_one(house: House, tmp_path: Path) -> None:
    failed = await house.pull("pypi:tiny-model", tmp_path)
    assert (failed.state, failed.failure.reason) == (pb.DOWNLOAD_STATE_FAILED, "INVALID_ARGUMENT")
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "m.gguf"
    file.write_bytes(GGUF)
    failed = await house.pull(f"file:{file}", tmp_path / "elsewhere")
    assert failed.failure.reason == "UNSUPPORTED_FORMAT"


async def test_what_is_on_the_machine_is_found_and_what_is_here_is_told(house: House, tmp_path: Path) -> None:
    await fill_hf_cache(tmp_path / "hub", FILES)
    fill_ollama(tmp_path / "models", "tiny", "1b", {"model": GGUF})
    (tmp_path / "ggufs").mkdir()
    (tmp_path / "ggufs" / "x.gguf").write_bytes(GGUF)
    folders = [tmp_path / name for name in ("hub", "models", "ggufs")]
    hf, ollama, file = await house.found(*folders)
    size_bytes = sum(len(content) for name, content in FILES.items() if name != "README.md")
    assert hf == pb.LocalModel(
        reference=f"hf:org/repo@{COMMIT}",
        place=pb.LOCAL_PLACE_HUGGING_FACE,
        folder=str(tmp_path / "hub"),
        model_id="repo",
        num_files=4,
        size_bytes=size_bytes,
    )
    assert (ollama.place, ollama.model_id) == (pb.LOCAL_PLACE_OLLAMA, "tiny-1b")
    assert (file.place, file.reference) == (pb.LOCAL_PLACE_FOLDER, f"file:{tmp_path}/ggufs/x.gguf")
    for model in (hf, ollama, file):
        version = await house.imported(model.reference, Path(model.folder))
        (again,) = [one for one in await house.found(*folders) if one.reference == model.reference]
        assert again.version == version.name
    with pytest.raises(InvalidArgument), translate_errors():
        await house.found(Path("relative"))
