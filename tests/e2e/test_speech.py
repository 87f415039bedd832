"""Real speech becomes text: files over HTTP and gRPC, a live stream, English and Korean and Vietnamese."""

import re
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from lares.speech.v1 import speech_pb2 as pb
from lares.speech.v1 import speech_pb2_grpc as rpc
from tests.e2e.conftest import House


@pytest.fixture
def client(house: House) -> openai.OpenAI:
    return openai.OpenAI(base_url=house.url, api_key="none", max_retries=0)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def error_rate(said: str, heard: str) -> float:
    """Word error rate: edits to make one of the other, over the words that were said."""
    a, b = words(said), words(heard)
    row = list(range(len(b) + 1))
    for i, word in enumerate(a, 1):
        row, last = [i], row
        for j, other in enumerate(b, 1):
            row.append(min(row[-1] + 1, last[j] + 1, last[j - 1] + (word != other)))
    return row[-1] / max(1, len(a))


@pytest.fixture(scope="session")
def english(librivox: list[tuple[Path, str]]) -> tuple[Path, str]:
    """A WAV file, and what is said in it."""
    return librivox[0]


def test_english_file_is_transcribed_over_http(
    house: House, client: openai.OpenAI, english: tuple[Path, str]
) -> None:
    model = house.pull("whisper-tiny.en")
    sound, said = english
    heard = client.audio.transcriptions.create(model=model, file=sound).text
    assert error_rate(said, heard) < 0.35, heard


async def test_english_file_is_transcribed_over_grpc(house: House, english: tuple[Path, str]) -> None:
    model = house.pull("whisper-tiny.en")
    sound, said = english

    def parts() -> Iterator[pb.TranscribeRequest]:
        yield pb.TranscribeRequest(config=pb.TranscriptionConfig(model=model, words=True))
        yield pb.TranscribeRequest(chunk=sound.read_bytes())

    async with house.channel() as channel:
        events = [event async for event in rpc.SpeechServiceStub(channel).Transcribe(parts(), timeout=120)]
    assert [event.WhichOneof("event") for event in (events[0], events[-1])] == ["started", "finished"]
    segments = [event.segment for event in events[1:-1]]
    assert error_rate(said, " ".join(segment.text for segment in segments)) < 0.35
    assert all(segment.words for segment in segments)


def test_command_transcribes(house: House, english: tuple[Path, str]) -> None:
    house.pull("whisper-tiny.en")
    sound, said = english
    assert error_rate(said, house.lares("transcribe", str(sound), "--model", "whisper-tiny.en").stdout) < 0.35
    assert house.lares(
        "transcribe", str(sound), "--model", "whisper-tiny.en", "--format", "srt"
    ).stdout.startswith("1\n00:00:0")


def test_vietnamese_is_recognised_as_such(
    house: House, client: openai.OpenAI, package_files: Callable[[str], Path]
) -> None:
    model = house.pull("whisper-base")
    sound = sorted((package_files("vieneu==3.8.3") / "vieneu/assets/samples").glob("*.wav"))[0]
    heard = client.audio.transcriptions.create(
        model=model, file=("sample.wav", sound.read_bytes()), response_format="verbose_json"
    )
    assert heard.language in ("vi", "vietnamese")
    assert len(words(heard.text)) > 3


async def test_korean_stream_gives_partial_then_final_words_with_times(house: House, korean: Path) -> None:
    model = house.pull("vosk-small-ko")

    def parts() -> Iterator[pb.StreamRecognizeRequest]:
        with wave.open(str(korean)) as sound:
            rate = sound.getframerate()
            yield pb.StreamRecognizeRequest(config=pb.RecognitionConfig(model=model, sample_rate_hz=rate))
            while samples := sound.readframes(rate // 10):
                yield pb.StreamRecognizeRequest(audio=samples)

    async with house.channel() as channel:
        call = rpc.SpeechServiceStub(channel).StreamRecognize(parts(), timeout=120)
        events = [event async for event in call]
    kinds = [event.WhichOneof("event") for event in events]
    assert (kinds[0], kinds[-1]) == ("started", "finished")
    assert kinds.index("partial") < kinds.index("final")
    heard = [word for event in events for word in event.final.words]
    assert re.search("[가-힣]", "".join(word.text for word in heard))
    starts = [word.start_offset.ToTimedelta() for word in heard]
    assert starts == sorted(starts)


def test_korean_file_is_transcribed_over_http(house: House, client: openai.OpenAI, korean: Path) -> None:
    model = house.pull("vosk-small-ko")
    heard = client.audio.transcriptions.create(model=model, file=korean).text
    assert re.search("[가-힣]", heard)
