"""What a name means: `smollm2`, `smollm2:my-adapter`, an alias, a resource name, or where it came from."""

from services.kit.errors import ModelNotAvailable, ModelNotFound, VersionNotFound
from services.kit.names import ModelRef, ServedName, parse_model_name, parse_version_name
from services.registry.core.models import Model, Resolution, Version, VersionKind, VersionState
from services.registry.core.ports import Records

FIELD = "reference"


def resolve(records: Records, reference: str) -> Resolution:
    """The model and the version to load.

    Raises InvalidReference, ModelNotFound, VersionNotFound, ModelNotAvailable.
    """
    model_id, version_id = _find(records, reference)
    model = records.model(model_id)
    if model is None:
        raise ModelNotFound.named(reference)
    version_id = version_id or model.default_version_id
    if not version_id:
        raise ModelNotAvailable(
            f"model '{model.id}' has no version yet; wait for its download, or pull it again",
            metadata={"model": model.id},
        )
    version = _servable(records, model, version_id)
    if version.kind is VersionKind.WEIGHTS:
        return Resolution(model, version)
    return Resolution(model, _servable(records, model, version.base_version_id), version)


def _find(records: Records, reference: str) -> tuple[str, str]:
    """(model id, version id); an empty version id stands for the default."""
    if reference.startswith("models/"):
        if "/versions/" in reference:
            return parse_version_name(reference, field=FIELD)
        return parse_model_name(reference, field=FIELD), ""
    ref = ModelRef.parse(reference, field=FIELD)
    if ref.served is not None:
        return _find_served(records, ref.served, reference)
    return _find_source(records, ref, reference)


def _find_served(records: Records, name: ServedName, reference: str) -> tuple[str, str]:
    holder = records.holder_of(name.model_id)
    if holder is None:
        raise ModelNotFound.named(reference)
    return holder, name.version_id or ""


def _find_source(records: Records, ref: ModelRef, reference: str) -> tuple[str, str]:
    """A pinned source means the version pulled from it; one that is not, what its model serves now."""
    versions = records.versions_from(str(ref))
    if versions:
        model_id, version_id = versions[0]
        return model_id, version_id if ref.revision else ""
    models = records.models_from(str(ref))
    if not models:
        raise ModelNotFound.named(reference)
    return models[0], ""


def _servable(records: Records, model: Model, version_id: str) -> Version:
    version = records.version(model.id, version_id)
    if version is None:
        raise VersionNotFound.named(model.id, version_id)
    if version.state is not VersionState.AVAILABLE:
        raise ModelNotAvailable(
            f"{version.name} is quarantined: {version.state_reason}; pull it again to repair it",
            metadata={"model": model.id, "version": version.id},
        )
    return version
