"""The command's connection to the services: one stub a service, over as few channels as their addresses allow."""

# The async stubs' classes are only in the types: an annotation must not look them up.
from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cached_property
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from lares.downloader.v1 import downloader_pb2_grpc
from lares.inference.v1 import inference_pb2_grpc
from lares.registry.v1 import registry_pb2_grpc
from lares.speech.v1 import speech_pb2_grpc
from lares.trainer.v1 import trainer_pb2_grpc
from services.kit.channels import connect, translate_errors
from services.kit.errors import LaresError, ServiceUnreachable
from services.kit.settings import Settings

T = TypeVar("T")


class Client:
    """The services, as the settings say where they are. Every failed call leaves the block as a LaresError."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
        if error is not None:
            self._explain(error)

    async def close(self) -> None:
        """Close the channels."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    async def checked(self, work: Callable[[Self], Awaitable[T]]) -> T:
        """Run something as `async with` would, without closing: a failed call is raised as a LaresError."""
        try:
            return await work(self)
        except (grpc.RpcError, LaresError) as error:
            self._explain(error)
            raise

    def _explain(self, error: BaseException) -> None:
        """Raise a failed call as a LaresError, and one that nobody answered with what to do about it."""
        try:
            with translate_errors():
                raise error
        except ServiceUnreachable as unreachable:
            raise ServiceUnreachable(
                f"no Lares answers at {self.settings.grpc}: start it with `lares up`, or say where it is with --grpc",
                metadata=unreachable.metadata,
            ) from None
        except LaresError as translated:
            if translated is not error:
                raise translated from None
        except BaseException:
            return

    def channel(self, service: str) -> grpc.aio.Channel:
        """The channel to a service, opened on first use."""
        endpoint = self.settings.endpoint(service)
        if endpoint not in self._channels:
            self._channels[endpoint] = connect(endpoint, max_message_bytes=self.settings.max_message_bytes)
        return self._channels[endpoint]

    def health(self, service: str) -> Any:
        """The health of the process that a service runs in."""
        return health_pb2_grpc.HealthStub(self.channel(service))

    @cached_property
    def registry(self) -> registry_pb2_grpc.RegistryServiceAsyncStub:
        """The Registry."""
        return registry_pb2_grpc.RegistryServiceStub(self.channel("registry"))

    @cached_property
    def downloader(self) -> downloader_pb2_grpc.DownloaderServiceAsyncStub:
        """The Downloader."""
        return downloader_pb2_grpc.DownloaderServiceStub(self.channel("downloader"))

    @cached_property
    def inference(self) -> inference_pb2_grpc.InferenceServiceAsyncStub:
        """Inference."""
        return inference_pb2_grpc.InferenceServiceStub(self.channel("inference"))

    @cached_property
    def speech(self) -> speech_pb2_grpc.SpeechServiceAsyncStub:
        """Speech."""
        return speech_pb2_grpc.SpeechServiceStub(self.channel("speech"))

    @cached_property
    def trainer(self) -> trainer_pb2_grpc.TrainerServiceAsyncStub:
        """The Trainer."""
        return trainer_pb2_grpc.TrainerServiceStub(self.channel("trainer"))
