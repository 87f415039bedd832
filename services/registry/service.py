"""Wiring: settings -> store -> catalogue -> servicer. The only file that knows all of them."""

import grpc

from lares.registry.v1 import registry_pb2 as pb
from lares.registry.v1 import registry_pb2_grpc as rpc
from services.kit.database import database_url
from services.kit.host import Host
from services.registry.adapters.sql_store import SqlStore
from services.registry.core.catalog import Catalog
from services.registry.core.watch import Wakeup, Watcher
from services.registry.servicer import RegistryServicer
from services.registry.settings import RegistrySettings

# Replicas on one PostgreSQL do not wake each other: each looks this often.
_POLL_S = 1.0


def build(host: Host) -> "RegistryService":
    """The registry of a process. Touches nothing outside until it is started."""
    return RegistryService(host, host.load(RegistrySettings))


class RegistryService:
    """The registry as `services.kit.server` runs it."""

    full_name = pb.DESCRIPTOR.services_by_name["RegistryService"].full_name

    def __init__(self, host: Host, settings: RegistrySettings) -> None:
        url = database_url(settings.database.get_secret_value(), host.settings.home / "registry.db")
        self._store = SqlStore(url, kept_events=settings.kept_events)
        wakeup = Wakeup()
        poll_s = None if url.get_backend_name() == "sqlite" else _POLL_S
        watcher = Watcher(self._store, wakeup, poll_s=poll_s)
        self._servicer = RegistryServicer(host, Catalog(self._store, wakeup), watcher)

    def register(self, server: grpc.aio.Server) -> None:
        """Put the RPCs on a server."""
        rpc.add_RegistryServiceServicer_to_server(self._servicer, server)

    async def start(self) -> None:
        """Open the database. Raises Unavailable, DiskFull, DataLoss."""
        await self._store.open()

    async def stop(self) -> None:
        """Close the database, once what is under way has ended."""
        await self._store.close()
