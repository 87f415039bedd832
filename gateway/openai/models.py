"""The list of models."""

from typing import Literal

from gateway.openai.common import ResponseModel
from lares.registry.v1 import registry_pb2 as pb
from services.kit import names


class ModelDetails(ResponseModel):
    """What Lares knows beside OpenAI's fields. base_model: for an adapter, the model that it is applied to."""

    kind: str
    state: str
    size_bytes: int
    context_length: int | None
    capabilities: list[str]
    base_model: str | None


class ModelObject(ResponseModel):
    """A model, or a fine-tuned adapter, under the id that it is asked by."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    lares: ModelDetails


class ModelList(ResponseModel):
    """All that can be asked."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


def model_from_proto(model: pb.Model) -> ModelObject:
    """A model of the registry."""
    return ModelObject(
        id=names.parse_model_name(model.name),
        created=model.create_time.seconds,
        owned_by=model.provider or "lares",
        lares=ModelDetails(
            kind=plain_name(pb.ModelKind.Name(model.kind), "MODEL_KIND_"),
            state=plain_name(pb.ModelState.Name(model.state), "MODEL_STATE_"),
            size_bytes=model.size_bytes,
            context_length=model.context_length or None,
            capabilities=[plain_name(pb.Capability.Name(item), "CAPABILITY_") for item in model.capabilities],
            base_model=None,
        ),
    )


def adapter_from_proto(adapter: pb.Version, base: pb.Model) -> ModelObject:
    """An adapter, which does what its base does."""
    model_id, version_id = names.parse_version_name(adapter.name)
    of_base = model_from_proto(base).lares
    return ModelObject(
        id=f"{model_id}:{version_id}",
        created=adapter.create_time.seconds,
        owned_by="lares",
        lares=of_base.model_copy(
            update={
                "state": plain_name(pb.VersionState.Name(adapter.state), "VERSION_STATE_"),
                "size_bytes": adapter.size_bytes,
                "capabilities": [item for item in of_base.capabilities if item != "adapters"],
                "base_model": model_id,
            }
        ),
    )


def models_from_proto(models: list[pb.Model], versions: list[pb.Version]) -> ModelList:
    """Models that can be used, each followed by its adapters."""
    adapters: dict[str, list[pb.Version]] = {}
    for version in versions:
        if version.kind == pb.VERSION_KIND_ADAPTER and version.state == pb.VERSION_STATE_AVAILABLE:
            model_id, _ = names.parse_version_name(version.name)
            adapters.setdefault(names.model_name(model_id), []).append(version)
    data: list[ModelObject] = []
    for model in models:
        data.append(model_from_proto(model))
        data += [adapter_from_proto(adapter, model) for adapter in adapters.get(model.name, [])]
    return ModelList(data=data)


def plain_name(name: str, prefix: str) -> str:
    """An enum's value without its prefix: `MODEL_KIND_EMBEDDING` is `embedding`."""
    return name.removeprefix(prefix).lower()
