"""The Registry over its contract, as the core's port `ModelRegistry`."""

from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import UTC

import grpc

from lares.registry.v1 import registry_pb2 as pb
from lares.registry.v1 import registry_pb2_grpc as rpc
from services.downloader.core.models import (
    Facts,
    Finding,
    Format,
    KnownModel,
    ListedVersion,
    ModelKind,
    ModelRecord,
    StoredFile,
    VersionRecord,
)
from services.kit.channels import translate_errors
from services.kit.errors import (
    LaresError,
    ModelExists,
    ModelNotAvailable,
    ModelNotFound,
    NotFound,
    Unavailable,
    VersionExists,
    VersionNotFound,
)
from services.kit.names import model_name, version_name

_PAGE_SIZE = 1000


class RegistryClient:
    """See `ModelRegistry`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._registry: rpc.RegistryServiceAsyncStub = rpc.RegistryServiceStub(channel)

    async def find_model(self, model_id: str) -> KnownModel | None:
        """The model of that id."""
        try:
            with translate_errors():
                answer = await self._registry.GetModel(pb.GetModelRequest(name=model_name(model_id)))
        except ModelNotFound:
            return None
        return KnownModel(model_id, answer.model.source)

    async def find_version(self, model_id: str, version_id: str) -> VersionRecord | None:
        """The version, if it is recorded and was not quarantined."""
        try:
            version = await self._version(version_name(model_id, version_id))
        except (ModelNotFound, VersionNotFound):
            return None
        if version.state != pb.VERSION_STATE_AVAILABLE:
            return None
        facts = Facts(ModelKind.UNSPECIFIED, Format(version.format), quantization=version.quantization)
        files = _files_from_proto(version.files)
        return VersionRecord(model_id, version_id, version.revision, version.source, facts, files)

    async def record(self, model: ModelRecord, version: VersionRecord, *, request_id: str) -> None:
        """Record both, and make the version the one that answers."""
        is_new = await self._create_model(model, f"{request_id}-model")
        try:
            was_mended = await self._create_version(version, f"{request_id}-version")
        except Unavailable:
            raise  # It will be tried again.
        except LaresError:
            if is_new:
                await self._drop_empty_model(model.model_id)
            raise
        # To mend an old version is not to choose it: the one that answers now goes on answering.
        if not is_new and not was_mended:
            await self._make_default(version)

    async def lease_files(self, version: str, artifact_id: str) -> tuple[StoredFile, ...]:
        """Files of a version, or of one of its artifacts."""
        found = await self._version(version)
        if found.state != pb.VERSION_STATE_AVAILABLE:
            raise ModelNotAvailable(f"{version} is quarantined: {found.state_reason}; pull the model again")
        if not artifact_id:
            return _files_from_proto(found.files)
        for artifact in found.artifacts:
            if artifact.artifact_id == artifact_id:
                return _files_from_proto(artifact.files)
        raise NotFound(f"{version} has no artifact '{artifact_id}'", metadata={"version": version})

    async def referenced(self) -> AsyncIterator[str]:
        """Digests of all files of all versions and artifacts."""
        async for version in self.list_versions():
            for file in version.all_files:
                yield file.digest

    async def list_versions(self) -> AsyncIterator[ListedVersion]:
        """Those of all models, page by page."""
        request = pb.ListVersionsRequest(parent="models/-", page_size=_PAGE_SIZE)
        while True:
            with translate_errors():
                page = await self._registry.ListVersions(request)
            for version in page.versions:
                yield _listed_version_from_proto(version)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def current_versions(self) -> Mapping[str, str]:
        """The version that answers to each model's name."""
        found: dict[str, str] = {}
        request = pb.ListModelsRequest(page_size=_PAGE_SIZE)
        while True:
            with translate_errors():
                page = await self._registry.ListModels(request)
            found |= {model.name: model.default_version for model in page.models}
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def quarantine(self, version: str, reason: str) -> None:
        """Have it served no more."""
        message = pb.Version(name=version, state=pb.VERSION_STATE_QUARANTINED, state_reason=reason)
        await self._update_version(message, "state", "state_reason")

    async def release(self, version: str, etag: str) -> None:
        """Have it served again."""
        message = pb.Version(name=version, state=pb.VERSION_STATE_AVAILABLE, etag=etag)
        await self._update_version(message, "state")

    async def delete_version(self, version: str, etag: str) -> None:
        """Delete its record."""
        with translate_errors():
            await self._registry.DeleteVersion(pb.DeleteVersionRequest(name=version, etag=etag))

    async def _update_version(self, version: pb.Version, *fields: str) -> None:
        request = pb.UpdateVersionRequest(version=version)
        request.update_mask.paths.extend(fields)
        with translate_errors():
            await self._registry.UpdateVersion(request)

    async def _version(self, name: str) -> pb.Version:
        with translate_errors():
            return (await self._registry.GetVersion(pb.GetVersionRequest(name=name))).version

    async def _create_model(self, model: ModelRecord, request_id: str) -> bool:
        """Whether it was not there before."""
        message = pb.Model(
            description=model.description,
            kind=pb.ModelKind.ValueType(model.facts.kind),
            capabilities=[pb.Capability.ValueType(each) for each in model.facts.capabilities],
            provider=model.provider,
            source=model.source,
            license=model.license,
            architecture=model.facts.architecture,
            num_parameters=model.facts.num_parameters,
            context_length=model.facts.context_length,
            languages=model.languages,
        )
        request = pb.CreateModelRequest(model_id=model.model_id, model=message, request_id=request_id)
        try:
            with translate_errors():
                await self._registry.CreateModel(request)
        except ModelExists:
            return False
        return True

    async def _create_version(self, version: VersionRecord, request_id: str) -> bool:
        """Whether it was there before, in quarantine."""
        request = pb.CreateVersionRequest(
            parent=model_name(version.model_id),
            version_id=version.version_id,
            version=pb.Version(
                kind=pb.VERSION_KIND_WEIGHTS,
                revision=version.revision,
                source=version.source,
                format=pb.Format.ValueType(version.facts.format),
                quantization=version.facts.quantization,
                files=_files_to_proto(version.files),
                findings=[_finding_to_proto(finding) for finding in version.findings],
            ),
            request_id=request_id,
        )
        try:
            with translate_errors():
                await self._registry.CreateVersion(request)
        except VersionExists:
            return await self._mend_version(version)
        return False

    async def _mend_version(self, version: VersionRecord) -> bool:
        """It is recorded already: quarantined, perhaps, and whole again now. Returns whether it was.

        Raises VersionExists for other files.
        """
        name = version_name(version.model_id, version.version_id)
        recorded = await self._version(name)
        # A later release may take more out of the same source, such as a signature; what was recorded stays.
        if not set(_files_from_proto(recorded.files)) <= set(version.files):
            raise VersionExists(
                f"{name} is recorded with other files than its source has now; delete it first, if that is meant"
            )
        if recorded.state == pb.VERSION_STATE_AVAILABLE:
            return False
        await self.release(name, recorded.etag)
        return True

    async def _make_default(self, version: VersionRecord) -> None:
        name = version_name(version.model_id, version.version_id)
        request = pb.UpdateModelRequest(
            model=pb.Model(name=model_name(version.model_id), default_version=name)
        )
        request.update_mask.paths.append("default_version")
        with translate_errors():
            await self._registry.UpdateModel(request)

    async def _drop_empty_model(self, model_id: str) -> None:
        """Nothing half-done is listed."""
        with translate_errors():
            await self._registry.DeleteModel(pb.DeleteModelRequest(name=model_name(model_id)))


def _listed_version_from_proto(version: pb.Version) -> ListedVersion:
    return ListedVersion(
        name=version.name,
        source=version.source,
        is_adapter=version.kind == pb.VERSION_KIND_ADAPTER,
        base=version.base_version,
        files=_files_from_proto(version.files),
        artifacts={each.artifact_id: _files_from_proto(each.files) for each in version.artifacts},
        is_quarantined=version.state != pb.VERSION_STATE_AVAILABLE,
        state_reason=version.state_reason,
        labels=dict(version.labels),
        create_time=version.create_time.ToDatetime(UTC),
        etag=version.etag,
    )


def _finding_to_proto(finding: Finding) -> pb.Finding:
    return pb.Finding(
        kind=pb.FindingKind.ValueType(finding.kind),
        severity=pb.FindingSeverity.ValueType(finding.severity),
        path=finding.path,
        message=finding.message,
    )


def _files_to_proto(files: Iterable[StoredFile]) -> list[pb.File]:
    return [pb.File(path=file.path, size_bytes=file.size_bytes, digest=file.digest) for file in files]


def _files_from_proto(files: Iterable[pb.File]) -> tuple[StoredFile, ...]:
    return tuple(StoredFile(file.path, file.size_bytes, file.digest) for file in files)
