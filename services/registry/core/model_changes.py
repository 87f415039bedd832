"""What happens to models, each in one transaction. `settle` is where every change ends."""

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime

from services.kit.errors import EtagMismatch, FailedPrecondition, InvalidArgument, ModelExists, ModelNotFound
from services.registry.core.models import (
    Event,
    Model,
    ModelChange,
    ModelState,
    Version,
    VersionKind,
    VersionState,
)
from services.registry.core.ports import Records, RequestRecord
from services.registry.core.rules import check_model


def create_model(records: Records, draft: Model, request: RequestRecord, now: datetime) -> Model:
    """Record a model that has no version yet."""
    if repeats(records, request):
        return existing_model(records, draft.id)
    if records.holder_of(draft.id) == draft.id:
        raise ModelExists(
            f"model '{draft.id}' is registered already; `lares show {draft.id}` tells what it is"
        )
    _check_names_free(records, draft)
    model = settle(
        records, replace(draft, create_time=now), ModelChange.CREATED, records.next_sequence(), now
    )
    remember(records, request)
    return model


def update_model(records: Records, draft: Model, fields: Collection[str], now: datetime) -> Model:
    """Take `fields` from the draft. fields: of Model, those that may change."""
    model = existing_model(records, draft.id)
    check_etag(draft.etag, model.etag, model.name)
    changed = check_model(replace(model, **{name: getattr(draft, name) for name in fields}))
    if changed == model:
        return model
    _check_names_free(records, changed)
    if changed.default_version_id != model.default_version_id:
        _check_default(records, changed)
    return settle(records, changed, ModelChange.UPDATED, records.next_sequence(), now)


def delete_model(records: Records, model_id: str, etag: str, now: datetime) -> None:
    """Delete a model with all of its versions."""
    model = existing_model(records, model_id)
    check_etag(etag, model.etag, model.name)
    records.delete_model(model_id)
    records.append_event(Event(records.next_sequence(), ModelChange.DELETED, model, now))


def settle(records: Records, model: Model, change: ModelChange, sequence: int, now: datetime) -> Model:
    """Save a model with what follows from its versions, and tell those who watch."""
    default = records.version_header(model.id, model.default_version_id) if model.default_version_id else None
    model = replace(
        model,
        state=state_of(default),
        size_bytes=records.model_size_bytes(model.id),
        update_time=now,
        etag=str(sequence),
    )
    records.save_model(model)
    records.append_event(Event(sequence, change, model, now))
    return model


def state_of(default: Version | None) -> ModelState:
    """A model is what its default version is."""
    if default is None:
        return ModelState.PENDING
    return ModelState.AVAILABLE if default.state is VersionState.AVAILABLE else ModelState.QUARANTINED


def existing_model(records: Records, model_id: str) -> Model:
    """Raises ModelNotFound."""
    model = records.model(model_id)
    if model is None:
        raise ModelNotFound.named(model_id)
    return model


def check_etag(given: str, current: str, name: str) -> None:
    """Raises EtagMismatch, unless none is given."""
    if given and given != current:
        raise EtagMismatch(
            f"{name} was changed since you read it; read it again, then decide",
            metadata={"name": name, "etag": current},
        )


def repeats(records: Records, request: RequestRecord) -> bool:
    """Whether the request was carried out already. Raises InvalidArgument if another has its id."""
    done = records.request(request.request_id) if request.request_id else None
    if done is None:
        return False
    if done.fingerprint != request.fingerprint:
        raise InvalidArgument.at("request_id", "was used for a request that asked for something else")
    return True


def remember(records: Records, request: RequestRecord) -> None:
    """So that it is not carried out twice."""
    if request.request_id:
        records.save_request(request)


def _check_names_free(records: Records, model: Model) -> None:
    for name in (model.id, *model.aliases):
        holder = records.holder_of(name)
        if holder not in (None, model.id):
            raise ModelExists(
                f"the name '{name}' belongs to model '{holder}'; choose another, or take it from there",
                metadata={"name": name, "model": str(holder)},
            )


def _check_default(records: Records, model: Model) -> None:
    field = "model.default_version"
    if not model.default_version_id:
        raise InvalidArgument.at(field, "cannot be taken away; name another version")
    version = records.version_header(model.id, model.default_version_id)
    if version is None:
        raise InvalidArgument.at(field, f"'{model.default_version_id}' is no version of this model")
    if version.kind is not VersionKind.WEIGHTS:
        raise InvalidArgument.at(
            field, "must be a version of full weights; an adapter is named with its model"
        )
    if version.state is not VersionState.AVAILABLE:
        raise FailedPrecondition(
            f"{version.name} is quarantined ({version.state_reason}): it cannot be served"
        )
