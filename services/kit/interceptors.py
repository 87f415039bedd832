"""What happens around every RPC: request id, admission, errors to status, metrics, one log line.

Servicers raise domain errors and never touch a status; this is the one place that does.
"""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from prometheus_client import Counter, Gauge, Histogram

from services.kit import context as request_context
from services.kit import status, tracing
from services.kit.errors import InternalError, LaresError

_log = structlog.get_logger("lares.access")

_TOTAL = Counter("lares_rpc_total", "RPCs served, by how they ended.", ["service", "method", "code"])
_SECONDS = Histogram(
    "lares_rpc_seconds",
    "How long RPCs took; a stream counts once, from its start to its end.",
    ["service", "method"],
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
_IN_FLIGHT = Gauge("lares_rpc_in_flight", "RPCs that are being served now.", ["service", "method"])

_OURS_TO_MEND = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS})
# Who hangs up has had enough.
_WENT_WELL = frozenset({grpc.StatusCode.OK, grpc.StatusCode.CANCELLED})
_CODES = {code.value[0]: code for code in grpc.StatusCode}

if TYPE_CHECKING:  # They are generic in their stubs only.
    Handler = grpc.RpcMethodHandler[Any, Any]
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Handler = grpc.RpcMethodHandler
    Context = grpc.aio.ServicerContext


@dataclass(slots=True)
class _Method:
    """One registered method: its labels, and its handler before and after wrapping."""

    service: str
    name: str
    handler: Handler
    wrapped: Handler

    @property
    def is_plumbing(self) -> bool:
        """Health checks and reflection: asked every few seconds, of interest to nobody who reads a log."""
        return self.service.startswith("grpc.")


class ServeInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler, of all four kinds. Only registered methods get here, so metric labels stay few."""

    def __init__(self, admit: Callable[[str], None] = lambda service: None) -> None:
        """admit: called with a service's full name; raises the domain error that turns a call away."""
        self._admit = admit
        self._methods: dict[str, _Method] = {}
        self._num_running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until no call is being served; health checks and reflection do not count."""
        await self._idle.wait()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The wrapped handler, or None for a method that nobody registered."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        return self.wrapped(handler_call_details.method, handler)

    def wrapped(self, path: str, handler: Handler) -> Handler:
        """What to call in its place. path: `/{service}/{method}`. Raises TypeError for one that is not async."""
        method = self._methods.get(path)
        if method is None or method.handler is not handler:
            _, service, name = path.split("/")
            method = _Method(service, name, handler, handler)
            method.wrapped = self._wrap(method)
            self._methods[path] = method
        return method.wrapped

    def _wrap(self, method: _Method) -> Handler:
        handler = method.handler
        behaviour: Any
        make: Callable[..., Handler]
        match handler.request_streaming, handler.response_streaming:
            case False, False:
                behaviour, make = handler.unary_unary, grpc.unary_unary_rpc_method_handler
            case False, True:
                behaviour, make = handler.unary_stream, grpc.unary_stream_rpc_method_handler
            case True, False:
                behaviour, make = handler.stream_unary, grpc.stream_unary_rpc_method_handler
            case _:
                behaviour, make = handler.stream_stream, grpc.stream_stream_rpc_method_handler
        if inspect.isasyncgenfunction(behaviour):
            wrapped = self._around_generator(method, behaviour)
        elif inspect.iscoroutinefunction(behaviour):
            wrapped = self._around_coroutine(method, behaviour)
        else:
            raise TypeError(
                f"{method.service}/{method.name} must be `async def`: a thread per call does not scale"
            )
        return make(
            wrapped,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _around_coroutine(self, method: _Method, behaviour: Any) -> Any:
        async def call(request: Any, context: Context) -> Any:
            async with self._observe(method, context):
                return await behaviour(request, context)

        return call

    def _around_generator(self, method: _Method, behaviour: Any) -> Any:
        # Writing here instead of yielding keeps the servicer's generator in our hands: when the client
        # leaves while a message is being written, gRPC would drop a generator unclosed, and its `finally`
        # would run some time later.
        async def call(request: Any, context: Context) -> None:
            async with self._observe(method, context), aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    await context.write(response)

        return call

    @asynccontextmanager
    async def _observe(self, method: _Method, context: Context) -> AsyncIterator[None]:
        request_id = request_context.bind_request(context.invocation_metadata() or ())
        started = time.perf_counter()
        code = grpc.StatusCode.OK
        in_flight = _IN_FLIGHT.labels(method.service, method.name)
        in_flight.inc()
        self._count(method, 1)
        span = None if method.is_plumbing else tracing.begin(f"{method.service}/{method.name}")
        try:
            await context.send_initial_metadata(((request_context.REQUEST_ID_KEY, request_id),))
            self._admit(method.service)
            yield
            code = _code_of(context)
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.AbortError:
            code = _code_of(context)
            raise
        except Exception as raised:
            error = _domain_error(raised, method, request_id)
            code = status.row_of(error).code
            await _abort(context, error)
        finally:
            seconds = time.perf_counter() - started
            in_flight.dec()
            self._count(method, -1)
            _TOTAL.labels(method.service, method.name, code.name).inc()
            _SECONDS.labels(method.service, method.name).observe(seconds)
            _log_access(method, code, seconds, context.peer())
            tracing.end(
                span,
                {
                    "rpc.system": "grpc",
                    "rpc.service": method.service,
                    "rpc.method": method.name,
                    "rpc.grpc.status_code": code.value[0],
                },
                failure="" if code in _WENT_WELL else code.name,
            )

    def _count(self, method: _Method, change: int) -> None:
        if method.is_plumbing:
            return
        self._num_running += change
        if self._num_running:
            self._idle.clear()
        else:
            self._idle.set()


def _code_of(context: Context) -> grpc.StatusCode:
    """What a handler of somebody else's set by hand. The aio context keeps it as a number."""
    code: Any = context.code()
    return code if isinstance(code, grpc.StatusCode) else _CODES.get(code or 0, grpc.StatusCode.UNKNOWN)


def _domain_error(raised: Exception, method: _Method, request_id: str) -> LaresError:
    if isinstance(raised, LaresError):
        error = raised
    elif isinstance(raised, grpc.RpcError):
        error = status.from_rpc_error(raised)
    else:
        # The caller gets an id to quote, the log gets the rest: a traceback is for us, and may hold what is
        # secret.
        error = InternalError(
            f"something broke inside Lares; its log has the details under request id {request_id}",
            metadata={"request_id": request_id},
        )
    if not isinstance(raised, LaresError) or isinstance(raised, InternalError):
        _log.error("rpc failed", service=method.service, method=method.name, exc_info=raised)
    return error


async def _abort(context: Context, error: LaresError) -> None:
    rpc_status = status.to_rpc_status(error)
    await context.abort(
        status.row_of(error).code,
        rpc_status.message,
        ((status.DETAILS_KEY, rpc_status.SerializeToString()),),
    )


def _log_access(method: _Method, code: grpc.StatusCode, seconds: float, peer: str) -> None:
    # What went well is in the metrics, and in the gateway's log where HTTP asked for it.
    went_well = method.is_plumbing or code in _WENT_WELL
    say = _log.error if code in _OURS_TO_MEND else _log.debug if went_well else _log.info
    say(
        "rpc",
        service=method.service,
        method=method.name,
        code=code.name,
        ms=round(seconds * 1000, 1),
        peer=peer,
    )
