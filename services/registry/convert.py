"""Message <-> domain, in pairs. Names and enums are parsed here; what they may say is the core's business."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from enum import IntEnum
from typing import TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from lares.registry.v1 import registry_pb2 as pb
from services.kit.errors import InvalidArgument
from services.kit.names import parse_model_name, parse_version_name, version_name
from services.registry.core.models import (
    Artifact,
    Capability,
    Event,
    File,
    Finding,
    FindingKind,
    FindingSeverity,
    Format,
    Model,
    ModelFilter,
    ModelKind,
    ModelState,
    Perplexity,
    Resolution,
    Version,
    VersionKind,
    VersionState,
)
from services.registry.core.rules import MODEL_FIELDS, VERSION_FIELDS

E = TypeVar("E", bound=IntEnum)


def model_to_proto(model: Model) -> pb.Model:
    """As it is sent."""
    return pb.Model(
        name=model.name,
        display_name=model.display_name,
        description=model.description,
        kind=pb.ModelKind.ValueType(model.kind),
        capabilities=[pb.Capability.ValueType(capability) for capability in model.capabilities],
        provider=model.provider,
        source=model.source,
        license=model.license,
        architecture=model.architecture,
        num_parameters=model.num_parameters,
        context_length=model.context_length,
        languages=model.languages,
        labels=model.labels,
        state=pb.ModelState.ValueType(model.state),
        default_version=version_name(model.id, model.default_version_id) if model.default_version_id else "",
        size_bytes=model.size_bytes,
        create_time=time_to_proto(model.create_time),
        update_time=time_to_proto(model.update_time),
        etag=model.etag,
        aliases=model.aliases,
    )


def model_from_proto(message: pb.Model, model_id: str) -> Model:
    """What a client may set, of a model of that id. Raises InvalidArgument, InvalidReference."""
    return Model(
        id=model_id,
        display_name=message.display_name,
        description=message.description,
        kind=_enum(ModelKind, message.kind, "model.kind"),
        capabilities=_enums(Capability, message.capabilities, "model.capabilities"),
        provider=message.provider,
        source=message.source,
        license=message.license,
        architecture=message.architecture,
        num_parameters=message.num_parameters,
        context_length=message.context_length,
        languages=tuple(message.languages),
        labels=dict(message.labels),
        default_version_id=_sibling(message.default_version, model_id, "model.default_version"),
        etag=message.etag,
        aliases=tuple(message.aliases),
    )


def version_to_proto(version: Version) -> pb.Version:
    """As it is sent."""
    base = version_name(version.model_id, version.base_version_id) if version.base_version_id else ""
    return pb.Version(
        name=version.name,
        kind=pb.VersionKind.ValueType(version.kind),
        state=pb.VersionState.ValueType(version.state),
        revision=version.revision,
        source=version.source,
        format=pb.Format.ValueType(version.format),
        quantization=version.quantization,
        files=files_to_proto(version.files),
        base_version=base,
        artifacts=[artifact_to_proto(artifact) for artifact in version.artifacts],
        size_bytes=version.size_bytes,
        labels=version.labels,
        state_reason=version.state_reason,
        create_time=time_to_proto(version.create_time),
        update_time=time_to_proto(version.update_time),
        etag=version.etag,
        findings=[_finding_to_proto(finding) for finding in version.findings],
    )


def version_from_proto(message: pb.Version, model_id: str, version_id: str) -> Version:
    """What a client may set, of a version of that id. Raises InvalidArgument, InvalidReference."""
    return Version(
        model_id=model_id,
        id=version_id,
        kind=_enum(VersionKind, message.kind, "version.kind"),
        state=_enum(VersionState, message.state, "version.state"),
        revision=message.revision,
        source=message.source,
        format=_enum(Format, message.format, "version.format"),
        quantization=message.quantization,
        files=files_from_proto(message.files),
        base_version_id=_sibling(message.base_version, model_id, "version.base_version"),
        findings=tuple(
            _finding_from_proto(each, f"version.findings[{index}]")
            for index, each in enumerate(message.findings)
        ),
        labels=dict(message.labels),
        state_reason=message.state_reason,
        etag=message.etag,
    )


def _finding_to_proto(finding: Finding) -> pb.Finding:
    return pb.Finding(
        kind=pb.FindingKind.ValueType(finding.kind),
        severity=pb.FindingSeverity.ValueType(finding.severity),
        path=finding.path,
        message=finding.message,
    )


def _finding_from_proto(message: pb.Finding, field: str) -> Finding:
    return Finding(
        _enum(FindingKind, message.kind, f"{field}.kind"),
        _enum(FindingSeverity, message.severity, f"{field}.severity"),
        message.path,
        message.message,
    )


def artifact_to_proto(artifact: Artifact) -> pb.Artifact:
    """As it is sent."""
    return pb.Artifact(
        artifact_id=artifact.id,
        format=pb.Format.ValueType(artifact.format),
        quantization=artifact.quantization,
        files=files_to_proto(artifact.files),
        producer=artifact.producer,
        create_time=time_to_proto(artifact.create_time),
        perplexity=_perplexity_to_proto(artifact.perplexity) if artifact.perplexity is not None else None,
    )


def _perplexity_to_proto(perplexity: Perplexity) -> pb.Perplexity:
    return pb.Perplexity(
        value=perplexity.value,
        baseline=perplexity.baseline,
        text_digest=perplexity.text_digest,
        num_tokens=perplexity.num_tokens,
    )


def _perplexity_from_proto(message: pb.Perplexity) -> Perplexity:
    return Perplexity(message.value, message.baseline, message.text_digest, message.num_tokens)


def artifact_from_proto(message: pb.Artifact) -> Artifact:
    """What a client may set. Raises InvalidArgument."""
    return Artifact(
        id=message.artifact_id,
        format=_enum(Format, message.format, "artifact.format"),
        quantization=message.quantization,
        files=files_from_proto(message.files),
        producer=message.producer,
        perplexity=_perplexity_from_proto(message.perplexity) if message.HasField("perplexity") else None,
    )


def files_to_proto(files: Iterable[File]) -> list[pb.File]:
    """As they are sent."""
    return [pb.File(path=file.path, size_bytes=file.size_bytes, digest=file.digest) for file in files]


def files_from_proto(messages: Iterable[pb.File]) -> tuple[File, ...]:
    """As they came; the core checks them."""
    return tuple(File(message.path, message.size_bytes, message.digest) for message in messages)


def filter_from_proto(message: pb.ModelFilter) -> ModelFilter:
    """Raises InvalidArgument for a value that is not known."""
    return ModelFilter(
        kinds=_enums(ModelKind, message.kinds, "filter.kinds"),
        capabilities=_enums(Capability, message.capabilities, "filter.capabilities"),
        providers=tuple(message.providers),
        states=_enums(ModelState, message.states, "filter.states"),
        query=message.query,
    )


def resolution_to_proto(found: Resolution) -> pb.ResolveModelResponse:
    """As it is sent."""
    return pb.ResolveModelResponse(
        model=model_to_proto(found.model),
        version=version_to_proto(found.version),
        adapter=version_to_proto(found.adapter) if found.adapter else None,
    )


def event_to_proto(event: Event) -> pb.WatchModelsResponse:
    """As it is sent."""
    return pb.WatchModelsResponse(
        sequence=event.sequence,
        change=pb.ModelChange.ValueType(event.change),
        model=model_to_proto(event.model),
        event_time=time_to_proto(event.time),
    )


def model_fields(message: pb.Model, mask: FieldMask) -> Collection[str]:
    """The fields that an update is about: those of the mask; if it is empty, those that are set."""
    return mask.paths or _set_fields(message, MODEL_FIELDS)


def version_fields(message: pb.Version, mask: FieldMask) -> Collection[str]:
    """As `model_fields`."""
    return mask.paths or _set_fields(message, VERSION_FIELDS)


def parent_from_proto(parent: str) -> str | None:
    """The id in `models/{model}`, or None for `models/-`, which stands for all. Raises InvalidReference."""
    return None if parent == "models/-" else parse_model_name(parent, field="parent")


def time_to_proto(time: datetime) -> Timestamp:
    """time: aware."""
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp


def _set_fields(message: pb.Model | pb.Version, changeable: frozenset[str]) -> Sequence[str]:
    return [field.name for field, _ in message.ListFields() if field.name in changeable]


def _sibling(name: str, model_id: str, field: str) -> str:
    """The id of a version of the same model; empty for none."""
    if not name:
        return ""
    parent, version_id = parse_version_name(name, field=field)
    if parent != model_id:
        raise InvalidArgument.at(field, f"must be a version of models/{model_id}")
    return version_id


def _enum(enum: type[E], value: int, field: str) -> E:
    try:
        return enum(value)
    except ValueError as error:
        raise InvalidArgument.at(field, f"has no value {value}") from error


def _enums(enum: type[E], values: Iterable[int], field: str) -> tuple[E, ...]:
    return tuple(_enum(enum, value, f"{field}[{index}]") for index, value in enumerate(values))
