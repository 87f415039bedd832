"""Models by name, from the Registry."""

import hashlib
from collections.abc import Iterable
from typing import Final

import grpc

from lares.registry.v1 import registry_pb2 as pb
from lares.registry.v1 import registry_pb2_grpc as rpc
from services.inference.core.models import Format, ModelKind, ModelVersion, ResolvedModel
from services.kit.channels import translate_errors
from services.kit.errors import FieldViolation, InvalidReference, ModelNotAvailable
from services.kit.names import parse_version_name

_KINDS: Final = {
    pb.MODEL_KIND_TEXT_GENERATION: ModelKind.TEXT_GENERATION,
    pb.MODEL_KIND_EMBEDDING: ModelKind.EMBEDDING,
    pb.MODEL_KIND_RERANKING: ModelKind.RERANKING,
}
_FORMATS: Final = {
    pb.FORMAT_SAFETENSORS: Format.SAFETENSORS,
    pb.FORMAT_GGUF: Format.GGUF,
    pb.FORMAT_PEFT: Format.PEFT,
}

# For a message: enough to choose from.
_NUM_NAMES_SHOWN = 5


class RegistryCatalog:
    """Implements the core's Catalog over the Registry's stub, and records what is made of a version."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = rpc.RegistryServiceStub(channel)

    async def resolve(self, name: str) -> ResolvedModel:
        """Raises InvalidReference, ModelNotFound, VersionNotFound, ModelNotAvailable, Unavailable."""
        try:
            with translate_errors():
                resolved = await self._stub.ResolveModel(pb.ResolveModelRequest(reference=name))
        except InvalidReference as error:
            # The registry calls it `reference`; our caller knows it as `model`.
            violations = [FieldViolation("model", violation.description) for violation in error.violations]
            raise InvalidReference(error.message, violations=violations, metadata=error.metadata) from error
        return resolved_model_from_proto(resolved)

    async def names_of_kind(self, kind: ModelKind) -> list[str]:
        """Some models that are available and do this."""
        kinds = [theirs for theirs, ours in _KINDS.items() if ours is kind]
        request = pb.ListModelsRequest(
            filter=pb.ModelFilter(kinds=kinds, states=[pb.MODEL_STATE_AVAILABLE]), page_size=_NUM_NAMES_SHOWN
        )
        with translate_errors():
            models = (await self._stub.ListModels(request)).models
        return [model.name.removeprefix("models/") for model in models]

    async def record_artifact(self, version: str, artifact: pb.Artifact) -> None:
        """Record a derived form; its bytes are in the store."""
        with translate_errors():
            await self._stub.CreateArtifact(pb.CreateArtifactRequest(parent=version, artifact=artifact))


def resolved_model_from_proto(resolved: pb.ResolveModelResponse) -> ResolvedModel:
    """Raises ModelNotAvailable for a version that is not served."""
    model, version = resolved.model, resolved.version
    model_id = model.name.removeprefix("models/")
    has_adapter = resolved.HasField("adapter")
    for found in [version, resolved.adapter] if has_adapter else [version]:
        if found.state != pb.VERSION_STATE_AVAILABLE:
            why = f": {found.state_reason}" if found.state_reason else ""
            raise ModelNotAvailable(f"{found.name or model_id} is not available{why}; `lares pull` it again")
    owner_id, version_id = parse_version_name(version.name)
    is_default = version.name == model.default_version
    return ResolvedModel(
        name=owner_id if is_default else f"{owner_id}:{version_id}",
        kind=_KINDS.get(model.kind, ModelKind.OTHER),
        version=version_from_proto(version),
        adapter=version_from_proto(resolved.adapter) if has_adapter else None,
        num_parameters=model.num_parameters,
    )


def version_from_proto(version: pb.Version) -> ModelVersion:
    """What Inference needs to know of it."""
    return ModelVersion(
        name=version.name,
        format=_FORMATS.get(version.format, Format.OTHER),
        size_bytes=sum(file.size_bytes for file in version.files),
        fingerprint=_fingerprint(version.files),
        artifact_ids=frozenset(artifact.artifact_id for artifact in version.artifacts),
    )


def _fingerprint(files: Iterable[pb.File]) -> str:
    lines = sorted(f"{file.path}\0{file.digest}" for file in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
