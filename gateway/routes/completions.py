"""POST /v1/completions."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from gateway.body import read_json
from gateway.caller import cache_salt
from gateway.endpoint import Endpoint, Gateway, json_response, until_disconnect
from gateway.openai.completions import (
    Completion,
    CompletionCollector,
    CompletionFrames,
    CompletionRequest,
    completion_from_scores,
    requests_to_proto,
    score_requests_to_proto,
)
from gateway.sse import ServerSentEvents
from gateway.upstream import EventStream, merged, unary
from lares.inference.v1 import inference_pb2 as pb

Streams = list[EventStream[pb.GenerateResponse]]


async def create_completion(gateway: Gateway, request: Request) -> Response:
    """Continue each prompt, all of them at once."""
    wanted = await read_json(request, CompletionRequest)
    if wanted.only_scores:
        scored = score_requests_to_proto(wanted, cache_salt(request))
        return json_response(await until_disconnect(request.receive, _score(gateway, wanted, scored)))
    messages = requests_to_proto(wanted, cache_salt(request))
    if wanted.stream:
        return ServerSentEvents(_frames(gateway, wanted, messages))
    return json_response(await until_disconnect(request.receive, _complete(gateway, wanted, messages)))


async def _score(gateway: Gateway, wanted: CompletionRequest, messages: list[pb.ScoreRequest]) -> Completion:
    timeout_s = gateway.settings.generation_timeout_s
    calls = [gateway.upstream.inference.Score(message, timeout=timeout_s) for message in messages]
    try:
        return completion_from_scores(wanted, await asyncio.gather(*(unary(call) for call in calls)))
    except BaseException:
        for call in calls:
            call.cancel()
        raise


async def _start(gateway: Gateway, messages: list[pb.GenerateRequest]) -> Streams:
    timeout_s = gateway.settings.generation_timeout_s
    calls = [gateway.upstream.inference.Generate(message, timeout=timeout_s) for message in messages]
    try:
        return list(await asyncio.gather(*(EventStream.open(call) for call in calls)))
    except BaseException:
        for call in calls:
            call.cancel()
        raise


async def _frames(
    gateway: Gateway, wanted: CompletionRequest, messages: list[pb.GenerateRequest]
) -> AsyncGenerator[bytes, None]:
    streams = await _start(gateway, messages)
    frames = CompletionFrames(wanted, [stream.first.started for stream in streams])
    async with aclosing(merged(streams)) as events:
        yield b""  # It is admitted; its text may take a while.
        async for prompt, event in events:
            if frame := frames.frames(prompt, event):
                yield frame


async def _complete(
    gateway: Gateway, wanted: CompletionRequest, messages: list[pb.GenerateRequest]
) -> Completion:
    streams = await _start(gateway, messages)
    collector = CompletionCollector(wanted, [stream.first.started for stream in streams])
    async with aclosing(merged(streams)) as events:
        async for prompt, event in events:
            collector.add(prompt, event)
    return collector.completion()


ENDPOINTS = [
    Endpoint(
        "POST",
        "/v1/completions",
        create_completion,
        "Continue a text",
        request=CompletionRequest,
        response=Completion,
        stream=Completion,
    )
]
