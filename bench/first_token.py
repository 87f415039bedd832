"""How much gateway and services add to a first token.

A request over HTTP takes its TTFT; a like one over gRPC tells how long the worker took from its arrival to its first
token. The two alternate, and the difference of the medians is what all the rest costs.
"""

import random
import statistics
from collections.abc import Mapping
from typing import Any

import httpx2
from grpc.aio import insecure_channel

from bench.loadgen import Load, ask, words
from lares.inference.v1 import inference_pb2 as pb
from lares.inference.v1 import inference_pb2_grpc

PROMPT_TOKENS = 16


async def added_ms(
    base_url: str, grpc: str, model: str, extra_body: Mapping[str, Any], num_pairs: int, seed: int
) -> float:
    """Milliseconds, over so many pairs. Raises LoadFailed, or what httpx2 and grpc raise."""
    load = Load(
        base_url=base_url,
        model=model,
        concurrency=1,
        num_requests=num_pairs,
        prompt_tokens=PROMPT_TOKENS,
        max_tokens=2,
        shared_prefix=0,
        temperature=0.0,
        extra_body=dict(extra_body),
        num_warmups=0,
        seed=seed,
        timeout_s=600.0,
        keep_alive=False,
    )
    rng = random.Random(seed)
    over_http: list[float] = []
    in_worker: list[float] = []
    limits = httpx2.Limits(max_keepalive_connections=0)
    async with insecure_channel(grpc) as channel, httpx2.AsyncClient(timeout=600.0, limits=limits) as client:
        # mypy-protobuf's stub takes either kind of channel, and its constructor is not typed for the async one.
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        for _ in range(num_pairs):
            answer = await ask(client, load, "", words(rng, PROMPT_TOKENS))
            over_http.append((answer.text_at_s[0] - answer.sent_s) * 1e3)
            in_worker.append(await _worker_ms(stub, model, words(rng, PROMPT_TOKENS)))
    return statistics.median(over_http) - statistics.median(in_worker)


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
