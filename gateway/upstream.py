"""The five services as the gateway calls them: typed stubs, deadlines, and errors of our own tree."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Generic, TypeVar, cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lares.downloader.v1.downloader_pb2_grpc import DownloaderServiceStub
from lares.inference.v1.inference_pb2_grpc import InferenceServiceStub
from lares.registry.v1.registry_pb2_grpc import RegistryServiceStub
from lares.speech.v1.speech_pb2_grpc import SpeechServiceStub
from lares.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from services.kit import status
from services.kit.errors import InternalError
from services.kit.settings import SERVICES

FULL_NAMES = {name: f"lares.{name}.v1.{name.capitalize()}Service" for name in SERVICES}
"""What health calls each service."""

T = TypeVar("T")
Call = grpc.aio.UnaryStreamCall[Any, T] | grpc.aio.StreamStreamCall[Any, T]
"""What grpc.aio gives for a call that streams answers of type T."""


class Upstream:
    """Stubs over channels. channel: gives the channel to a service, by its short name."""

    def __init__(self, channel: Callable[[str], grpc.aio.Channel]) -> None:
        self.registry = RegistryServiceStub(channel("registry"))
        self.downloader = DownloaderServiceStub(channel("downloader"))
        self.inference = InferenceServiceStub(channel("inference"))
        self.speech = SpeechServiceStub(channel("speech"))
        self.trainer = TrainerServiceStub(channel("trainer"))
        self._channel = channel

    async def health(self, service: str, *, timeout_s: float) -> str:
        """How a service says it stands: `serving`, `not_serving`, `unknown`, or `unreachable` where none answers."""
        stub: Any = health_pb2_grpc.HealthStub(self._channel(service))  # Its type stubs know no methods.
        request = health_pb2.HealthCheckRequest(service=FULL_NAMES[service])
        try:
            answer = await stub.Check(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return "unknown" if error.code() is grpc.StatusCode.NOT_FOUND else "unreachable"
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)).lower()


async def unary(call: Awaitable[T]) -> T:
    """The answer of a unary call. Raises LaresError."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise status.from_rpc_error(error) from None


async def all_pages(fetch: Callable[[str], Awaitable[tuple[list[T], str]]]) -> list[T]:
    """Everything that a listing has. fetch: (page token) -> (a page, the next token; empty at the end)."""
    found, token = await fetch("")
    while token:
        more, token = await fetch(token)
        found += more
    return found


class EventStream(Generic[T]):
    """A stream of answers whose first has come: what is refused is refused before the HTTP answer begins."""

    def __init__(self, call: Call[T], first: T) -> None:
        self.first = first
        self._call = call

    @classmethod
    async def open(cls, call: Call[T]) -> "EventStream[T]":
        """Wait for the first answer. Raises LaresError; the call is over then."""
        try:
            first = await call.read()
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error) from None
        except BaseException:
            call.cancel()
            raise
        if first is grpc.aio.EOF:
            raise InternalError("a service ended a stream before its first event")
        return cls(call, cast(T, first))

    async def rest(self) -> AsyncGenerator[T, None]:
        """What comes after the first, until the end. Raises LaresError. Leaving it early cancels the call."""
        try:
            while (event := await self._call.read()) is not grpc.aio.EOF:
                yield cast(T, event)
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error) from None
        finally:
            self.cancel()

    def cancel(self) -> None:
        """End the call; nothing happens if it has ended."""
        self._call.cancel()


async def merged(streams: list[EventStream[T]]) -> AsyncGenerator[tuple[int, T], None]:
    """The rest of several streams as it comes, each event with the index of its stream. The first error ends all."""
    if len(streams) == 1:  # The usual case needs no queue and no task.
        async with aclosing(streams[0].rest()) as rest:
            async for event in rest:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, T] | BaseException | None] = asyncio.Queue(maxsize=64)

    async def pump(index: int, stream: EventStream[T]) -> None:
        try:
            async for event in stream.rest():
                await queue.put((index, event))
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    tasks = [asyncio.create_task(pump(i, stream)) for i, stream in enumerate(streams)]
    try:
        num_open = len(tasks)
        while num_open:
            match await queue.get():
                case None:
                    num_open -= 1
                case BaseException() as error:
                    raise error
                case item:
                    yield item
    finally:
        for task, stream in zip(tasks, streams, strict=True):
            task.cancel()
            stream.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
