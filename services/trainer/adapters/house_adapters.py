"""Adapters into the house: their bytes to the Downloader's store, their record to the Registry."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Final

import grpc

from lares.downloader.v1 import downloader_pb2 as downloads
from lares.downloader.v1 import downloader_pb2_grpc as downloads_rpc
from lares.registry.v1 import registry_pb2 as registry
from lares.registry.v1 import registry_pb2_grpc as registry_rpc
from services.kit.channels import translate_errors
from services.kit.errors import ModelNotFound, VersionNotFound
from services.kit.names import model_name, version_name
from services.trainer.adapters.checkpoint_files import ADAPTER_FILES
from services.trainer.core.model import Job
from services.trainer.core.ports import StoredFile

_CHUNK_BYTES: Final = 1024 * 1024


class HouseAdapterSink:
    """The AdapterSink port over stubs."""

    def __init__(self, channel: Callable[[str], grpc.aio.Channel]) -> None:
        """channel: of a service by its name."""
        self._channel = channel

    async def exists(self, model_id: str, adapter_id: str) -> bool:
        """As AdapterSink.exists."""
        try:
            with translate_errors():
                await self._registry().GetVersion(
                    registry.GetVersionRequest(name=version_name(model_id, adapter_id))
                )
        except (VersionNotFound, ModelNotFound):
            return False
        return True

    async def upload(self, folder: Path) -> Sequence[StoredFile]:
        """As AdapterSink.upload."""
        return [await self._write(folder / name) for name in ADAPTER_FILES]

    async def record(self, job: Job, files: Sequence[StoredFile]) -> str:
        """As AdapterSink.record."""
        request = registry.CreateVersionRequest(
            parent=model_name(job.base.model_id),
            version_id=job.spec.adapter_id,
            request_id=job.job_id,
            version=registry.Version(
                kind=registry.VERSION_KIND_ADAPTER,
                format=registry.FORMAT_PEFT,
                source=f"jobs/{job.job_id}",
                base_version=job.base.version,
                files=[
                    registry.File(path=file.path, size_bytes=file.size_bytes, digest=file.digest)
                    for file in files
                ],
            ),
        )
        with translate_errors():
            return (await self._registry().CreateVersion(request)).version.name

    async def discard(self, version: str) -> None:
        """As AdapterSink.discard."""
        with contextlib.suppress(VersionNotFound, ModelNotFound), translate_errors():
            await self._registry().DeleteVersion(registry.DeleteVersionRequest(name=version))

    async def _write(self, path: Path) -> StoredFile:
        # An adapter is a few megabytes, so that it is read whole.
        content = await asyncio.to_thread(path.read_bytes)
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"

        async def parts() -> AsyncIterator[downloads.WriteBlobRequest]:
            yield downloads.WriteBlobRequest(
                header=downloads.BlobHeader(size_bytes=len(content), digest=digest)
            )
            for start in range(0, len(content), _CHUNK_BYTES):
                yield downloads.WriteBlobRequest(chunk=content[start : start + _CHUNK_BYTES])

        with translate_errors():
            stub = downloads_rpc.DownloaderServiceStub(self._channel("downloader"))
            await stub.WriteBlob(parts())
        return StoredFile(path.name, len(content), digest)

    def _registry(self) -> "registry_rpc.RegistryServiceAsyncStub":
        return registry_rpc.RegistryServiceStub(self._channel("registry"))
