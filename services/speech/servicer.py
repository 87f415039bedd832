"""SpeechService over gRPC: parse, ask the core, convert."""

from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc

from lares.speech.v1 import speech_pb2 as pb
from lares.speech.v1 import speech_pb2_grpc as rpc
from services.kit import paging
from services.kit.request_stream import RequestStream
from services.speech import convert
from services.speech.core.pool import RecognizerPool
from services.speech.core.speech import Speech

_LISTING = "recognizers"


class SpeechServicer(rpc.SpeechServiceServicer):
    """The five RPCs."""

    def __init__(self, speech: Speech, pool: RecognizerPool) -> None:
        self._speech = speech
        self._pool = pool

    async def StreamRecognize(
        self,
        request_iterator: AsyncIterator[pb.StreamRecognizeRequest],
        context: grpc.aio.ServicerContext[pb.StreamRecognizeRequest, pb.StreamRecognizeResponse],
    ) -> AsyncIterator[pb.StreamRecognizeResponse]:
        async with RequestStream(request_iterator) as requests:
            config = convert.recognition_config_from_proto(await requests.first("config"))
            audio = (convert.audio_from_proto(request) async for request in requests)
            async with aclosing(self._speech.recognize(config, audio)) as events:
                async for event in events:
                    yield convert.live_event_to_proto(event)

    async def Transcribe(
        self,
        request_iterator: AsyncIterator[pb.TranscribeRequest],
        context: grpc.aio.ServicerContext[pb.TranscribeRequest, pb.TranscribeResponse],
    ) -> AsyncIterator[pb.TranscribeResponse]:
        async with RequestStream(request_iterator) as requests:
            config = convert.transcription_config_from_proto(await requests.first("config"))
            chunks = (convert.chunk_from_proto(request) async for request in requests)
            async with aclosing(self._speech.transcribe(config, chunks)) as events:
                async for event in events:
                    yield convert.file_event_to_proto(event)

    async def ListRecognizers(
        self,
        request: pb.ListRecognizersRequest,
        context: grpc.aio.ServicerContext[pb.ListRecognizersRequest, pb.ListRecognizersResponse],
    ) -> pb.ListRecognizersResponse:
        size = paging.page_size(request.page_size)
        after = paging.decode_cursor(request.page_token, _LISTING, (str,))
        infos = [info for info in self._pool.list() if after is None or info.model_id > str(after[0])]
        page = infos[:size]
        return pb.ListRecognizersResponse(
            recognizers=[convert.recognizer_to_proto(info) for info in page],
            next_page_token=paging.encode_cursor(_LISTING, (page[-1].model_id,)) if len(infos) > size else "",
        )

    async def UnloadRecognizer(
        self,
        request: pb.UnloadRecognizerRequest,
        context: grpc.aio.ServicerContext[pb.UnloadRecognizerRequest, pb.UnloadRecognizerResponse],
    ) -> pb.UnloadRecognizerResponse:
        await self._pool.unload(convert.recognizer_name_from_proto(request.name))
        return pb.UnloadRecognizerResponse()
