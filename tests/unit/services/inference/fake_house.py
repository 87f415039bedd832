"""A Registry and a Downloader over real gRPC that know folders of this machine:

what Inference needs of the house.
"""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from lares.downloader.v1 import downloader_pb2 as dpb
from lares.downloader.v1 import downloader_pb2_grpc as drpc
from lares.registry.v1 import registry_pb2 as rpb
from lares.registry.v1 import registry_pb2_grpc as rrpc
from services.kit.errors import DiskFull, ModelNotFound


class FakeHouse(rrpc.RegistryServiceServicer, drpc.DownloaderServiceServicer):
    """Models are added with `add`; blobs that are written land in `blobs`, an artifact becomes a folder of
    its own.
    """

    full_name = "lares.registry.v1.RegistryService"

    def __init__(self, root: Path) -> None:
        self._root = root
        self.models: dict[str, rpb.ResolveModelResponse] = {}
        self.folders: dict[tuple[str, str], Path] = {}
        self.blobs: dict[str, Path] = {}
        self.artifacts: dict[tuple[str, str], rpb.Artifact] = {}
        self.num_leases = 0
        self.is_full = False

    def add(
        self, name: str, folder: Path, kind: rpb.ModelKind.ValueType, file_format: rpb.Format.ValueType
    ) -> None:
        """A model with one version, `v1`; or, named `model:adapter`, an adapter of one that is here."""
        model_id, _, adapter_id = name.partition(":")
        version = self._version(f"models/{model_id}/versions/{adapter_id or 'v1'}", folder, file_format)
        if adapter_id:
            resolved = rpb.ResolveModelResponse(adapter=version)
            resolved.MergeFrom(self.models[model_id])
        else:
            model = rpb.Model(name=f"models/{model_id}", kind=kind, default_version=version.name)
            resolved = rpb.ResolveModelResponse(model=model, version=version)
        self.models[name] = resolved

    def _version(self, name: str, folder: Path, file_format: rpb.Format.ValueType) -> rpb.Version:
        self.folders[name, ""] = folder
        files = [
            rpb.File(path=path.name, size_bytes=path.stat().st_size, digest=f"sha256:{'0' * 64}")
            for path in sorted(folder.iterdir())
            if path.is_file()
        ]
        return rpb.Version(name=name, format=file_format, files=files, state=rpb.VERSION_STATE_AVAILABLE)

    def register(self, server: grpc.aio.Server) -> None:
        """Both services on one server."""
        rrpc.add_RegistryServiceServicer_to_server(self, server)
        drpc.add_DownloaderServiceServicer_to_server(self, server)

    async def start(self) -> None:
        """Nothing to open."""

    async def stop(self) -> None:
        """Nothing to close."""

    async def ResolveModel(self, request: rpb.ResolveModelRequest, context: Any) -> rpb.ResolveModelResponse:
        if request.reference not in self.models:
            raise ModelNotFound.named(request.reference)
        return self.models[request.reference]

    async def ListModels(self, request: rpb.ListModelsRequest, context: Any) -> rpb.ListModelsResponse:
        found = [resolved.model for resolved in self.models.values() if not resolved.HasField("adapter")]
        return rpb.ListModelsResponse(models=[model for model in found if model.kind in request.filter.kinds])

    async def CreateArtifact(
        self, request: rpb.CreateArtifactRequest, context: Any
    ) -> rpb.CreateArtifactResponse:
        folder = self._root / f"artifact-{len(self.folders)}"
        folder.mkdir()
        for file in request.artifact.files:
            (folder / file.path).symlink_to(self.blobs[file.digest])
        self.folders[request.parent, request.artifact.artifact_id] = folder
        self.artifacts[request.parent, request.artifact.artifact_id] = request.artifact
        return rpb.CreateArtifactResponse()

    async def CreateLease(self, request: dpb.CreateLeaseRequest, context: Any) -> dpb.CreateLeaseResponse:
        self.num_leases += 1
        folder = self.folders[request.version, request.artifact_id]
        return dpb.CreateLeaseResponse(lease=dpb.Lease(name=f"leases/{self.num_leases}", path=str(folder)))

    async def DeleteLease(self, request: dpb.DeleteLeaseRequest, context: Any) -> dpb.DeleteLeaseResponse:
        self.num_leases -= 1
        return dpb.DeleteLeaseResponse()

    async def WriteBlob(
        self, request_iterator: AsyncIterator[dpb.WriteBlobRequest], context: Any
    ) -> dpb.WriteBlobResponse:
        if self.is_full:
            raise DiskFull("no room for this")
        path, digest = self._root / f"blob-{len(self.blobs)}", hashlib.sha256()
        with path.open("wb") as out:
            async for part in request_iterator:
                digest.update(part.chunk)
                out.write(part.chunk)
        name = f"sha256:{digest.hexdigest()}"
        self.blobs[name] = path
        return dpb.WriteBlobResponse(digest=name, size_bytes=path.stat().st_size)
