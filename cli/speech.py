"""`lares transcribe`: words out of a sound file."""

import sys
import wave
from collections.abc import AsyncIterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration

from cli import console
from cli.client import Client
from cli.models import first_model
from lares.registry.v1 import registry_pb2
from lares.speech.v1 import speech_pb2 as pb
from services.kit.errors import InvalidAudio

CHUNK_BYTES = 256 * 1024


class Form(StrEnum):
    """How a transcript is printed."""

    TEXT = "text"
    JSON = "json"
    SRT = "srt"
    VTT = "vtt"


def register(app: typer.Typer) -> None:
    """Put the commands of this room on the command line."""
    app.command("transcribe")(transcribe)


def transcribe(
    ctx: typer.Context,
    file: Annotated[
        Path, typer.Argument(help="A sound file of any common format.", exists=True, dir_okay=False)
    ],
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="Served name. Default: the first model here that can transcribe."),
    ] = "",
    language: Annotated[
        str, typer.Option(help="The language spoken, as ISO 639-1. Default: found from the sound.")
    ] = "",
    prompt: Annotated[str, typer.Option(help="Words that lead the model: names, spelling.")] = "",
    translate: Annotated[bool, typer.Option("--translate", help="Into English.")] = False,
    words: Annotated[bool, typer.Option("--words", help="The time of each word too, with --json.")] = False,
    live: Annotated[
        bool,
        typer.Option(
            "--live", help="Stream a 16-bit mono WAV as a microphone would, and show partial results."
        ),
    ] = False,
    form: Annotated[Form, typer.Option("--format", help="How it is printed.")] = Form.TEXT,
    as_json: console.Json = False,
) -> None:
    """Turn speech into text."""
    shape = Form.JSON if as_json else form

    async def whole(client: Client) -> None:
        task = pb.TRANSCRIPTION_TASK_TRANSLATE if translate else pb.TRANSCRIPTION_TASK_TRANSCRIBE
        config = pb.TranscriptionConfig(
            model=model
            or await _default_model(client, registry_pb2.CAPABILITY_TRANSCRIPTION, "whisper-base"),
            language=language,
            task=task,
            prompt=prompt,
            words=words,
        )
        call = client.speech.Transcribe(_file_parts(file, config))
        segments: list[pb.Segment] = []
        started = pb.TranscriptionStarted()
        if shape is Form.VTT:
            console.out.print("WEBVTT\n")
        try:
            async for response in call:
                match response.WhichOneof("event"):
                    case "started":
                        started = response.started
                    case "segment":
                        segments.append(response.segment)
                        _print_segment(response.segment, shape)
        finally:
            call.cancel()
        if shape is Form.JSON:
            console.print_json(
                {
                    "text": " ".join(segment.text.strip() for segment in segments),
                    "language": started.language,
                    "segments": [console.to_json(segment) for segment in segments],
                }
            )

    async def as_spoken(client: Client) -> None:
        capability = registry_pb2.CAPABILITY_STREAMING_RECOGNITION
        served = model or await _default_model(client, capability, "vosk-small-ko")
        call = client.speech.StreamRecognize(_live_parts(file, served, partial=shape is not Form.JSON))
        finals: list[pb.FinalResult] = []
        interactive = console.err.is_terminal
        try:
            async for response in call:
                match response.WhichOneof("event"):
                    case "partial" if interactive:
                        sys.stderr.write(f"\r\x1b[2K{response.partial.text}")
                    case "final":
                        finals.append(response.final)
                        if interactive:
                            sys.stderr.write("\r\x1b[2K")
                        if shape is not Form.JSON:
                            console.out.print(response.final.text, markup=False)
        finally:
            call.cancel()
        if shape is Form.JSON:
            console.print_json([console.to_json(final) for final in finals])

    console.run(ctx, as_spoken if live else whole)


async def _default_model(
    client: Client, capability: registry_pb2.Capability.ValueType, pull_hint: str
) -> str:
    return await first_model(client, capability, pull_hint=pull_hint)


async def _file_parts(file: Path, config: pb.TranscriptionConfig) -> AsyncIterator[pb.TranscribeRequest]:
    yield pb.TranscribeRequest(config=config)
    with file.open("rb") as source:
        while chunk := source.read(CHUNK_BYTES):
            yield pb.TranscribeRequest(chunk=chunk)


async def _live_parts(file: Path, model: str, *, partial: bool) -> AsyncIterator[pb.StreamRecognizeRequest]:
    """The samples of a WAV file in pieces of a tenth of a second."""
    try:
        with wave.open(str(file), "rb") as sound:
            if sound.getnchannels() != 1 or sound.getsampwidth() != 2:
                raise InvalidAudio(f"--live streams 16-bit mono, which {file.name} is not; leave --live out")
            rate = sound.getframerate()
            yield pb.StreamRecognizeRequest(
                config=pb.RecognitionConfig(model=model, sample_rate_hz=rate, partial_results=partial)
            )
            while samples := sound.readframes(rate // 10):
                yield pb.StreamRecognizeRequest(audio=samples)
    except (wave.Error, EOFError) as error:
        raise InvalidAudio(f"--live streams a WAV file, which {file.name} is not: {error}") from error


def _print_segment(segment: pb.Segment, shape: Form) -> None:
    text = segment.text.strip()
    match shape:
        case Form.TEXT:
            console.out.print(text, markup=False)
        case Form.SRT:
            span = f"{_clock(segment.start_offset, ',')} --> {_clock(segment.end_offset, ',')}"
            console.out.print(f"{segment.index + 1}\n{span}\n{text}\n", markup=False)
        case Form.VTT:
            span = f"{_clock(segment.start_offset, '.')} --> {_clock(segment.end_offset, '.')}"
            console.out.print(f"{span}\n{text}\n", markup=False)


def _clock(offset: Duration, point: str) -> str:
    """`01:02:03,450`, as SubRip writes it; WebVTT has a point for the comma."""
    total_ms = offset.seconds * 1000 + offset.nanos // 1_000_000
    seconds, ms = divmod(total_ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{ms:03}"
