"""How much gateway and services add to a first token.

A request over HTTP takes its TTFT; the same one over gRPC tells how long the worker took from its arrival to its first
token. The two alternate, and the difference of the medians is what all the rest costs. The worker has seen the prompt
before: it computes one token of it, and its own time varies least.
"""

import asyncio
import json
import random
import statistics
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from grpc.aio import insecure_channel

from bench.loadgen import LoadFailed, words
from lares.inference.v1 import inference_pb2 as pb
from lares.inference.v1 import inference_pb2_grpc

PROMPT_TOKENS = 64


async def added_ms(
    base_url: str, grpc: str, model: str, extra_body: Mapping[str, Any], num_pairs: int, seed: int
) -> float:
    """Milliseconds, over so many pairs. Raises LoadFailed, OSError, or what grpc raises."""
    prompt = words(random.Random(seed), PROMPT_TOKENS)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
        "temperature": 0,
        "max_tokens": 2,
        **extra_body,
    }
    over_http: list[float] = []
    in_worker: list[float] = []
    async with insecure_channel(grpc) as channel:
        # mypy-protobuf's stub takes either kind of channel, and its constructor is not typed for the async one.
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        await _http_ms(base_url, body)
        for _ in range(num_pairs):
            over_http.append(await _http_ms(base_url, body))
            in_worker.append(await _worker_ms(stub, model, prompt))
    return statistics.median(over_http) - statistics.median(in_worker)


async def _http_ms(base_url: str, body: Mapping[str, Any]) -> float:
    """From before the connection to the first text. Over a bare socket: an HTTP library takes 2 ms for itself."""
    url = urlsplit(base_url)
    content = json.dumps(body).encode()
    head = (
        f"POST {url.path}/chat/completions HTTP/1.1\r\nhost: {url.netloc}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    began_s = time.perf_counter()
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        writer.write(head.encode() + content)
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                choices = json.loads(line.removeprefix(b"data: ")).get("choices")
                if choices and choices[0]["delta"].get("content"):
                    return (time.perf_counter() - began_s) * 1e3
        raise LoadFailed("no text came")
    finally:
        writer.close()
        await writer.wait_closed()


async def _worker_ms(stub: Any, model: str, prompt: str) -> float:
    message = pb.ChatMessage(role=pb.ROLE_USER, content=[pb.ContentPart(text=prompt)])
    request = pb.GenerateRequest(
        model=model,
        chat=pb.ChatPrompt(messages=[message]),
        sampling=pb.SamplingParameters(temperature=0),
        stop=pb.StopConditions(max_tokens=2, ignore_eos=True),
    )
    total_ms = 0.0
    async for event in stub.Generate(request):
        if event.HasField("finished"):
            total_ms = event.finished.timing.queue_ms + event.finished.timing.prefill_ms
    return total_ms
