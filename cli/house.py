"""Services in this process, until a signal ends them."""

import asyncio
import contextlib
import gc
import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import typer
from filelock import FileLock, Timeout

from cli import console
from cli.client import Client
from cli.memory import load_model
from cli.pulling import pull_model
from cli.serving import GATEWAY
from cli.settings import CliSettings
from lares.downloader.v1 import downloader_pb2
from lares.inference.v1 import inference_pb2
from lares.registry.v1 import registry_pb2
from services.kit.channels import translate_errors
from services.kit.errors import (
    FailedPrecondition,
    InvalidArgument,
    LaresError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from services.kit.process import Part, run_until_signalled
from services.kit.server import Build, GrpcServer, Host
from services.kit.settings import SERVICES, Settings
from services.kit.telemetry import MetricsPort, configure_logging
from services.kit.tracing import Traces


def run_house(overrides: console.Overrides, names: Sequence[str], *, with_starter: bool) -> None:
    """Serve what is named. with_starter: pull what is required into a house without a model."""
    with console.exit_code():
        known = (*SERVICES, GATEWAY)
        if unknown := [name for name in names if name not in known]:
            raise InvalidArgument.at("names", f"{', '.join(unknown)}: must be of {', '.join(known)}")
        settings = overrides.settings()
        configure_logging(settings.log_level, settings.log_format)
        chosen = [name for name in known if name in names]
        with _own(settings.home, chosen), asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_run(settings, overrides, chosen, with_starter))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where there is one: a third less work for each token that passes through. Else asyncio's own."""
    try:
        import uvloop
    except ImportError:  # It has none for Windows.
        return None
    return uvloop.new_event_loop


@contextlib.contextmanager
def _own(home: Path, names: Sequence[str]) -> Iterator[None]:
    """Hold a home's services. Two processes over one database file and one queue would each undo the other's work."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)  # Prompts and keys are nobody else's to read.
    with contextlib.ExitStack() as held:
        for name in names:
            if name == GATEWAY:
                continue
            try:
                held.enter_context(FileLock(home / f"{name}.lock", timeout=0))
            except Timeout:
                why = f"another Lares runs the {name} of {home}: stop it first, or give this one a --home of its own"
                raise FailedPrecondition(why) from None
        yield


async def _run(
    settings: Settings, overrides: console.Overrides, names: Sequence[str], with_starter: bool
) -> None:
    host = Host(settings, overrides)
    parts: list[Part] = [Traces()]
    addresses: list[str] = []
    if builds := [_builder(f"services.{name}.service") for name in names if name != GATEWAY]:
        server = GrpcServer(host, builds)
        parts.append(server)
    if GATEWAY in names:
        gateway = importlib.import_module("gateway.service").build(host)
        parts.append(gateway)
    elif settings.metrics is not None:
        parts.append(MetricsPort(settings.metrics))
    if with_starter:
        parts.append(_Starter(host))

    def tell() -> None:
        # What is here now stays; to look through it for garbage again and again costs a tenth of a second each time.
        gc.collect()
        gc.freeze()
        if GATEWAY in names:
            addresses.append(f"http={gateway.bound}")
        if builds:
            addresses.append(f"grpc={server.address}")
        typer.echo(f"lares ready {' '.join(addresses)}")

    await run_until_signalled(host, *parts, on_ready=tell)


def _builder(module: str) -> Build:
    build: Build = importlib.import_module(module).build
    return build


class _Starter:
    """Pulls what is required into a house without any model; has the first of it in memory when it starts again."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._may_pull = not host.load(CliSettings).skip_downloads

    async def start(self) -> None:
        """Pull and prepare the starter if the house is empty; the others follow by themselves.

        A house that cannot is served all the same.
        """
        settings = self._host.settings.model_copy(update={"grpc": self._host.bound})
        try:
            async with Client(settings) as client:
                told = await client.downloader.EnsureModels(downloader_pb2.EnsureModelsRequest(dry_run=True))
                if not told.models:
                    return
                starter = told.models[0]
                listed = await client.registry.ListModels(registry_pb2.ListModelsRequest(page_size=1))
                name = starter.model.removeprefix("models/")
                if listed.models or not self._may_pull:
                    await self._warm(client, name)
                    return
                await pull_model(client, starter.source)
                await client.downloader.EnsureModels(downloader_pb2.EnsureModelsRequest())
                await self._prepare(client, name)
        except LaresError as error:
            console.err.print(
                f"not all that is required is here: {error}; `lares ensure` tries again", markup=False
            )

    async def _prepare(self, client: Client, name: str) -> None:
        """Have it in memory once: what the first load converts is kept, and the first answer is quick."""
        with console.err.status(f"preparing {name}"), contextlib.suppress(Unavailable):
            await load_model(client, inference_pb2.LoadModelRequest(model=name), quiet=True)

    async def _warm(self, client: Client, name: str) -> None:
        """Begin to load it, so that the first request waits less. It leaves again if nobody asks it anything."""
        with contextlib.suppress(NotFound, FailedPrecondition, ResourceExhausted), translate_errors():
            await client.inference.LoadModel(inference_pb2.LoadModelRequest(model=name))

    async def stop(self) -> None:
        """Nothing to do: the pull pauses when it is cancelled."""
