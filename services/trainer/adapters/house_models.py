"""Base models as the house's other services know them: the Registry resolves, the Downloader lends,
Inference converts.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration

from lares.inference.v1 import inference_pb2 as inference
from lares.inference.v1 import inference_pb2_grpc as inference_rpc
from lares.registry.v1 import registry_pb2 as registry
from lares.registry.v1 import registry_pb2_grpc as registry_rpc
from services.kit.channels import translate_errors
from services.kit.errors import (
    InvalidArgument,
    ModelNotAvailable,
    UnsupportedFormat,
    WrongModelKind,
)
from services.kit.leases import Leases
from services.kit.names import parse_model_name
from services.trainer.core.model import BaseModel

_log = structlog.get_logger(__name__)

_SAFETENSORS: Final = "safetensors"


class HouseModelSource:
    """The ModelSource port over stubs."""

    def __init__(self, channel: Callable[[str], grpc.aio.Channel], *, convert_timeout_s: float) -> None:
        """channel: of a service by its name."""
        self._channel = channel
        self._convert_timeout_s = convert_timeout_s

    async def resolve(self, reference: str) -> BaseModel:
        """As ModelSource.resolve."""
        with translate_errors():
            found = await registry_rpc.RegistryServiceStub(self._channel("registry")).ResolveModel(
                registry.ResolveModelRequest(reference=reference)
            )
        model, version = found.model, found.version
        if model.kind != registry.MODEL_KIND_TEXT_GENERATION:
            raise WrongModelKind(f"'{reference}' does not generate text; only models that do can be taught")
        if found.HasField("adapter"):
            raise InvalidArgument.at("job.base_model", "is an adapter; name the model that it was made on")
        if version.format not in (registry.FORMAT_SAFETENSORS, registry.FORMAT_GGUF):
            raise UnsupportedFormat(f"'{reference}' is neither safetensors nor GGUF; it cannot be taught")
        return BaseModel(
            reference=reference,
            model_id=parse_model_name(model.name),
            version=version.name,
            context_length=model.context_length,
            has_chat_template=registry.CAPABILITY_CHAT in model.capabilities,
        )

    @contextlib.asynccontextmanager
    async def hold(self, base: BaseModel) -> AsyncIterator[Path]:
        """As ModelSource.hold."""
        artifact_id = await self._artifact(base)
        async with Leases(self._channel("downloader"), "trainer").hold(base.version, artifact_id) as folder:
            yield folder

    async def _artifact(self, base: BaseModel) -> str:
        """The artifact to train on; empty for the version's own files. Has it made first if need be."""
        version = await self._version(base)
        if version.format == registry.FORMAT_SAFETENSORS:
            return ""
        if not _has_safetensors(version):
            await self._convert(base)
        return _SAFETENSORS

    async def _version(self, base: BaseModel) -> registry.Version:
        with translate_errors():
            found = await registry_rpc.RegistryServiceStub(self._channel("registry")).GetVersion(
                registry.GetVersionRequest(name=base.version)
            )
        return found.version

    async def _convert(self, base: BaseModel) -> None:
        """Let Inference load the model once: it converts what it loads, and records the artifact."""
        stub = inference_rpc.InferenceServiceStub(self._channel("inference"))
        try:
            async with asyncio.timeout(self._convert_timeout_s):
                with translate_errors():
                    watch = stub.WatchLoadedModels(inference.WatchLoadedModelsRequest())
                    try:
                        await stub.LoadModel(
                            inference.LoadModelRequest(model=base.reference, keep_alive=Duration())
                        )
                        async for change in watch:
                            if await self._is_converted(base, change.loaded_model):
                                return
                    finally:
                        watch.cancel()
        except TimeoutError:
            pass
        raise ModelNotAvailable(
            f"{base.version} could not be converted to safetensors; load it once, then try again"
        )

    async def _is_converted(self, base: BaseModel, loaded: inference.LoadedModel) -> bool:
        if loaded.version != base.version:
            return False
        if loaded.state == inference.LOADED_MODEL_STATE_FAILED:
            raise ModelNotAvailable(f"{base.version} could not be loaded: {loaded.failure_message}")
        return _has_safetensors(await self._version(base))


def _has_safetensors(version: registry.Version) -> bool:
    return any(artifact.artifact_id == _SAFETENSORS for artifact in version.artifacts)
