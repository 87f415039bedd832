"""POST /v1/audio/transcriptions and /v1/audio/translations."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing

from pydantic import RootModel
from starlette.requests import Request
from starlette.responses import Response

from gateway.body import Upload, read_form
from gateway.endpoint import Endpoint, Gateway, until_disconnect
from gateway.openai.audio import (
    TextDelta,
    TextDone,
    TranscriptCollector,
    Transcription,
    TranscriptionForm,
    TranslationForm,
    VerboseTranscription,
    config_to_proto,
)
from gateway.openai.frames import DONE, event
from gateway.sse import ServerSentEvents
from gateway.upstream import EventStream
from lares.speech.v1 import speech_pb2 as pb


class TranscriptionAnswer(RootModel[Transcription | VerboseTranscription]):
    """As response_format says; `text`, `srt` and `vtt` answer with plain text."""


class TranscriptionEvent(RootModel[TextDelta | TextDone]):
    """One event of a streamed transcription."""


async def create_transcription(gateway: Gateway, request: Request) -> Response:
    """Text in the language spoken."""
    async with AsyncExitStack() as stack:
        form, upload = await stack.enter_async_context(read_form(request, TranscriptionForm))
        stream = await until_disconnect(request.receive, _start(gateway, form, upload))
        if form.stream:
            # The upload may still be on its way to the service: its file must last as long as the stream.
            return ServerSentEvents(_frames(form, stream, stack.pop_all()))
        return await until_disconnect(request.receive, _complete(form, stream))


async def create_translation(gateway: Gateway, request: Request) -> Response:
    """Text in English."""
    async with read_form(request, TranslationForm) as (form, upload):
        stream = await until_disconnect(request.receive, _start(gateway, form, upload))
        return await until_disconnect(request.receive, _complete(form, stream))


async def _start(
    gateway: Gateway, form: TranslationForm, upload: Upload
) -> EventStream[pb.TranscribeResponse]:
    async def parts() -> AsyncIterator[pb.TranscribeRequest]:
        yield pb.TranscribeRequest(config=config_to_proto(form))
        async for chunk in upload.chunks():
            yield pb.TranscribeRequest(chunk=chunk)

    timeout_s = gateway.settings.generation_timeout_s
    return await EventStream.open(gateway.upstream.speech.Transcribe(parts(), timeout=timeout_s))


async def _complete(form: TranslationForm, stream: EventStream[pb.TranscribeResponse]) -> Response:
    collector = TranscriptCollector(form)
    collector.add(stream.first)
    async with aclosing(stream.rest()) as events:
        async for message in events:
            collector.add(message)
    body, media_type = collector.answer()
    return Response(body, media_type=media_type)


async def _frames(
    form: TranslationForm, stream: EventStream[pb.TranscribeResponse], upload: AsyncExitStack
) -> AsyncGenerator[bytes, None]:
    collector = TranscriptCollector(form)
    collector.add(stream.first)
    async with upload, aclosing(stream.rest()) as events:
        yield b""  # It is admitted; its text may take a while.
        async for message in events:
            if text := collector.add(message):
                yield event(TextDelta(delta=text).model_dump_json().encode())
        yield event(collector.done().model_dump_json().encode()) + DONE


ENDPOINTS = [
    Endpoint(
        "POST",
        "/v1/audio/transcriptions",
        create_transcription,
        "Turn speech into text",
        form=TranscriptionForm,
        response=TranscriptionAnswer,
        stream=TranscriptionEvent,
    ),
    Endpoint(
        "POST",
        "/v1/audio/translations",
        create_translation,
        "Turn speech into English text",
        form=TranslationForm,
        response=TranscriptionAnswer,
    ),
]
