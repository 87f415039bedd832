"""The client of the Registry, against a real one."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from lares.registry.v1 import registry_pb2 as pb
from lares.registry.v1 import registry_pb2_grpc as rpc
from services.downloader.adapters.registry_client import RegistryClient
from services.downloader.core.models import (
    Capability,
    Facts,
    Finding,
    FindingKind,
    FindingSeverity,
    Format,
    KnownModel,
    ModelKind,
    ModelRecord,
    StoredFile,
    VersionRecord,
)
from services.kit.address import Address
from services.kit.errors import (
    EtagMismatch,
    InvalidArgument,
    ModelNotAvailable,
    NotFound,
    Unavailable,
    VersionExists,
    VersionNotFound,
)
from services.kit.host import Host
from services.kit.server import GrpcServer
from services.kit.settings import Settings
from services.registry.service import build

FACTS = Facts(ModelKind.TEXT_GENERATION, Format.GGUF, (Capability.CHAT,), "LlamaForCausalLM", 5, 2048, "Q4_1")
FILE = StoredFile("m.gguf", 7, "sha256:" + "a" * 64)
MODEL = ModelRecord("m", "pypi", "pypi:m==1", FACTS, license="MIT", languages=("en",))
VERSION = VersionRecord("m", "1", "1", "pypi:m==1", FACTS, (FILE,))


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    host = Host(Settings(home=tmp_path, grpc=Address("127.0.0.1", 0)))
    server = GrpcServer(host, [build])
    await server.start()
    yield host
    await server.stop(grace_s=1)


@pytest.fixture
def client(host: Host) -> RegistryClient:
    return RegistryClient(host.channel("registry"))


@pytest.fixture
def stub(host: Host) -> "rpc.RegistryServiceAsyncStub":
    return rpc.RegistryServiceStub(host.channel("registry"))


async def test_what_is_recorded_is_found(
    client: RegistryClient, stub: "rpc.RegistryServiceAsyncStub"
) -> None:
    assert await client.find_model("m") is None
    assert await client.find_version("m", "1") is None
    await client.record(MODEL, VERSION, request_id="r")
    await client.record(MODEL, VERSION, request_id="r")
    assert await client.find_model("m") == KnownModel("m", "pypi:m==1")
    found = await client.find_version("m", "1")
    assert found is not None
    assert found.files == (FILE,)
    assert await client.lease_files("models/m/versions/1", "") == (FILE,)
    assert [digest async for digest in client.referenced()] == [FILE.digest]
    model = (await stub.GetModel(pb.GetModelRequest(name="models/m"))).model
    assert (model.license, list(model.languages), model.num_parameters) == ("MIT", ["en"], 5)
    with pytest.raises(NotFound, match="no artifact"):
        await client.lease_files("models/m/versions/1", "safetensors")


async def test_the_version_that_was_pulled_last_is_the_one_that_answers(
    client: RegistryClient, stub: "rpc.RegistryServiceAsyncStub"
) -> None:
    await client.record(MODEL, VERSION, request_id="r1")
    await client.record(MODEL, replace(VERSION, version_id="2", revision="2"), request_id="r2")
    model = (await stub.GetModel(pb.GetModelRequest(name="models/m"))).model
    assert model.default_version == "models/m/versions/2"


async def test_a_quarantined_version_is_not_leased_and_is_mended_by_a_pull(
    client: RegistryClient, stub: "rpc.RegistryServiceAsyncStub"
) -> None:
    await client.record(MODEL, VERSION, request_id="r1")
    bad = pb.Version(name="models/m/versions/1", state=pb.VERSION_STATE_QUARANTINED, state_reason="zeroed")
    request = pb.UpdateVersionRequest(version=bad)
    request.update_mask.paths.extend(["state", "state_reason"])
    await stub.UpdateVersion(request)
    assert await client.find_version("m", "1") is None
    with pytest.raises(ModelNotAvailable, match="zeroed"):
        await client.lease_files("models/m/versions/1", "")
    await client.record(MODEL, VERSION, request_id="r2")
    assert await client.find_version("m", "1") is not None


async def test_what_was_noticed_is_recorded_with_the_version(
    client: RegistryClient, stub: "rpc.RegistryServiceAsyncStub"
) -> None:
    noticed = Finding.of(FindingKind.PICKLE, FindingSeverity.DANGER, "m.pkl", "it imports os.system")
    await client.record(MODEL, replace(VERSION, findings=(noticed,)), request_id="r")
    version = (await stub.GetVersion(pb.GetVersionRequest(name="models/m/versions/1"))).version
    (found,) = version.findings
    assert (found.kind, found.severity) == (pb.FINDING_KIND_PICKLE, pb.FINDING_SEVERITY_DANGER)
    assert (found.path, found.message) == ("m.pkl", "it imports os.system")


async def test_a_version_is_mended_by_a_pull_that_brings_more_than_was_recorded(
    client: RegistryClient,
) -> None:
    await client.record(MODEL, VERSION, request_id="r1")
    await client.quarantine("models/m/versions/1", "zeroed")
    signature = StoredFile("model.sig", 1, "sha256:" + "b" * 64)
    await client.record(MODEL, replace(VERSION, files=(FILE, signature)), request_id="r2")
    found = await client.find_version("m", "1")
    assert found is not None
    assert found.files == (FILE,)


async def test_a_version_with_other_files_is_never_replaced(client: RegistryClient) -> None:
    await client.record(MODEL, VERSION, request_id="r1")
    other = replace(VERSION, files=(replace(FILE, digest="sha256:" + "b" * 64),))
    with pytest.raises(VersionExists, match="other files"):
        await client.record(MODEL, other, request_id="r2")


async def test_a_version_that_is_refused_leaves_no_empty_model(client: RegistryClient) -> None:
    with pytest.raises(InvalidArgument):
        await client.record(MODEL, replace(VERSION, files=()), request_id="r")
    assert await client.find_model("m") is None


async def test_a_registry_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    host = Host(Settings(home=tmp_path, registry_endpoint="127.0.0.1:1"))
    with pytest.raises(Unavailable):
        await RegistryClient(host.channel("registry")).find_model("m")
    await host.close()


async def test_versions_are_listed_quarantined_released_and_deleted(client: RegistryClient) -> None:
    await client.record(MODEL, VERSION, request_id="r1")
    await client.record(MODEL, replace(VERSION, version_id="2", revision="2"), request_id="r2")
    first, second = [version async for version in client.list_versions()]
    assert (first.name, first.source, first.files) == ("models/m/versions/1", "pypi:m==1", (FILE,))
    assert (first.is_adapter, first.base, first.is_quarantined, first.size_bytes) == (False, "", False, 7)
    assert first.create_time <= second.create_time
    assert await client.current_versions() == {"models/m": second.name}
    await client.quarantine(first.name, "m.gguf is damaged")
    with pytest.raises(EtagMismatch):
        await client.release(first.name, first.etag)
    first, _ = [version async for version in client.list_versions()]
    assert (first.is_quarantined, first.state_reason) == (True, "m.gguf is damaged")
    await client.release(first.name, first.etag)
    assert await client.find_version("m", "1") is not None
    with pytest.raises(EtagMismatch):
        await client.delete_version(first.name, first.etag)
    await client.delete_version(first.name, "")
    assert await client.current_versions() == {"models/m": second.name}
    for work in (client.delete_version(first.name, ""), client.quarantine(first.name, "x")):
        with pytest.raises(VersionNotFound):
            await work


async def test_a_version_that_is_mended_does_not_become_the_one_that_answers(client: RegistryClient) -> None:
    await client.record(MODEL, VERSION, request_id="r1")
    await client.record(MODEL, replace(VERSION, version_id="2", revision="2"), request_id="r2")
    await client.quarantine("models/m/versions/1", "m.gguf is damaged")
    await client.record(MODEL, VERSION, request_id="r3")
    assert await client.find_version("m", "1") is not None
    assert await client.current_versions() == {"models/m": "models/m/versions/2"}


async def test_files_of_artifacts_are_listed_under_the_name_of_their_artifact(
    client: RegistryClient, stub: "rpc.RegistryServiceAsyncStub"
) -> None:
    await client.record(MODEL, VERSION, request_id="r1")
    file = pb.File(path="model.bin", size_bytes=3, digest="sha256:" + "c" * 64)
    artifact = pb.Artifact(artifact_id="int8", format=pb.FORMAT_SAFETENSORS, files=[file])
    await stub.CreateArtifact(pb.CreateArtifactRequest(parent="models/m/versions/1", artifact=artifact))
    (version,) = [version async for version in client.list_versions()]
    assert [each.path for each in version.all_files] == ["m.gguf", "int8/model.bin"]
    assert version.size_bytes == 10
    assert {digest async for digest in client.referenced()} == {FILE.digest, file.digest}
