"""The standard health service, grpc.health.v1, of one process.

Ours and not grpcio's own: there, whoever watches holds the server up for the whole of its drain.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.kit.errors import NotFound

SERVICE_NAME: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

OVERALL = ""
"""The name under which the health of all services together is asked for."""

_Status = health_pb2.HealthCheckResponse
_messages: Any = health_pb2  # Its stubs lag behind: they do not know HealthListResponse.


class Health(health_pb2_grpc.HealthServicer):
    """Which services serve. Names are full names, such as `lares.registry.v1.RegistryService`."""

    def __init__(self) -> None:
        """At first, nothing is known and nothing serves."""
        self._serving: dict[str, bool] = {OVERALL: False}
        self._changed = asyncio.Event()
        self._draining = False

    def set(self, name: str, serving: bool) -> None:
        """Say whether a service serves; the overall health is set under OVERALL."""
        self._serving[name] = serving and not self._draining
        self._tell()

    def drain(self) -> None:
        """Nothing serves any more, for good. Watchers are told, and let go."""
        self._draining = True
        self._serving = dict.fromkeys(self._serving, False)
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """The health of one service now."""
        if request.service not in self._serving:
            raise NotFound(f"no service '{request.service}' is served here")
        return _Status(status=self._status_of(request.service))

    async def Watch(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        """The health of one service now and whenever it changes."""
        last = None
        while True:
            changed = self._changed
            now = self._status_of(request.service)
            if now != last:
                yield _Status(status=now)
                last = now
            if self._draining:
                return
            await changed.wait()

    async def List(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """The health of every service."""
        statuses = {name: _Status(status=self._status_of(name)) for name in self._serving}
        return _messages.HealthListResponse(statuses=statuses)

    def _status_of(self, name: str) -> Any:
        if name not in self._serving:
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if self._serving[name] else _Status.NOT_SERVING
