"""Speech in this process, over a real channel, with its models in folders: no Registry, no Downloader."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from lares.speech.v1 import speech_pb2_grpc as rpc
from services.kit.address import Address
from services.kit.channels import connect
from services.kit.errors import ModelNotFound
from services.kit.host import Host
from services.kit.server import GrpcServer
from services.kit.settings import Settings
from services.speech.core.domain import Ability, Engine, SpeechModel
from services.speech.service import SpeechService


def speech_model(
    model_id: str, engine: Engine | None = Engine.VOSK, *abilities: Ability, languages: tuple[str, ...] = ()
) -> SpeechModel:
    default = (Ability.TRANSCRIPTION, *((Ability.STREAMING,) if engine is Engine.VOSK else ()))
    return SpeechModel(
        model_id=model_id,
        version=f"models/{model_id}/versions/1",
        file_format="VOSK",
        engine=engine,
        abilities=frozenset(abilities or default),
        languages=languages,
    )


class FolderLease:
    def __init__(self, path: Path, models: "FolderModels", version: str) -> None:
        self.path = path
        self._models = models
        self._version = version
        models.held.append(version)

    async def release(self) -> None:
        self._models.held.remove(self._version)
        self._models.released.set()


class FolderModels:
    """A ModelCatalog and a LeaseBroker over folders."""

    def __init__(self) -> None:
        self.models: dict[str, SpeechModel] = {}
        self.held: list[str] = []
        self.released = asyncio.Event()
        self._folders: dict[str, Path] = {}

    def add(self, model: SpeechModel, folder: Path) -> None:
        self.models[model.model_id] = model
        self._folders[model.version] = folder

    async def resolve(self, name: str) -> SpeechModel:
        if name not in self.models:
            raise ModelNotFound.named(name)
        return self.models[name]

    async def lease(self, version: str) -> FolderLease:
        return FolderLease(self._folders[version], self, version)


@dataclass(frozen=True)
class House:
    """home: its folder; address: `HOST:PORT` that answers."""

    stub: "rpc.SpeechServiceAsyncStub"
    address: str
    home: Path


@asynccontextmanager
async def open_house(models: FolderModels, home: Path, **settings: object) -> AsyncIterator[House]:
    """settings: of the service, by field name."""
    host = Host(
        Settings(home=home, drain_timeout_s=1.0), {f"speech.{key}": value for key, value in settings.items()}
    )
    server = GrpcServer(
        host,
        [lambda host: SpeechService(host, catalog=models, leases=models)],
        address=Address("127.0.0.1", 0),
    )
    await server.start()
    channel = connect(str(server.address))
    try:
        yield House(rpc.SpeechServiceStub(channel), str(server.address), home)
    finally:
        await channel.close()
        await server.stop()
        await host.close()
