"""The contract over a real channel, as far as it goes without weights."""

import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lares.speech.v1 import speech_pb2 as pb
from services.kit.channels import translate_errors
from services.kit.errors import (
    InvalidArgument,
    InvalidAudio,
    InvalidPageToken,
    InvalidReference,
    LaresError,
    ModelNotFound,
    NotFound,
    PayloadTooLarge,
    UnsupportedFormat,
    UnsupportedParameter,
    WrongModelKind,
)
from services.speech.core.domain import Ability, Engine
from tests.unit.services.speech.house import FolderModels, House, open_house, speech_model


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    empty = tmp_path / "empty"
    empty.mkdir()
    models = FolderModels()
    models.add(speech_model("vosk-ko", languages=("ko",)), empty)
    models.add(speech_model("whisper", Engine.WHISPER, Ability.TRANSCRIPTION), empty)
    models.add(speech_model("strange", None), empty)
    async with open_house(models, tmp_path / "home", max_file_bytes=100_000) as house:
        yield house


def live(*audio: bytes, **config: object) -> Iterator[pb.StreamRecognizeRequest]:
    defaults: dict[str, object] = {"model": "vosk-ko", "sample_rate_hz": 16_000}
    yield pb.StreamRecognizeRequest(config=pb.RecognitionConfig(**(defaults | config)))  # type: ignore[arg-type]
    for samples in audio:
        yield pb.StreamRecognizeRequest(audio=samples)


def file(*chunks: bytes, **config: object) -> Iterator[pb.TranscribeRequest]:
    defaults: dict[str, object] = {"model": "whisper"}
    yield pb.TranscribeRequest(config=pb.TranscriptionConfig(**(defaults | config)))  # type: ignore[arg-type]
    for chunk in chunks:
        yield pb.TranscribeRequest(chunk=chunk)


async def recognize(
    house: House, requests: Iterable[pb.StreamRecognizeRequest]
) -> list[pb.StreamRecognizeResponse]:
    with translate_errors():
        return [event async for event in house.stub.StreamRecognize(iter(requests))]


async def transcribe(house: House, requests: Iterable[pb.TranscribeRequest]) -> list[pb.TranscribeResponse]:
    with translate_errors():
        return [event async for event in house.stub.Transcribe(iter(requests))]


def fields(error: LaresError) -> list[str]:
    return [violation.field for violation in error.violations]


@pytest.mark.parametrize(
    ("field", "requests"),
    [
        ("config", []),
        ("config", [pb.StreamRecognizeRequest(audio=b"12")]),
        ("config", [pb.StreamRecognizeRequest()]),
        ("config.model", live(model="")),
        ("config.sample_rate_hz", live(sample_rate_hz=0)),
        ("config.encoding", live(encoding=7)),
        ("config.phrases[0]", live(phrases=["x" * 257])),
    ],
)
async def test_live_stream_that_begins_wrong_is_refused_by_field(
    house: House, field: str, requests: Iterable[pb.StreamRecognizeRequest]
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await recognize(house, requests)
    assert fields(refused.value) == [field]


@pytest.mark.parametrize(
    ("field", "requests"),
    [
        ("config", []),
        ("config", [pb.TranscribeRequest(chunk=b"12")]),
        ("config", [*file(b"1"), *file()]),
        ("chunk", file(b"1" * (1024 * 1024 + 1))),
        ("config.language", file(language="klingon")),
        ("config.temperature", file(temperature=2.0)),
        ("config.prompt", file(prompt="x" * 4097)),
        ("config.task", file(task=9)),
    ],
)
async def test_file_that_is_sent_wrong_is_refused_by_field(
    house: House, field: str, requests: Iterable[pb.TranscribeRequest]
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await transcribe(house, requests)
    assert fields(refused.value) == [field]


async def test_refusal_reaches_a_client_that_is_still_sending(house: House) -> None:
    with pytest.raises(ModelNotFound):
        await transcribe(house, file(*[b"1" * 60_000] * 500, model="nobody"))
    with pytest.raises(ModelNotFound):
        await recognize(house, live(*[b"12" * 30_000] * 500, model="nobody"))


async def test_what_a_model_cannot_do_is_refused_before_it_is_loaded(house: House) -> None:
    with pytest.raises(WrongModelKind, match="vosk-small-ko"):
        await recognize(house, live(model="whisper"))
    with pytest.raises(WrongModelKind, match="multilingual Whisper"):
        await transcribe(house, file(b"1", task=pb.TRANSCRIPTION_TASK_TRANSLATE))
    with pytest.raises(UnsupportedFormat):
        await transcribe(house, file(b"1", model="strange"))
    for config in ({"language": "vi"}, {"prompt": "x"}, {"temperature": 0.5}):
        with pytest.raises(UnsupportedParameter) as refused:
            await transcribe(house, file(b"1", model="vosk-ko", **config))
        assert fields(refused.value) == [f"config.{next(iter(config))}"]
    assert not (await house.stub.ListRecognizers(pb.ListRecognizersRequest())).recognizers


async def test_empty_and_oversize_files_are_refused_and_leave_nothing(house: House) -> None:
    with pytest.raises(InvalidAudio, match="empty"):
        await transcribe(house, file())
    with pytest.raises(PayloadTooLarge, match="100000 bytes"):
        await transcribe(house, file(*[b"1" * 50_000] * 20))
    assert list((house.home / "speech" / "tmp").iterdir()) == []


async def test_folder_that_is_no_model_is_refused_by_its_worker(house: House) -> None:
    with pytest.raises(UnsupportedFormat, match=r"model\.bin"):
        await transcribe(house, file(b"1"))


async def test_recognizers_are_listed_and_unloaded_by_name(house: House) -> None:
    with translate_errors():
        assert await house.stub.ListRecognizers(pb.ListRecognizersRequest()) == pb.ListRecognizersResponse()
    with pytest.raises(InvalidArgument) as refused, translate_errors():
        await house.stub.ListRecognizers(pb.ListRecognizersRequest(page_size=1001))
    assert fields(refused.value) == ["page_size"]
    with pytest.raises(InvalidPageToken), translate_errors():
        await house.stub.ListRecognizers(pb.ListRecognizersRequest(page_token="mine"))
    with pytest.raises(NotFound), translate_errors():
        await house.stub.UnloadRecognizer(pb.UnloadRecognizerRequest(name="recognizers/vosk-ko"))
    with pytest.raises(InvalidReference), translate_errors():
        await house.stub.UnloadRecognizer(pb.UnloadRecognizerRequest(name="vosk-ko"))


async def test_health_says_serving_with_no_model_loaded(house: House) -> None:
    async with grpc.aio.insecure_channel(house.address) as channel:
        request = health_pb2.HealthCheckRequest(service="lares.speech.v1.SpeechService")
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(request)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_serving_process_imports_no_engine() -> None:
    program = (
        "import sys, services.speech.service;"
        "heavy = {'torch', 'vosk', 'faster_whisper', 'ctranslate2', 'onnxruntime', 'av', 'numpy'} & set(sys.modules);"
        "sys.exit(f'imports {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
