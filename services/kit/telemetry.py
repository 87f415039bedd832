"""Logs, to stderr, and the Prometheus port. Call `configure_logging` once, first thing in a process.

    log = structlog.get_logger(__name__)
    log.info("model loaded", model=name, seconds=1.2)      # an event in plain words, facts as keys

Every line within a request carries its id. Values whose key names a secret are masked; that is the last line
of defence, not a licence: a secret has no business in a log call.
"""

import logging
import re
import sys
from typing import Any, TextIO

import prometheus_client
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from services.kit import context
from services.kit.address import Address
from services.kit.errors import FailedPrecondition

_SECRET = re.compile(
    r"(?i)(password|passwd|secret|api_?key|authorization|cookie|credential|access_?token|bearer)"
)

# No locals in tracebacks: they hold prompts and keys.
_TRACEBACKS = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)


def configure_logging(level: str = "info", log_format: str = "console") -> None:
    """Set up structlog and the standard library's logging to come out alike. Safe to call again."""
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_request_id,
        mask_secrets,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    as_json = log_format == "json"
    renderer: list[Processor] = (
        [_TRACEBACKS, structlog.processors.JSONRenderer(ensure_ascii=False)]
        if as_json
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    )
    handler = _StderrHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for chatty in ("httpx2", "httpcore2", "urllib3", "asyncio", "alembic"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what sys.stderr is now: a progress bar takes its place while it is drawn, to keep lines apart."""

    @property
    def stream(self) -> TextIO:
        """Where to write."""
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        """The constructor sets it; it stays what it is."""


def add_request_id(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Add the request id to a line. A structlog processor."""
    if (bound := context.request_id.get()) and "request_id" not in event:
        event["request_id"] = bound
    return event


def mask_secrets(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Mask the values of keys that name a secret, however deep in dicts and lists. A structlog processor."""
    return {key: _masked(key, value) for key, value in event.items()}


def _masked(key: str, value: Any) -> Any:
    if _SECRET.search(key):
        return "********"
    if isinstance(value, dict):
        return {inner: _masked(str(inner), item) for inner, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked("", item) for item in value]
    return value


class MetricsPort:
    """Prometheus metrics over HTTP, for a process that runs no gateway to serve them."""

    def __init__(self, address: Address) -> None:
        """address: where to listen; port 0 lets the system choose."""
        self.address = address
        self._server: Any = None

    async def start(self) -> None:
        """Open the port. Raises FailedPrecondition if it is taken."""
        try:
            self._server, _ = prometheus_client.start_http_server(self.address.port, self.address.host)
        except OSError as error:
            why = f"metrics cannot be served on {self.address}: {error.strerror}; set metrics to a free port"
            raise FailedPrecondition(why) from error
        self.address = Address(self.address.host, self._server.server_port)

    async def stop(self) -> None:
        """Close the port."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
