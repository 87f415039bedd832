"""What a process gives the services that run in it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import Protocol, TypeVar

import grpc

from services.kit.address import Address
from services.kit.channels import connect
from services.kit.errors import ServiceDraining
from services.kit.local_calls import LocalCalls
from services.kit.settings import Settings, SettingsModel, load_settings

S = TypeVar("S", bound=SettingsModel)
T = TypeVar("T")


class Service(Protocol):
    """One service. `services/<name>/service.py` exports `def build(host: Host) -> Service`."""

    full_name: str
    """Of its gRPC service, such as `lares.registry.v1.RegistryService`; of the first, if it has several."""

    def register(self, server: grpc.aio.Server) -> None:
        """Add its servicers, with the generated `add_..._to_server`."""

    async def start(self) -> None:
        """Open what must be open before calls come. Quick: models are loaded when they are asked for."""

    async def stop(self) -> None:
        """Close it again. No call is running any more."""


class Host:
    """Settings, channels to the other services, and the word that it is time to go."""

    settings: Settings
    draining: asyncio.Event
    """Set when the process begins to stop: streams that would last for ever end with ServiceDraining."""

    bound: Address | None
    """Where this process's gRPC server really listens, once it does."""

    local: LocalCalls | None
    """What answers there, callable without the network."""

    def __init__(self, settings: Settings, overrides: Mapping[str, object] | None = None) -> None:
        """overrides: what the command line gave, by dotted key; those of services are read by `load`."""
        self.settings = settings
        self.draining = asyncio.Event()
        self.bound = None
        self.local = None
        self._overrides = dict(overrides or {})
        self._channels: dict[str, grpc.aio.Channel] = {}

    def load(self, cls: type[S]) -> S:
        """A service's own settings. Raises InvalidArgument."""
        return load_settings(cls, {**self._overrides, "home": self.settings.home})

    def endpoint(self, service: str) -> str:
        """Where a service answers: its own endpoint if the settings name one, else this process."""
        configured = self.settings.endpoint(service)
        if self.bound is not None and configured == str(self.settings.grpc.reachable):
            return str(self.bound.reachable)
        return configured

    def channel(self, service: str) -> grpc.aio.Channel:
        """A channel to a service, shared by all who ask; to one that runs in this very process, without sockets."""
        endpoint = self.endpoint(service)
        if endpoint not in self._channels:
            is_here = self.bound is not None and endpoint == str(self.bound.reachable)
            self._channels[endpoint] = connect(
                endpoint,
                max_message_bytes=self.settings.max_message_bytes,
                local=self.local if is_here else None,
            )
        return self._channels[endpoint]

    async def until_draining(self, events: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """Pass events on; raise ServiceDraining when the process begins to stop. Always closes `events`.

        For streams that wait for news, such as `Watch...`. A stream that has an end of its own is let finish.
        """
        drained = asyncio.ensure_future(self.draining.wait())
        upcoming: asyncio.Future[T] | None = None
        try:
            while True:
                upcoming = asyncio.ensure_future(anext(events))
                await asyncio.wait({upcoming, drained}, return_when=asyncio.FIRST_COMPLETED)
                if not upcoming.done():
                    raise ServiceDraining("the service is stopping; connect again to go on watching")
                try:
                    event = upcoming.result()
                except StopAsyncIteration:
                    return
                yield event
        finally:
            drained.cancel()
            if upcoming is not None and not upcoming.done():
                upcoming.cancel()
                with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                    await upcoming
            await events.aclose()

    async def close(self) -> None:
        """Close the channels."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()
