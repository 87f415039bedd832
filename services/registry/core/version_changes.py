"""What happens to versions, each in one transaction. Every change of a version is a change of its model."""

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime

from services.kit.errors import (
    AlreadyExists,
    InvalidArgument,
    ModelInUse,
    ModelNotAvailable,
    ResourceExhausted,
    VersionExists,
    VersionNotFound,
)
from services.registry.core.model_changes import check_etag, existing_model, remember, repeats, settle
from services.registry.core.models import Artifact, ModelChange, Version, VersionKind, VersionState
from services.registry.core.ports import Records, RequestRecord
from services.registry.core.rules import MAX_ARTIFACTS, check_version_update, size_of


def create_version(records: Records, draft: Version, request: RequestRecord, now: datetime) -> Version:
    """Record a version whose bytes are all verified. The first one of weights becomes the default."""
    if repeats(records, request):
        return existing_version(records, draft.model_id, draft.id)
    model = existing_model(records, draft.model_id)
    if records.version_header(draft.model_id, draft.id) is not None:
        raise VersionExists(f"model '{draft.model_id}' has a version '{draft.id}' already")
    if draft.kind is VersionKind.ADAPTER:
        _check_base(records, draft)
    sequence = records.next_sequence()
    version = replace(draft, create_time=now, update_time=now, serial=sequence, etag=str(sequence))
    records.insert_version(version)
    if version.kind is VersionKind.WEIGHTS and not model.default_version_id:
        model = replace(model, default_version_id=version.id)
    settle(records, model, ModelChange.UPDATED, sequence, now)
    remember(records, request)
    return version


def update_version(records: Records, draft: Version, fields: Collection[str], now: datetime) -> Version:
    """Take `fields` from the draft. fields: of Version, those that may change."""
    version = existing_version(records, draft.model_id, draft.id)
    check_etag(draft.etag, version.etag, version.name)
    changed = check_version_update(replace(version, **{name: getattr(draft, name) for name in fields}))
    return version if changed == version else _settle_version(records, changed, now)


def create_artifact(
    records: Records, model_id: str, version_id: str, draft: Artifact, now: datetime
) -> Version:
    """Record a derived form. The same once more changes nothing; other files raise AlreadyExists."""
    version = existing_version(records, model_id, version_id)
    for artifact in version.artifacts:
        if artifact.id == draft.id:
            if set(artifact.files) == set(draft.files):
                return version
            raise AlreadyExists(f"{version.name} has an artifact '{draft.id}' already, of other files")
    if len(version.artifacts) >= MAX_ARTIFACTS:
        raise ResourceExhausted(
            f"{version.name} has {MAX_ARTIFACTS} artifacts, which is the most it may have"
        )
    artifact = replace(draft, create_time=now)
    artifacts = tuple(sorted((*version.artifacts, artifact), key=lambda each: each.id))
    files = (*version.files, *(file for each in artifacts for file in each.files))
    records.insert_artifact(version, artifact)
    return _settle_version(records, replace(version, artifacts=artifacts, size_bytes=size_of(files)), now)


def delete_version(
    records: Records, model_id: str, version_id: str, etag: str, now: datetime, *, force: bool
) -> None:
    """Delete a version; with `force`, the adapters on it too. Raises ModelInUse if there are any."""
    model = existing_model(records, model_id)
    version = _existing_header(records, model_id, version_id)
    check_etag(etag, version.etag, version.name)
    adapters = records.adapters_on(model_id, version_id)
    if adapters and not force:
        shown = ", ".join(f"{model_id}:{adapter}" for adapter in adapters[:5])
        more = f" and {len(adapters) - 5} more" if len(adapters) > 5 else ""
        raise ModelInUse(
            f"{version.name} is the base of {shown}{more}; delete those first, or force it",
            metadata={"num_adapters": str(len(adapters))},
        )
    for adapter in adapters:
        records.delete_version(model_id, adapter)
    records.delete_version(model_id, version_id)
    if model.default_version_id == version_id:
        newest = records.newest_weights(model_id)
        model = replace(model, default_version_id=newest.id if newest else "")
    settle(records, model, ModelChange.UPDATED, records.next_sequence(), now)


def existing_version(records: Records, model_id: str, version_id: str) -> Version:
    """With its files. Raises ModelNotFound, VersionNotFound."""
    existing_model(records, model_id)
    version = records.version(model_id, version_id)
    if version is None:
        raise VersionNotFound.named(model_id, version_id)
    return version


def _existing_header(records: Records, model_id: str, version_id: str) -> Version:
    version = records.version_header(model_id, version_id)
    if version is None:
        raise VersionNotFound.named(model_id, version_id)
    return version


def _settle_version(records: Records, version: Version, now: datetime) -> Version:
    sequence = records.next_sequence()
    version = replace(version, update_time=now, etag=str(sequence))
    records.update_version(version)
    settle(records, existing_model(records, version.model_id), ModelChange.UPDATED, sequence, now)
    return version


def _check_base(records: Records, adapter: Version) -> None:
    field = "version.base_version"
    base = records.version_header(adapter.model_id, adapter.base_version_id)
    if base is None:
        raise InvalidArgument.at(field, f"'{adapter.base_version_id}' is no version of this model")
    if base.kind is not VersionKind.WEIGHTS:
        raise InvalidArgument.at(field, "must be a version of full weights, not an adapter")
    if base.state is not VersionState.AVAILABLE:
        raise ModelNotAvailable(
            f"{base.name} is quarantined ({base.state_reason}): nothing can be built on it"
        )
