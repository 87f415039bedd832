"""What an operator asks of models, over a real port, with a real Registry beside it and real child processes."""

import json
import pickle
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from lares.downloader.v1 import downloader_pb2 as pb
from lares.downloader.v1 import downloader_pb2_grpc as rpc
from lares.registry.v1 import registry_pb2
from lares.registry.v1 import registry_pb2_grpc as registry_rpc
from services.downloader.service import build
from services.kit.address import Address
from services.kit.channels import translate_errors
from services.kit.errors import InvalidArgument, PermissionDenied
from services.kit.host import Host
from services.kit.server import GrpcServer
from services.kit.settings import Settings
from services.registry.service import build as build_registry
from tests.unit.services.downloader.adapters.test_pickle_scan import HARM
from tests.unit.services.downloader.adapters.test_signature_check import Signer, sha256
from tests.unit.services.downloader.core.test_headers import TENSOR, safetensors_bytes
from tests.unit.services.downloader.wheels import gguf_bytes

CONFIG = {"architectures": ["Qwen2ForCausalLM"], "max_position_embeddings": 4096, "auto_map": {"A": "m.A"}}


@dataclass
class House:
    """A downloader and a registry that run."""

    downloader: "rpc.DownloaderServiceAsyncStub"
    registry: "registry_rpc.RegistryServiceAsyncStub"

    async def create(self, source: str, model_id: str = "") -> pb.Download:
        with translate_errors():
            request = pb.CreateDownloadRequest(source=source, model_id=model_id)
            return (await self.downloader.CreateDownload(request)).download

    async def ended(self, download: pb.Download) -> pb.Download:
        async for message in self.downloader.WatchDownload(pb.WatchDownloadRequest(name=download.name)):
            download = message.download
        return download

    async def pull(self, source: str, model_id: str = "") -> pb.Download:
        return await self.ended(await self.create(source, model_id))

    async def version(self, download: pb.Download) -> registry_pb2.Version:
        request = registry_pb2.GetVersionRequest(name=download.version)
        return (await self.registry.GetVersion(request)).version

    async def model(self, download: pb.Download) -> registry_pb2.Model:
        return (await self.registry.GetModel(registry_pb2.GetModelRequest(name=download.model))).model


