import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from gateway.openai import subtitles
from gateway.openai.audio import join
from lares.speech.v1 import speech_pb2 as pb
from tests.unit.gateway.fake_services import FakeServices

WAV = ("hello.wav", b"RIFF" + b"\0" * 100)


async def test_speech_becomes_text(client: AsyncOpenAI, services: FakeServices) -> None:
    answer = await client.audio.transcriptions.create(
        model="ear", file=WAV, language="en", prompt="Kenobi", temperature=0
    )
    assert answer.text == "Hello there. General Kenobi."
    assert services.speech.config.task == pb.TRANSCRIPTION_TASK_TRANSCRIBE
    assert services.speech.config.HasField("temperature")
    assert services.speech.num_bytes == 104


async def test_a_large_file_travels_in_pieces(client: AsyncOpenAI, services: FakeServices) -> None:
    await client.audio.transcriptions.create(model="ear", file=("x.wav", b"RIFF" * 1_000_000))
    assert services.speech.num_bytes == 4_000_000
    assert services.speech.largest_chunk_bytes <= 256 * 1024


async def test_the_verbose_answer_has_segments_and_words(client: AsyncOpenAI) -> None:
    answer = await client.audio.transcriptions.create(
        model="ear", file=WAV, response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert answer.duration == 3.5
    assert answer.language == "en"
    assert answer.segments is not None
    assert (answer.segments[1].start, answer.segments[1].end) == (1.5, 3.0)
    assert answer.words is not None
    assert [word.word for word in answer.words] == ["Hello", "General"]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("text", "Hello there. General Kenobi.\n"),
        (
            "srt",
            "1\n00:00:00,000 --> 00:00:01,500\nHello there.\n\n2\n00:00:01,500 --> 00:00:03,000\nGeneral Kenobi.\n",
        ),
        (
            "vtt",
            "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello there.\n\n00:00:01.500 --> 00:00:03.000\nGeneral Kenobi.\n",
        ),
    ],
)
async def test_other_forms_are_plain_text(client: AsyncOpenAI, form: str, expected: str) -> None:
    answer = await client.audio.transcriptions.create(model="ear", file=WAV, response_format=form)  # type: ignore[call-overload]
    assert answer == expected


async def test_a_transcription_streams(client: AsyncOpenAI) -> None:
    stream = await client.audio.transcriptions.create(model="ear", file=WAV, stream=True)
    events = [event async for event in stream]
    assert [event.type for event in events] == ["transcript.text.delta"] * 2 + ["transcript.text.done"]
    assert "".join(event.delta for event in events if event.type == "transcript.text.delta") == (
        "Hello there. General Kenobi."
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_a_translation_asks_for_english(client: AsyncOpenAI, services: FakeServices) -> None:
    await client.audio.translations.create(model="ear", file=WAV)
    assert services.speech.config.task == pb.TRANSCRIPTION_TASK_TRANSLATE


async def test_what_is_no_audio_is_a_400(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await client.audio.transcriptions.create(model="ear", file=("x.wav", b"not audio"))
    assert raised.value.code == "invalid_audio"


async def test_a_form_without_its_file_is_a_400(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/v1/audio/transcriptions", files={"model": (None, "ear")})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "file"


async def test_words_need_the_verbose_form(http: httpx2.AsyncClient) -> None:
    data = {"model": "ear", "timestamp_granularities[]": "word"}
    answer = await http.post("/v1/audio/transcriptions", data=data, files={"file": WAV})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "timestamp_granularities[]"


def test_a_cue_cannot_break_out_of_its_block() -> None:
    assert subtitles.srt([(0, 3661.5, "a --> b\n\nc")]) == "1\n00:00:00,000 --> 01:01:01,500\na -> b\nc\n"


def test_segments_without_their_own_space_get_one() -> None:
    assert join(["xin", "chào", " bạn"]) == "xin chào bạn"
