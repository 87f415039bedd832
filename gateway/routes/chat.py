"""POST /v1/chat/completions."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from gateway.body import read_json
from gateway.caller import cache_salt
from gateway.endpoint import Endpoint, Gateway, json_response, until_disconnect
from gateway.openai.chat import ChatRequest, request_to_proto
from gateway.openai.chat_answer import ChatCollector, ChatCompletion
from gateway.openai.chat_stream import ChatChunk, ChatFrames
from gateway.sse import ServerSentEvents
from gateway.upstream import EventStream
from lares.inference.v1 import inference_pb2 as pb


async def create_chat_completion(gateway: Gateway, request: Request) -> Response:
    """Answer at once when the first event is here if the client streams, else when all are."""
    wanted = await read_json(request, ChatRequest)
    message = request_to_proto(wanted, cache_salt(request))
    if wanted.stream:
        return ServerSentEvents(_frames(gateway, wanted, message))
    return json_response(await until_disconnect(request.receive, _complete(gateway, wanted, message)))


async def _start(gateway: Gateway, message: pb.GenerateRequest) -> EventStream[pb.GenerateResponse]:
    timeout_s = gateway.settings.generation_timeout_s
    return await EventStream.open(gateway.upstream.inference.Generate(message, timeout=timeout_s))


async def _frames(
    gateway: Gateway, wanted: ChatRequest, message: pb.GenerateRequest
) -> AsyncGenerator[bytes, None]:
    stream = await _start(gateway, message)
    frames = ChatFrames(wanted, stream.first.started)
    async with aclosing(stream.rest()) as events:
        yield frames.opening()
        async for event in events:
            if frame := frames.frames(event):
                yield frame


async def _complete(gateway: Gateway, wanted: ChatRequest, message: pb.GenerateRequest) -> ChatCompletion:
    stream = await _start(gateway, message)
    collector = ChatCollector(wanted, stream.first.started)
    async with aclosing(stream.rest()) as events:
        async for event in events:
            collector.add(event)
    return collector.completion()


ENDPOINTS = [
    Endpoint(
        "POST",
        "/v1/chat/completions",
        create_chat_completion,
        "Answer a conversation",
        request=ChatRequest,
        response=ChatCompletion,
        stream=ChatChunk,
    )
]
