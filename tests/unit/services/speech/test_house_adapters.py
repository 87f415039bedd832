"""The adapter to the Registry, over a real channel to a servicer of the test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from lares.registry.v1 import registry_pb2 as pb
from lares.registry.v1 import registry_pb2_grpc as rpc
from services.kit.channels import connect
from services.kit.errors import ModelNotAvailable, ServiceUnreachable, Unavailable, WrongModelKind
from services.speech.adapters.registry_catalog import RegistryCatalog, speech_model_from_proto
from services.speech.core.domain import Ability, Engine, SpeechModel


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


@asynccontextmanager
async def serving() -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    rpc.add_RegistryServiceServicer_to_server(FakeRegistry(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with connect(f"127.0.0.1:{port}") as channel:
            yield channel
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


async def test_catalog_asks_the_registry() -> None:
    async with serving() as channel:
        assert (await RegistryCatalog(channel).resolve("x")).model_id == "x"


async def test_registry_that_is_away_is_told_as_such() -> None:
    async with connect("127.0.0.1:1") as channel:
        with pytest.raises((ServiceUnreachable, Unavailable)):
            await RegistryCatalog(channel).resolve("x")
