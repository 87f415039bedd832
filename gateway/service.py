"""The gateway as a part of a process: uvicorn inside the caller's event loop, beside a gRPC server or alone."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator

import structlog
import uvicorn

from gateway.app import create_app
from gateway.connection import connection_class
from gateway.settings import GatewaySettings
from services.kit.address import Address
from services.kit.errors import FailedPrecondition
from services.kit.host import Host

_log = structlog.get_logger("lares.http")

_BACKLOG = 1024
_MAX_HEADER_BYTES = 64 * 1024
_TICK_S = 1.0
_SETTLE_S = 0.01
_FORCED_EXIT_S = 5.0
"""Beyond the drain timeout: what handlers that were cancelled get to clean up in."""


class GatewayService:
    """Listens on `settings.http`. A `Part` of `services.kit.process`: signals are the caller's."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._settings = host.load(GatewaySettings)
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self.bound: Address | None = None
        """Where it really listens, once it does: the system chooses for port 0."""

    async def start(self) -> None:
        """Return when it accepts connections. Raises FailedPrecondition if it cannot listen there."""
        address = self._host.settings.http
        listener = await _listen(address)
        app = create_app(
            self._host.channel, self._settings, on_loopback=address.is_loopback, draining=self._host.draining
        )
        config = uvicorn.Config(
            app,
            http=connection_class(self._settings.header_timeout_s, _MAX_HEADER_BYTES),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=self._settings.keep_alive_timeout_s,
            timeout_graceful_shutdown=max(1, round(self._host.settings.drain_timeout_s)),
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]), name="gateway")
        await self._server.accepting.wait()
        self.bound = Address(address.host, listener.getsockname()[1])
        _log.info("gateway listens", address=str(self.bound))

    async def stop(self) -> None:
        """Accept nothing more, let what is in flight end within the drain timeout, then cancel it."""
        if self._server is None or self._serving is None:
            return
        self._server.leave()
        done, _ = await asyncio.wait(
            {self._serving}, timeout=self._host.settings.drain_timeout_s + _FORCED_EXIT_S
        )
        if not done:
            self._serving.cancel()
            await asyncio.wait({self._serving})
        self._server = self._serving = None


def build(host: Host) -> GatewayService:
    """The gateway of a process."""
    return GatewayService(host)


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves signals alone and says when it accepts."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        """Begin to stop."""
        self.should_exit = True
        self._leaving.set()

    async def main_loop(self) -> None:
        """Once a second, for the date in the headers: uvicorn's own looks ten times as often whether it is to end."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._leaving.wait()
                    # A connection that was taken just now must be set up before its listener closes, which a timer
                    # comes after: asyncio drops it half-way otherwise.
                    await asyncio.sleep(_SETTLE_S)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()


async def _listen(address: Address) -> socket.socket:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, _, _, _, where = found[0]
        return _bind(family, where)
    except OSError as error:
        raise FailedPrecondition(
            f"the gateway cannot listen on {address}: {error.strerror or error}; free it, or set another"
            " with --http or LARES_HTTP"
        ) from error


def _bind(family: int, where: tuple[object, ...]) -> socket.socket:
    # asyncio switches Nagle's algorithm off only for a socket that says it is TCP, which `socket.create_server`
    # leaves out: every answer would wait 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
