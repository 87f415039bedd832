"""A downloader in a process that is killed, by whoever started it or by itself at a step of its own.

Its processes are forked from one that has imported everything: so many are started that importing would take longest.
"""

import asyncio
import functools
import inspect
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, event

from lares.downloader.v1 import downloader_pb2 as pb
from lares.downloader.v1 import downloader_pb2_grpc as rpc
from services.downloader import service
from services.downloader.adapters import disk_blob_store, disk_seals, http_small, local_files, partial_file
from services.downloader.adapters.http_client import HttpLimits
from services.downloader.adapters.registry_client import RegistryClient
from services.downloader.core import parts
from services.kit.address import Address
from services.kit.channels import connect
from services.kit.host import Host
from services.kit.process import run_until_signalled
from services.kit.server import GrpcServer
from services.kit.settings import Settings

# The steps between a first byte and a record in the registry: where each is looked up, and its name there.
STEPS: Final[Mapping[str, Sequence[tuple[Any, str]]]] = {
    "write": [(partial_file, "_write_at"), (http_small, "write_all")],
    "copy": [(local_files._Copy, "step")],
    "sync": [(disk_blob_store, "sync_files")],
    "verify": [(disk_blob_store, "_examined")],
    "seal": [(disk_seals, "_seal")],
    "rename": [(Path, "replace")],
    "folder sync": [(disk_blob_store, "sync_folders")],
    "commit": [(Engine, "commit")],
    "record": [(RegistryClient, "record")],
}


@dataclass(frozen=True)
class Death:
    """The process dies at the call of that number, from 1, of a step; afterwards: when the call is over.

    number: 0 for never. The process then tells how often each step came.
    """

    step: str = ""
    number: int = 0
    afterwards: bool = False


@dataclass(frozen=True)
class Setup:
    """What a process is started with. settings: by dotted key."""

    home: Path
    registry: str
    settings: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    death: Death | None = None


_forking = get_context("forkserver")
# pytest too: a child runs what its parent's main module imports.
_forking.set_forkserver_preload(["tests.torture.downloader_process", "pytest"])


class Caller:
    """Whoever asks a downloader."""

    downloader: "rpc.DownloaderServiceAsyncStub"

    async def begin(self, source: str, model_id: str) -> str:
        """A download's name. Raises AioRpcError if the process dies."""
        request = pb.CreateDownloadRequest(source=source, model_id=model_id)
        return (await self.downloader.CreateDownload(request)).download.name

    async def ended(self, name: str) -> pb.Download:
        """What a download ends in. Raises AioRpcError if the process dies."""
        async for message in self.downloader.WatchDownload(pb.WatchDownloadRequest(name=name)):
            download = message.download
        return download

    async def pull(self, source: str, model_id: str) -> pb.Download:
        """Both."""
        return await self.ended(await self.begin(source, model_id))


class House(Caller):
    """A downloader in a process of its own. address: where it serves; None if it died before. calls: how often each
    step came, if it was asked to count and has ended.
    """

    def __init__(self, setup: Setup) -> None:
        self._here, there = _forking.Pipe()
        self._process: ForkServerProcess = _forking.Process(target=_run, args=(setup, there))
        self._process.start()
        there.close()
        self.address: str | None = None
        self.calls: Counter[str] = Counter()

    async def started(self) -> None:
        """Wait until it serves, or is dead."""
        with suppress(EOFError):
            self.address = str(await asyncio.to_thread(self._here.recv))

    @asynccontextmanager
    async def caller(self) -> AsyncIterator[Caller]:
        """One with a connection of its own."""
        channel = connect(str(self.address))
        caller = Caller()
        caller.downloader = rpc.DownloaderServiceStub(channel)
        yield caller
        await channel.close()

    async def kill(self) -> None:
        """As a crash does."""
        self._process.kill()
        await self.dead()

    async def dead(self) -> None:
        """Wait for its end."""
        await asyncio.to_thread(self._process.join)

    async def stop(self) -> None:
        """End it as an operator does."""
        if self._process.is_alive():
            self._process.terminate()
            with suppress(EOFError):
                self.calls = await asyncio.to_thread(self._here.recv)
        await self.dead()
        self._here.close()


@asynccontextmanager
async def house(setup: Setup) -> AsyncIterator[House]:
    """A process, while the block runs."""
    running = House(setup)
    try:
        await running.started()
        async with running.caller() as caller:
            running.downloader = caller.downloader
            yield running
    finally:
        await running.stop()


def _run(setup: Setup, parent: Connection) -> None:
    # Its log is of no interest: a test says what went wrong.
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    os.environ.update(setup.environment)
    # On loopback a file is here before a second connection would be tried.
    vars(service)["HttpLimits"] = functools.partial(HttpLimits, grow_interval_s=0.02, first_backoff_s=0.01)
    # Of 64 MiB no more than two connections would get something to do.
    parts._MIN_SPLIT_BYTES = 2 * parts.SEGMENT_BYTES  # type: ignore[misc]  # Final, but for this.
    calls: Counter[str] = Counter()
    if setup.death is not None:
        _count(calls, setup.death)
    asyncio.run(_serve(setup, parent))
    parent.send(calls)


async def _serve(setup: Setup, parent: Connection) -> None:
    settings = Settings(home=setup.home, grpc=Address("127.0.0.1", 0), registry_endpoint=setup.registry)
    host = Host(settings, overrides=setup.settings)
    server = GrpcServer(host, [service.build])
    await run_until_signalled(host, server, on_ready=lambda: parent.send(str(host.bound)))


def _count(calls: Counter[str], death: Death) -> None:
    """Count the steps, and do not survive that one."""

    def come_to(step: str, *, afterwards: bool) -> None:
        calls[step] += not afterwards
        if (step, calls[step], afterwards) == (death.step, death.number, death.afterwards):
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function):

            async def call_later(*args: Any, **kwargs: Any) -> Any:
                come_to(step, afterwards=False)
                answer = await function(*args, **kwargs)
                come_to(step, afterwards=True)
                return answer

            return call_later

        def call(*args: Any, **kwargs: Any) -> Any:
            come_to(step, afterwards=False)
            answer = function(*args, **kwargs)
            come_to(step, afterwards=True)
            return answer

        return call

    for step, (owner, name) in ((step, place) for step, places in STEPS.items() for place in places):
        if owner is Engine:
            event.listen(Engine, "commit", lambda _: come_to("commit", afterwards=False))
        else:
            setattr(owner, name, counted(step, getattr(owner, name)))