@asynccontextmanager
async def living(home: Path, **settings: object) -> AsyncIterator[House]:
    overrides = {f"downloader.{name}": value for name, value in settings.items()}
    host = Host(Settings(home=home, grpc=Address("127.0.0.1", 0)), overrides)
    server = GrpcServer(host, [build_registry, build])
    await server.start()
    try:
        yield House(
            rpc.DownloaderServiceStub(host.channel("downloader")),
            registry_rpc.RegistryServiceStub(host.channel("registry")),
        )
    finally:
        await server.stop(grace_s=1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with a model, and with things beside it that are none of a model's."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(safetensors_bytes({"w": TENSOR}))
    (folder / "pytorch_model.bin").write_bytes(HARM)
    (folder / "optimizer.pt").write_bytes(pickle.dumps({"step": 1}))
    (folder / "LICENSE").write_text("MIT License\n\nCopyright")
    return folder


def sign(folder: Path, edit: Callable[[dict[str, str]], None] = lambda digests: None) -> Path:
    """Put a model.sig there. Returns the file of the public key."""
    signer = Signer()
    digests = {
        path.name: sha256(path.read_bytes()) for path in sorted(folder.iterdir()) if path.name != "model.sig"
    }
    edit(digests)
    (folder / "model.sig").write_text(json.dumps(signer.bundle(signer.statement(digests))))
    key = folder.with_suffix(".pub")
    key.write_bytes(signer.pem)
    return key


async def test_what_was_noticed_is_recorded_with_the_version_and_a_pickle_is_not_kept(
    tmp_path: Path, source: Path
) -> None:
    async with living(tmp_path) as house:
        done = await house.pull(f"file:{source}")
        assert done.state == pb.DOWNLOAD_STATE_SUCCEEDED, done.failure
        version = await house.version(done)
        assert (await house.model(done)).license == "MIT"
    found = {finding.path: finding for finding in version.findings}
    harm = found["pytorch_model.bin"]
    assert (harm.kind, harm.severity) == (
        registry_pb2.FINDING_KIND_PICKLE,
        registry_pb2.FINDING_SEVERITY_DANGER,
    )
    assert "posix.system" in harm.message
    assert found["optimizer.pt"].severity == registry_pb2.FINDING_SEVERITY_INFO
    assert found["config.json"].kind == registry_pb2.FINDING_KIND_REMOTE_CODE
    assert version.findings[0] == harm
    assert {file.path for file in version.files} == {"LICENSE", "config.json", "model.safetensors"}
    stored = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert not any(HARM in path.read_bytes() for path in stored)


async def test_a_source_that_is_not_trusted_is_refused_before_it_is_asked(
    tmp_path: Path, source: Path
) -> None:
    async with living(tmp_path, trusted_sources=f"file:{source.parent}/*,pypi:llm-*") as house:
        for untrusted in ("hf:evil/x@main", "https://127.0.0.1:1/x.gguf", f"file:{source}/../../etc"):
            with pytest.raises(PermissionDenied, match=r"downloader\.trusted_sources"):
                await house.create(untrusted)
        assert (await house.pull(f"file:{source}")).state == pb.DOWNLOAD_STATE_SUCCEEDED
        listed = await house.downloader.ListDownloads(pb.ListDownloadsRequest())
        assert len(listed.downloads) == 1


async def test_a_download_that_goes_on_is_checked_against_the_settings_of_now(
    tmp_path: Path, source: Path
) -> None:
    async with living(tmp_path) as house:
        download = await house.create(f"file:{source}")
        await house.downloader.PauseDownload(pb.PauseDownloadRequest(name=download.name))
    async with living(tmp_path, trusted_sources="hf:*") as house:
        await house.downloader.ResumeDownload(pb.ResumeDownloadRequest(name=download.name))
        failed = await house.ended(download)
        assert (failed.state, failed.failure.reason) == (pb.DOWNLOAD_STATE_FAILED, "PERMISSION_DENIED")
        assert "downloader.trusted_sources" in failed.failure.message


async def test_only_licences_that_are_allowed_come_in(tmp_path: Path, source: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "m.gguf").write_bytes(gguf_bytes())
    async with living(tmp_path, licenses="apache-2.0") as house:
        for folder, told in (("tiny", "'MIT'"), ("bare", "neither its source nor its files say")):
            failed = await house.pull(f"file:{tmp_path / folder}")
            assert failed.failure.reason == "PERMISSION_DENIED"
            assert told in failed.failure.message
            assert "downloader.licenses: apache-2.0" in failed.failure.message
        listed = await house.registry.ListModels(registry_pb2.ListModelsRequest())
        assert not listed.models
    async with living(tmp_path, licenses="mit") as house:
        assert (await house.pull(f"file:{source}")).state == pb.DOWNLOAD_STATE_SUCCEEDED


async def test_a_signed_model_comes_in_with_its_signature_and_a_changed_one_does_not(
    tmp_path: Path, source: Path
) -> None:
    key = sign(source)
    async with living(tmp_path, trusted_keys=str(key), require_signature=True) as house:
        done = await house.pull(f"file:{source}")
        assert done.state == pb.DOWNLOAD_STATE_SUCCEEDED, done.failure
        version = await house.version(done)
        assert "model.sig" in {file.path for file in version.files}
        signed = [each for each in version.findings if each.kind == registry_pb2.FINDING_KIND_SIGNED]
        assert [each.message for each in signed] == ["the files are those that tiny.pub has signed"]
        (source / "config.json").write_text(json.dumps(CONFIG | {"max_position_embeddings": 1}))
        failed = await house.pull(f"file:{source}", "changed")
        assert failed.failure.reason == "DIGEST_MISMATCH"
        assert "config.json: not what was signed" in failed.failure.message


async def test_a_wrong_signature_is_refused_even_where_none_is_required(tmp_path: Path, source: Path) -> None:
    key = sign(source, lambda digests: digests.update({"model.safetensors": "0" * 64}))
    async with living(tmp_path, trusted_keys=str(key)) as house:
        failed = await house.pull(f"file:{source}")
        assert failed.failure.reason == "DIGEST_MISMATCH"
        (source / "model.sig").unlink()
        unsigned = await house.pull(f"file:{source}")
        assert unsigned.state == pb.DOWNLOAD_STATE_SUCCEEDED
        kinds = {finding.kind for finding in (await house.version(unsigned)).findings}
        assert registry_pb2.FINDING_KIND_UNSIGNED in kinds
    async with living(tmp_path, trusted_keys=str(key), require_signature=True) as house:
        failed = await house.pull(f"file:{source}", "again")
        assert "downloader.require_signature: the source has no signature" in failed.failure.message


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"require_signature": True}, "require_signature without trusted_keys"),
        ({"trusted_sources": "https://*/x"}, r"downloader\.trusted_sources"),
    ],
)
async def test_settings_that_would_refuse_everything_or_mean_nothing_are_refused_at_the_start(
    tmp_path: Path, settings: dict[str, object], told: str
) -> None:
    with pytest.raises(InvalidArgument, match=told):
        async with living(tmp_path, **settings):
            pass
