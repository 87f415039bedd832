"""Outermost: request id, trace, metrics, one access-log line, and the boundary that no exception passes."""

import time

import structlog
from prometheus_client import Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.endpoint import ROUTE_KEY
from gateway.errors import ClientDisconnected, error_response
from services.kit import context, tracing

_log = structlog.get_logger("lares.http")

_REQUESTS = Counter("lares_http_requests_total", "HTTP requests answered.", ["method", "route", "status"])
_SECONDS = Histogram(
    "lares_http_seconds",
    "Time from a request's headers to the end of its answer.",
    ["method", "route"],
    buckets=(0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
_FIRST_BYTE_SECONDS = Histogram(
    "lares_http_first_byte_seconds",
    "Time from a request's headers to the start of its answer.",
    ["method", "route"],
    buckets=(0.002, 0.005, 0.02, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
_IN_FLIGHT = Gauge("lares_http_in_flight", "HTTP requests being answered.")

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
_CLIENT_CLOSED = 499


class Observe:
    """Wraps the whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, and tell of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send)
        with _IN_FLIGHT.track_inprogress():
            try:
                await self._app(scope, receive, exchange.send)
            except ClientDisconnected:
                exchange.status = _CLIENT_CLOSED
            except Exception as error:
                _log.exception("a request broke")
                if exchange.status is None:
                    await error_response(error, exchange.request_id)(scope, receive, exchange.send)
                else:
                    # Half an answer is out: the server breaks the connection, so that nobody takes it for whole.
                    raise
            finally:
                exchange.tell()


class _Exchange:
    """One request and its answer, as they are measured."""

    def __init__(self, scope: Scope, send: Send) -> None:
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        self.request_id = context.bind_request(headers)
        self.status: int | None = None
        self._span = None if scope["path"] in _QUIET else tracing.begin(scope["method"])
        self._scope = scope
        self._send = send
        self._start_s = time.perf_counter()
        self._first_byte_s: float | None = None

    async def send(self, message: Message) -> None:
        """Pass a message on, with the request id in its headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._first_byte_s = time.perf_counter() - self._start_s
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
        await self._send(message)

    def tell(self) -> None:
        """Count it and log it."""
        seconds = time.perf_counter() - self._start_s
        route = self._scope.get(ROUTE_KEY, "unmatched")
        method = self._scope["method"] if self._scope["method"] in _METHODS else "other"
        _REQUESTS.labels(method, route, str(self.status or _CLIENT_CLOSED)).inc()
        _SECONDS.labels(method, route).observe(seconds)
        if self._first_byte_s is not None:
            _FIRST_BYTE_SECONDS.labels(method, route).observe(self._first_byte_s)
        tracing.end(
            self._span,
            {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": self.status or _CLIENT_CLOSED,
            },
            name=f"{method} {route}",
            failure=str(self.status) if (self.status or 0) >= 500 else "",
        )
        if route not in _QUIET:
            _log.info(
                "http",
                method=method,
                path=self._scope["path"][:200],
                status=self.status or _CLIENT_CLOSED,
                ms=round(seconds * 1000, 1),
                request_id=self.request_id,
            )
