"""The rest of the house, as far as the Trainer sees it: a Registry and a Downloader in memory, over real
gRPC.
"""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from lares.downloader.v1 import downloader_pb2 as downloads
from lares.downloader.v1 import downloader_pb2_grpc as downloads_rpc
from lares.registry.v1 import registry_pb2 as registry
from lares.registry.v1 import registry_pb2_grpc as registry_rpc
from services.kit.errors import ModelNotFound, Unavailable, VersionExists, VersionNotFound
from services.kit.host import Host

Context = grpc.aio.ServicerContext[Any, Any]


class FakeRegistry(registry_rpc.RegistryServiceServicer):
    """Models and versions in memory."""

    full_name = "lares.registry.v1.RegistryService"

    def __init__(self) -> None:
        self.models: dict[str, registry.Model] = {}
        self.versions: dict[str, registry.Version] = {}
        self.requests: dict[str, str] = {}
        self.is_away = False

    def add(
        self, model_id: str, *, kind: Any = registry.MODEL_KIND_TEXT_GENERATION, context: int = 256
    ) -> None:
        """Record a model with one version of safetensors."""
        name = f"models/{model_id}"
        self.models[model_id] = registry.Model(
            name=name, kind=kind, context_length=context, capabilities=[registry.CAPABILITY_CHAT]
        )
        self.versions[f"{name}/versions/1"] = registry.Version(
            name=f"{name}/versions/1", kind=registry.VERSION_KIND_WEIGHTS, format=registry.FORMAT_SAFETENSORS
        )

    async def ResolveModel(
        self, request: registry.ResolveModelRequest, context: Context
    ) -> registry.ResolveModelResponse:
        model_id, _, adapter_id = request.reference.partition(":")
        model = self.models.get(model_id)
        if model is None:
            raise ModelNotFound.named(request.reference)
        version = self.versions[f"{model.name}/versions/1"]
        adapter = self.versions[f"{model.name}/versions/{adapter_id}"] if adapter_id else None
        return registry.ResolveModelResponse(model=model, version=version, adapter=adapter)

    async def GetVersion(
        self, request: registry.GetVersionRequest, context: Context
    ) -> registry.GetVersionResponse:
        if request.name not in self.versions:
            raise VersionNotFound(f"no {request.name}")
        return registry.GetVersionResponse(version=self.versions[request.name])

    async def CreateVersion(
        self, request: registry.CreateVersionRequest, context: Context
    ) -> registry.CreateVersionResponse:
        if self.is_away:
            raise Unavailable("the registry is away", retry_after_s=0.05)
        name = f"{request.parent}/versions/{request.version_id}"
        if self.requests.get(request.request_id) != name:
            if name in self.versions:
                raise VersionExists(f"{name} is there")
            self.requests[request.request_id] = name
            version = registry.Version(name=name)
            version.MergeFrom(request.version)
            version.name = name
            self.versions[name] = version
        return registry.CreateVersionResponse(version=self.versions[name])

    async def DeleteVersion(
        self, request: registry.DeleteVersionRequest, context: Context
    ) -> registry.DeleteVersionResponse:
        self.versions.pop(request.name, None)
        return registry.DeleteVersionResponse()

    def register(self, server: grpc.aio.Server) -> None:
        registry_rpc.add_RegistryServiceServicer_to_server(self, server)

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class FakeDownloader(downloads_rpc.DownloaderServiceServicer):
    """A folder to lend, and blobs in memory."""

    full_name = "lares.downloader.v1.DownloaderService"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs: dict[str, bytes] = {}
        self.leases: set[str] = set()
        self.num_leases = 0

    async def CreateLease(
        self, request: downloads.CreateLeaseRequest, context: Context
    ) -> downloads.CreateLeaseResponse:
        self.num_leases += 1
        name = f"leases/{self.num_leases}"
        self.leases.add(name)
        return downloads.CreateLeaseResponse(lease=downloads.Lease(name=name, path=str(self.folder)))

    async def DeleteLease(
        self, request: downloads.DeleteLeaseRequest, context: Context
    ) -> downloads.DeleteLeaseResponse:
        self.leases.discard(request.name)
        return downloads.DeleteLeaseResponse()

    async def WriteBlob(
        self, request_iterator: AsyncIterator[downloads.WriteBlobRequest], context: Context
    ) -> downloads.WriteBlobResponse:
        content = b"".join([request.chunk async for request in request_iterator])
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.blobs[digest] = content
        return downloads.WriteBlobResponse(digest=digest, size_bytes=len(content))

    def register(self, server: grpc.aio.Server) -> None:
        downloads_rpc.add_DownloaderServiceServicer_to_server(self, server)

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class House:
    """Both, to be built into one server with the Trainer."""

    def __init__(self, model_folder: Path) -> None:
        self.registry = FakeRegistry()  # type: ignore[abstract]
        self.downloader = FakeDownloader(model_folder)  # type: ignore[abstract]

    def build_registry(self, host: Host) -> FakeRegistry:
        return self.registry

    def build_downloader(self, host: Host) -> FakeDownloader:
        return self.downloader
