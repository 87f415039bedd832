"""The adapters to the Registry and the Downloader, over real channels to servicers of the test."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from lares.downloader.v1 import downloader_pb2 as downloads
from lares.downloader.v1 import downloader_pb2_grpc as downloads_rpc
from lares.registry.v1 import registry_pb2 as pb
from lares.registry.v1 import registry_pb2_grpc as rpc
from services.kit.channels import connect
from services.kit.errors import ModelNotAvailable, ServiceUnreachable, Unavailable, WrongModelKind
from services.speech.adapters.downloader_leases import DownloaderLeases
from services.speech.adapters.registry_catalog import RegistryCatalog, speech_model_from_proto
from services.speech.core.domain import Ability, Engine, SpeechModel


@pytest.fixture
def downloader() -> "FakeDownloader":
    return FakeDownloader()  # type: ignore[abstract]


def resolved(**model: Any) -> pb.ResolveModelResponse:
    defaults: dict[str, Any] = {
        "name": "models/vosk-small-ko",
        "kind": pb.MODEL_KIND_SPEECH_TO_TEXT,
        "capabilities": [
            pb.CAPABILITY_TRANSCRIPTION,
            pb.CAPABILITY_STREAMING_RECOGNITION,
            pb.CAPABILITY_CHAT,
        ],
        "languages": ["ko-KR", "ko"],
    }
    return pb.ResolveModelResponse(
        model=pb.Model(**(defaults | model)),
        version=pb.Version(
            name="models/vosk-small-ko/versions/0.1.0",
            format=pb.FORMAT_VOSK,
            state=pb.VERSION_STATE_AVAILABLE,
        ),
    )


class FakeRegistry(rpc.RegistryServiceServicer):
    async def ResolveModel(self, request: pb.ResolveModelRequest, context: Any) -> pb.ResolveModelResponse:
        return resolved(name=f"models/{request.reference}")


@dataclass
class FakeDownloader(downloads_rpc.DownloaderServiceServicer):
    """Counts leases; `renewed` is set by each renewal, which finds nothing while `forgets` is."""

    held: list[str] = field(default_factory=list)
    num_created: int = 0
    forgets: bool = False
    renewed: asyncio.Event = field(default_factory=asyncio.Event)
    created: asyncio.Event = field(default_factory=asyncio.Event)

    async def CreateLease(
        self, request: downloads.CreateLeaseRequest, context: Any
    ) -> downloads.CreateLeaseResponse:
        self.num_created += 1
        name = f"leases/{self.num_created}"
        self.held.append(name)
        self.created.set()
        lease = downloads.Lease(name=name, version=request.version, path=f"/store/{request.version}")
        return downloads.CreateLeaseResponse(lease=lease)

    async def RenewLease(
        self, request: downloads.RenewLeaseRequest, context: Any
    ) -> downloads.RenewLeaseResponse:
        self.renewed.set()
        if self.forgets:
            self.held.remove(request.name)
            self.forgets = False
            await context.abort(grpc.StatusCode.NOT_FOUND, "gone")
        return downloads.RenewLeaseResponse()

    async def DeleteLease(
        self, request: downloads.DeleteLeaseRequest, context: Any
    ) -> downloads.DeleteLeaseResponse:
        self.held.remove(request.name)
        return downloads.DeleteLeaseResponse()


@asynccontextmanager
async def serving(downloader: FakeDownloader) -> AsyncIterator[tuple[grpc.aio.Channel, grpc.aio.Server]]:
    server = grpc.aio.server()
    rpc.add_RegistryServiceServicer_to_server(FakeRegistry(), server)  # type: ignore[abstract]
    downloads_rpc.add_DownloaderServiceServicer_to_server(downloader, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with connect(f"127.0.0.1:{port}") as channel:
            yield channel, server
    finally:
        await server.stop(None)


def test_model_is_what_the_registry_says_of_it() -> None:
    assert speech_model_from_proto(resolved()) == SpeechModel(
        model_id="vosk-small-ko",
        version="models/vosk-small-ko/versions/0.1.0",
        file_format="VOSK",
        engine=Engine.VOSK,
        abilities=frozenset({Ability.TRANSCRIPTION, Ability.STREAMING}),
        languages=("ko",),
    )


def test_model_of_another_kind_is_refused() -> None:
    with pytest.raises(WrongModelKind, match="whisper-base"):
        speech_model_from_proto(resolved(kind=pb.MODEL_KIND_TEXT_GENERATION))


def test_quarantined_version_is_refused_with_its_reason() -> None:
    answer = resolved()
    answer.version.state = pb.VERSION_STATE_QUARANTINED
    answer.version.state_reason = "a byte was flipped"
    with pytest.raises(ModelNotAvailable, match="a byte was flipped"):
        speech_model_from_proto(answer)


async def test_catalog_asks_the_registry(downloader: FakeDownloader) -> None:
    async with serving(downloader) as (channel, _):
        assert (await RegistryCatalog(channel).resolve("x")).model_id == "x"


async def test_registry_that_is_away_is_told_as_such() -> None:
    async with connect("127.0.0.1:1") as channel:
        with pytest.raises((ServiceUnreachable, Unavailable)):
            await RegistryCatalog(channel).resolve("x")


async def test_lease_is_renewed_while_it_is_held_and_given_back(downloader: FakeDownloader) -> None:
    async with serving(downloader) as (channel, _):
        lease = await DownloaderLeases(channel, ttl_s=0.03).lease("models/m/versions/1")
        assert str(lease.path) == "/store/models/m/versions/1"
        await asyncio.wait_for(downloader.renewed.wait(), 5)
        assert downloader.held == ["leases/1"]
        await lease.release()
        assert downloader.held == []


async def test_lease_that_was_lost_is_taken_again(downloader: FakeDownloader) -> None:
    async with serving(downloader) as (channel, _):
        lease = await DownloaderLeases(channel, ttl_s=0.03).lease("models/m/versions/1")
        downloader.created.clear()
        downloader.forgets = True
        await asyncio.wait_for(downloader.created.wait(), 5)
        assert downloader.held == ["leases/2"]
        await lease.release()


async def test_lease_can_be_released_when_the_downloader_is_gone(downloader: FakeDownloader) -> None:
    async with serving(downloader) as (channel, server):
        lease = await DownloaderLeases(channel).lease("models/m/versions/1")
        await server.stop(None)
        await lease.release()
