"""A gRPC server with any number of services in it, from an open port to a clean end.

host = Host(settings, overrides)
server = GrpcServer(host, [registry.build, downloader.build])
await run_until_signalled(host, server)
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.kit.address import Address
from services.kit.errors import FailedPrecondition, ServiceDraining, ServiceStarting
from services.kit.health import OVERALL, Health
from services.kit.health import SERVICE_NAME as HEALTH_NAME
from services.kit.host import Host, Service
from services.kit.interceptors import ServeInterceptor
from services.kit.local_calls import LocalCalls

__all__ = ["Build", "GrpcServer", "Host", "Service"]

Build = Callable[[Host], Service]

_log = structlog.get_logger(__name__)

# For the last answers to leave, after their handlers are done.
_FLUSH_S = 1.0


class GrpcServer:
    """Make it inside a running event loop; then `start`, then `stop`, once each."""

    def __init__(self, host: Host, builds: Iterable[Build], *, address: Address | None = None) -> None:
        """Take the port, then build the services, which may ask the host for channels to each other.

        address: where to listen, unless at `settings.grpc`; port 0 lets the system choose. Raises
        FailedPrecondition when the port is taken, and what a `build` raises.
        """
        self._host = host
        self._health = Health()
        self._stopped: asyncio.Task[None] | None = None
        self._calls = ServeInterceptor(self._admit)
        self._server = grpc.aio.server(
            interceptors=[self._calls], options=_options(host.settings.max_message_bytes)
        )
        self.address = self._bind(address or host.settings.grpc)
        self._local = LocalCalls(self._calls, max_message_bytes=host.settings.max_message_bytes)
        host.bound, host.local = self.address, self._local
        self._ready: set[str] = set()
        self._services: list[tuple[Service, tuple[str, ...]]] = []
        self._started: list[Service] = []
        for build in builds:
            self._add(build(host))
        self._add_plumbing()

    def _bind(self, wanted: Address) -> Address:
        try:
            port = self._server.add_insecure_port(str(wanted))
        except RuntimeError as error:
            raise FailedPrecondition(
                f"cannot listen on {wanted}: it is taken, perhaps by a Lares that runs already, or is no"
                f" address of this machine; stop what holds it, or set grpc (LARES_GRPC) to another"
            ) from error
        return Address(wanted.host, port)

    def _add(self, service: Service) -> None:
        registrar = _Registrar(self._server, self._local)
        service.register(registrar)
        names = tuple(dict.fromkeys([service.full_name, *registrar.names]))
        self._services.append((service, names))
        for name in names:
            self._health.set(name, False)

    def _add_plumbing(self) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._ready.update((HEALTH_NAME, reflection.SERVICE_NAME))
        names = [name for _, names in self._services for name in names]
        reflection.enable_server_reflection([*names, HEALTH_NAME, reflection.SERVICE_NAME], self._server)

    def _admit(self, service: str) -> None:
        if service in (HEALTH_NAME, reflection.SERVICE_NAME):
            return
        if self._host.draining.is_set():
            raise ServiceDraining("the service is stopping; try another, or again when it is back")
        if service not in self._ready:
            raise ServiceStarting("the service is starting; try again in a moment")

    async def start(self) -> None:
        """Accept calls, then start the services in turn; each is SERVING as soon as it has started.

        Whatever one raises ends all of it, and is raised here.
        """
        try:
            await self._server.start()
            for service, names in self._services:
                await service.start()
                self._started.append(service)
                self._ready.update(names)
                for name in names:
                    self._health.set(name, True)
        except BaseException:
            await self.stop(grace_s=0)
            raise
        self._health.set(OVERALL, True)
        _log.info(
            "serving",
            address=str(self.address),
            services=[service.full_name for service, _ in self._services],
        )

    async def stop(self, grace_s: float | None = None) -> None:
        """NOT_SERVING, no new calls, time for those that run, then the services, last started first.

        grace_s: how long running calls get, `settings.drain_timeout_s` unless given. Stopping again waits
        for the first.
        """
        if self._stopped is None:
            grace_s = self._host.settings.drain_timeout_s if grace_s is None else grace_s
            self._stopped = asyncio.create_task(self._stop(grace_s))
        await asyncio.shield(self._stopped)

    async def _stop(self, grace_s: float) -> None:
        self._host.draining.set()
        self._health.drain()
        # gRPC's own grace answers new calls with a bare CANCELLED, health checks too. So the server stays
        # open while it drains, turns calls away with what they should know, and is stopped when the last one
        # has ended.
        try:
            async with asyncio.timeout(grace_s):
                await self._calls.wait_idle()
        except TimeoutError:
            _log.warning("calls were cut off", address=str(self.address), after_s=grace_s)
            await self._local.cut_off()
            await self._server.stop(None)
        else:
            await self._server.stop(_FLUSH_S)
        while self._started:
            service = self._started.pop()
            try:
                await service.stop()
            except Exception:  # The others still want to close their databases.
                _log.exception("service did not stop cleanly", service=service.full_name)
        await self._host.close()
        _log.info("stopped", address=str(self.address))


class _Registrar(grpc.aio.Server):
    """Stands in for the server while a service registers, to learn what it registers."""

    def __init__(self, server: grpc.aio.Server, local: LocalCalls) -> None:
        self._server = server
        self._local = local
        self.names: list[str] = []

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        handlers = tuple(generic_rpc_handlers)
        self.names += [h.service_name() for h in handlers if isinstance(h, grpc.ServiceRpcHandler)]
        self._server.add_generic_rpc_handlers(handlers)
        self._local.add(handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Any) -> None:
        self._server.add_registered_method_handlers(service_name, method_handlers)

    def add_insecure_port(self, address: str) -> int:
        raise NotImplementedError("a service does not open ports")

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        raise NotImplementedError("a service does not open ports")

    async def start(self) -> None:
        raise NotImplementedError("a service does not start its server")

    async def stop(self, grace: float | None) -> None:
        raise NotImplementedError("a service does not stop its server")

    async def wait_for_termination(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - gRPC's
        raise NotImplementedError("a service does not wait for its server")


def _options(max_message_bytes: int) -> Sequence[tuple[str, Any]]:
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # Clients of ours ping every 30 s; one that does so much more often is sent away.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        # Two processes on one port would each get some of the calls, and nobody would know why.
        ("grpc.so_reuseport", 0),
    ]
