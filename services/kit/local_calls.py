"""Calls between the services of one process: gRPC's calls, interceptors and statuses, without sockets.

    local = LocalCalls(interceptor, max_message_bytes=...)
    local.add(handlers)                       what a servicer registers
    connect(endpoint, local=local)            stubs over this channel reach it directly

The same bytes cross as on the wire, so that neither side ever sees an object of the other's; HTTP/2 between two halves
of one process costs some ten times as much. Calls that stream requests are few, and stay on the wire.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc
import structlog

from services.kit.interceptors import ServeInterceptor

_log = structlog.get_logger(__name__)

# As HTTP/2's window: beyond it, a servicer that streams waits for its reader.
_WINDOW_BYTES: Final = 1024 * 1024

Pairs = Sequence[tuple[str, str | bytes]]

if TYPE_CHECKING:  # They are generic in their stubs only.
    Handler = grpc.RpcMethodHandler[Any, Any]
    Context = grpc.aio.ServicerContext[Any, Any]
    UnaryCall = grpc.aio.UnaryUnaryCall[Any, Any]
    StreamCall = grpc.aio.UnaryStreamCall[Any, Any]
else:
    Handler = grpc.RpcMethodHandler
    Context = grpc.aio.ServicerContext
    UnaryCall = grpc.aio.UnaryUnaryCall
    StreamCall = grpc.aio.UnaryStreamCall


class LocalCalls:
    """The methods of this process's services, and the calls to them that are running."""

    def __init__(self, interceptor: ServeInterceptor, *, max_message_bytes: int) -> None:
        self._interceptor = interceptor
        self._max_message_bytes = max_message_bytes
        self._generic: list[grpc.GenericRpcHandler] = []
        self._handlers: dict[str, Handler] = {}
        self._running: set[_Exchange] = set()

    def add(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Offer what these handle."""
        self._generic += handlers

    def unary_unary(self, over_wire: Any, method: str, *serializers: Any, **named: Any) -> Callable[..., Any]:
        """What a channel gives for a method with one answer. over_wire: what it gives for one that is not here."""
        return self._either(_UnaryCall, over_wire, method, *serializers, **named)

    def unary_stream(
        self, over_wire: Any, method: str, *serializers: Any, **named: Any
    ) -> Callable[..., Any]:
        """What a channel gives for a method with a stream of answers."""
        return self._either(_StreamCall, over_wire, method, *serializers, **named)

    async def cut_off(self) -> None:
        """End all calls, and wait until their servicers have cleaned up."""
        running = list(self._running)
        for exchange in running:
            exchange.end(grpc.StatusCode.UNAVAILABLE, "the service stopped")
        await asyncio.gather(
            *(exchange.task for exchange in running if exchange.task), return_exceptions=True
        )

    def _either(
        self,
        make: Callable[["_Exchange", Any], Any],
        over_wire: Any,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        **registered: Any,
    ) -> Callable[..., Any]:
        def call(request: Any, *, timeout: float | None = None, metadata: Pairs = (), **kwargs: Any) -> Any:
            handler = self._find(method)
            if handler is None:
                return over_wire(request, timeout=timeout, metadata=metadata, **kwargs)
            message = request_serializer(request) if request_serializer else request
            exchange = _Exchange(metadata, timeout, self._max_message_bytes)
            exchange.task = asyncio.create_task(self._serve(method, handler, message, exchange))
            self._running.add(exchange)
            exchange.task.add_done_callback(lambda _: self._running.discard(exchange))
            return make(exchange, response_deserializer)

        return call

    def _find(self, path: str) -> Handler | None:
        """The method `/{service}/{method}` as it was registered."""
        if path not in self._handlers:
            found = next(filter(None, (one.service(_Details(path)) for one in self._generic)), None)
            if found is None:
                return None
            self._handlers[path] = found
        return self._handlers[path]

    async def _serve(self, path: str, handler: Handler, message: bytes, exchange: "_Exchange") -> None:
        try:
            exchange.check_size(message)
            wrapped: Any = self._interceptor.wrapped(path, handler)
            exchange.serialize = wrapped.response_serializer
            request = wrapped.request_deserializer(message) if wrapped.request_deserializer else message
            if wrapped.response_streaming:
                await wrapped.unary_stream(request, exchange)
            else:
                await exchange.write(await wrapped.unary_unary(request, exchange))
            exchange.end_as_set()
        except grpc.aio.AbortError:
            exchange.end_as_set()
        except asyncio.CancelledError:
            exchange.end(grpc.StatusCode.CANCELLED, "the servicer was cancelled")
            raise
        except Exception as error:  # The interceptor's own: what a servicer raises has become a status in it.
            _log.exception("a local call broke", path=path)
            exchange.end(grpc.StatusCode.UNKNOWN, f"Unexpected {type(error).__name__}: {error}")


class _Details(grpc.HandlerCallDetails):
    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata = ()


class _Exchange(Context):
    """One call: what its two sides share. The servicer knows it as its context."""

    def __init__(self, metadata: Pairs, timeout_s: float | None, max_message_bytes: int) -> None:
        self.messages: deque[bytes] = deque()
        self.initial: Pairs | None = None
        self.status: grpc.StatusCode | None = None  # How it ended, once it has.
        self.text = ""
        self.trailing: Pairs = ()
        self.is_left = False  # By its caller.
        self.task: asyncio.Task[None] | None = None
        self.serialize: Callable[[Any], bytes] | None = None
        self._metadata = tuple(metadata)
        self._max_message_bytes = max_message_bytes
        self._num_unread_bytes = 0
        self._readers: list[asyncio.Future[None]] = []
        self._writer: asyncio.Future[None] | None = None
        # As the servicer sets them.
        self._code, self._details = grpc.StatusCode.OK, ""
        self._trailing: Pairs = ()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        if timeout_s is not None:
            late = grpc.StatusCode.DEADLINE_EXCEEDED
            self._timer = self._loop.call_later(timeout_s, self.end, late, "Deadline Exceeded")

    # What its caller uses.

    def news(self) -> asyncio.Future[None]:
        """Done when there is a message more, or initial metadata, or its end."""
        reader = self._loop.create_future()
        self._readers.append(reader)
        return reader

    def take(self) -> bytes:
        """The next of the messages."""
        message = self.messages.popleft()
        self._num_unread_bytes -= len(message)
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)
        return message

    def leave(self) -> bool:
        """Cancel it. Returns whether it was running."""
        was_running = self.end(grpc.StatusCode.CANCELLED, "the caller left")
        self.is_left |= was_running
        return was_running

    def abandon(self) -> None:
        """Leave it from any thread: a call may be collected in one that has nothing to do with it."""
        if self.status is None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.leave)

    def end(self, code: grpc.StatusCode, text: str = "", trailing: Pairs = ()) -> bool:
        """It ends so, unless it has; a servicer that still answers is cancelled. Returns whether it was running."""
        if self.status is not None:
            return False
        self.status, self.text, self.trailing = code, text, trailing
        if self._timer is not None:
            self._timer.cancel()
        self._tell()
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()
        return True

    def end_as_set(self) -> None:
        """It ends as its servicer says."""
        self.end(self._code, self._details, self._trailing)

    def _tell(self) -> None:
        readers, self._readers = self._readers, []
        for reader in readers:
            if not reader.done():
                reader.set_result(None)

    def check_size(self, message: bytes) -> None:
        """Raise AbortError for a message beyond the limit, as gRPC does."""
        if len(message) > self._max_message_bytes:
            self._code = grpc.StatusCode.RESOURCE_EXHAUSTED
            self._details = f"message larger than max ({len(message)} vs. {self._max_message_bytes})"
            raise grpc.aio.AbortError(self._details)

    # What a servicer uses: gRPC's ServicerContext.

    async def read(self) -> Any:
        raise grpc.aio.UsageError("a call that streams requests is not local")

    async def write(self, message: Any) -> None:
        data = self.serialize(message) if self.serialize else message
        self.check_size(data)
        while self._num_unread_bytes > _WINDOW_BYTES:
            self._writer = self._loop.create_future()
            await self._writer
        self.messages.append(data)
        self._num_unread_bytes += len(data)
        self._tell()

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        self.initial = tuple(initial_metadata)
        self._tell()

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        self._code, self._details, self._trailing = code, details, tuple(trailing_metadata)
        raise grpc.aio.AbortError(details)

    async def abort_with_status(self, status: Any) -> NoReturn:
        await self.abort(status.code, status.details, status.trailing_metadata)

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self._trailing = tuple(trailing_metadata)

    def invocation_metadata(self) -> Any:
        return self._metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = code

    def set_details(self, details: str) -> None:
        self._details = details

    def set_compression(self, compression: grpc.Compression) -> None:
        """Nothing is compressed."""

    def disable_next_message_compression(self) -> None:
        """Nothing is compressed."""

    def peer(self) -> str:
        return "local"

    def peer_identities(self) -> Iterable[bytes] | None:
        return None

    def peer_identity_key(self) -> str | None:
        return None

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {}

    def time_remaining(self) -> Any:
        return None if self._timer is None else max(0.0, self._timer.when() - self._loop.time())

    def trailing_metadata(self) -> Any:
        return self._trailing

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def cancelled(self) -> bool:
        return self.status is grpc.StatusCode.CANCELLED

    def done(self) -> bool:
        return self.status is not None


class _Call:
    """The caller's side of both kinds: gRPC's Call. One that is dropped unfinished is cancelled, as gRPC's is."""

    def __init__(self, exchange: _Exchange, deserialize: Callable[[bytes], Any] | None) -> None:
        self._exchange = exchange
        self._deserialize = deserialize

    def __del__(self) -> None:
        self._exchange.abandon()

    def cancel(self) -> bool:
        return self._exchange.leave()

    def cancelled(self) -> bool:
        return self._exchange.cancelled()

    def done(self) -> bool:
        return self._exchange.done()

    def time_remaining(self) -> Any:
        return self._exchange.time_remaining()

    def add_done_callback(self, callback: Any) -> None:
        task = self._exchange.task
        assert task is not None
        task.add_done_callback(lambda _: callback(self))

    async def initial_metadata(self) -> grpc.aio.Metadata:
        while self._exchange.initial is None and not self.done():
            await self._wait()
        return grpc.aio.Metadata(*(self._exchange.initial or ()))

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        await self._ended()
        return grpc.aio.Metadata(*self._exchange.trailing)

    async def code(self) -> grpc.StatusCode:
        return await self._ended()

    async def details(self) -> str:
        await self._ended()
        return self._exchange.text

    async def wait_for_connection(self) -> None:
        """There is none to wait for."""

    async def _ended(self) -> grpc.StatusCode:
        while self._exchange.status is None:
            await self._wait()
        return self._exchange.status

    async def _wait(self) -> None:
        try:
            await self._exchange.news()
        except asyncio.CancelledError:
            self.cancel()
            raise

    async def _next(self) -> Any:
        """The next message, or EOF. Raises AioRpcError, or CancelledError after `cancel`."""
        exchange = self._exchange
        while not exchange.messages:
            if exchange.status is not None:
                return self._end()
            try:  # As `_wait`; this is where each token passes.
                await exchange.news()
            except asyncio.CancelledError:
                exchange.leave()
                raise
        if exchange.is_left:
            raise asyncio.CancelledError
        message = exchange.take()
        return self._deserialize(message) if self._deserialize else message

    def _end(self) -> Any:
        exchange = self._exchange
        if exchange.is_left:
            raise asyncio.CancelledError
        if exchange.status is None or exchange.status is grpc.StatusCode.OK:
            return grpc.aio.EOF
        initial, trailing = (
            grpc.aio.Metadata(*(exchange.initial or ())),
            grpc.aio.Metadata(*exchange.trailing),
        )
        raise grpc.aio.AioRpcError(exchange.status, initial, trailing, details=exchange.text)


class _UnaryCall(_Call, UnaryCall):
    def __await__(self) -> Generator[Any, None, Any]:
        return self._answer().__await__()

    async def _answer(self) -> Any:
        await self._ended()
        return await self._next()


class _StreamCall(_Call, StreamCall):
    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await self._next()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message

    read = _Call._next
