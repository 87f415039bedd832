"""A gRPC service without stubs, for the tests of the kit: requests and answers are bytes."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import grpc

from services.kit import context as request_context
from services.kit.errors import ModelNotFound
from services.kit.host import Host

NAME = "test.v1.Echo"


class Echo:
    """All four kinds of method, each with a way to fail. Make it with `Echo.build`, and it is a Service."""

    full_name = NAME

    def __init__(self, host: Host) -> None:
        self.host = host
        self.calls: list[str] = []
        self.cleaned_up = asyncio.Event()
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.starting = asyncio.Event()
        self.start_error: Exception | None = None
        self.num_flooded = 0

    def register(self, server: grpc.aio.Server) -> None:
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Server": grpc.unary_stream_rpc_method_handler(self.server_stream),
            "Client": grpc.stream_unary_rpc_method_handler(self.client_stream),
            "Both": grpc.stream_stream_rpc_method_handler(self.both),
            "Writer": grpc.unary_stream_rpc_method_handler(self.writer),
            "Sync": grpc.unary_unary_rpc_method_handler(lambda request, context: request),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))

    async def start(self) -> None:
        self.calls.append("start")
        self.starting.set()
        await self.may_start.wait()
        if self.start_error is not None:
            raise self.start_error

    async def stop(self) -> None:
        self.calls.append("stop")

    async def unary(self, request: bytes, context: Any) -> bytes:
        match request:
            case b"missing":
                raise ModelNotFound.named("x")
            case b"bug":
                raise ValueError("the password is hunter2")
            case b"ids":
                return f"{request_context.request_id.get()} {request_context.traceparent.get()}".encode()
            case b"deadline":
                return str(context.time_remaining()).encode()
            case b"peer":
                return str(context.peer()).encode()
            case b"abort":
                await context.abort(grpc.StatusCode.OUT_OF_RANGE, "by hand")
            case b"hang":
                await self.hang()
        return request

    async def hang(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.cleaned_up.set()

    async def server_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """So many messages; then, as the request says, an end, an error, a wait, or more without end."""
        count, _, then = request.decode().partition(" ")
        try:
            for number in range(int(count)):
                yield str(number).encode()
            match then:
                case "fail":
                    raise ModelNotFound.named("x")
                case "wait":
                    await asyncio.Event().wait()
                case "watch":
                    async for event in self.host.until_draining(self.news()):
                        yield event
                case "flood":
                    while True:
                        self.num_flooded += 1
                        yield b"x" * 100_000
        finally:
            self.cleaned_up.set()

    async def news(self) -> AsyncGenerator[bytes, None]:
        yield b"first"
        await asyncio.Event().wait()

    async def client_stream(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        parts = [part async for part in requests]
        if b"missing" in parts:
            raise ModelNotFound.named("x")
        return b"".join(parts)

    async def both(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            if request == b"missing":
                raise ModelNotFound.named("x")
            yield request

    async def writer(self, request: bytes, context: Any) -> None:
        await context.write(b"one")
        await context.write(b"two")


class EchoClient:
    """What a generated stub would be."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        path: Callable[[str], str] = f"/{NAME}/{{}}".format
        self.unary: Any = channel.unary_unary(path("Unary"))
        self.server: Any = channel.unary_stream(path("Server"))
        self.client: Any = channel.stream_unary(path("Client"))
        self.both: Any = channel.stream_stream(path("Both"))
        self.writer: Any = channel.unary_stream(path("Writer"))
        self.sync: Any = channel.unary_unary(path("Sync"))
        self.unknown: Any = channel.unary_unary(path("Unknown"))
