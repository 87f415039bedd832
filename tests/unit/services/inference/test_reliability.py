"""I1 to I4 over gRPC with a real worker: callers that leave, callers that are too many, and memory that stays flat."""

import asyncio
import random
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from prometheus_client import REGISTRY

from lares.inference.v1 import inference_pb2 as pb
from services.kit.channels import translate_errors
from services.kit.errors import DeadlineExceeded, QueueFull
from tests.unit.services.inference.conftest import Running, serve
from tests.unit.services.inference.test_servicer import (
    following,
    generate,
    read_to_end,
    text_of,
    text_request,
)

NUM_TIMES = 50
MAX_SEQUENCES = 4
ENDLESS = pb.StopConditions(max_tokens=480, ignore_eos=True)
GAUGES = [
    "lares_sequences_running",
    "lares_sequences_waiting",
    "lares_kv_blocks_used",
    "lares_model_requests_active",
    "lares_model_requests_waiting",
]


def gauges() -> list[float | None]:
    return [REGISTRY.get_sample_value(name, {"model": "tiny"}) for name in GAUGES]


async def wait_idle(running: Running) -> None:
    """Until nothing is held any more. A worker tells how it stands once a second at most."""
    async with asyncio.timeout(60):
        while gauges() != [0.0] * len(GAUGES):
            await running.stub.ListLoadedModels(pb.ListLoadedModelsRequest())


async def leave(call: Any, *, after: int) -> None:
    """Hang up after so many events."""
    for _ in range(after):
        await call.read()
    call.cancel()
    assert await call.code() is grpc.StatusCode.CANCELLED


async def expire(call: Any) -> None:
    with pytest.raises(DeadlineExceeded):
        await read_to_end(call)


async def test_whoever_hangs_up_or_runs_out_of_time_leaves_nothing_behind(running: Running):
    chance = random.Random(1)
    control = text_request("control", sampling=pb.SamplingParameters(temperature=0))
    before = text_of(await generate(running, control))

    def endless(length: int, **options: Any) -> Any:
        text = "".join(chance.choice("abcdef") for _ in range(length))
        return running.stub.Generate(text_request(text, stop=ENDLESS), **options)

    # In a prefill, or on its way there: nothing was heard yet.
    for _ in range(NUM_TIMES):
        call = endless(30)
        await call.wait_for_connection()
        await leave(call, after=0)
    # In decode, and four at once, so that each leaves while others go on.
    for _ in range(NUM_TIMES):
        await asyncio.gather(*(leave(endless(9), after=chance.randint(1, 6)) for _ in range(MAX_SEQUENCES)))
    # At the end: all was said, and nobody reads the last word.
    for _ in range(NUM_TIMES):
        call = running.stub.Generate(text_request("end", stop=pb.StopConditions(max_tokens=1)))
        while not (await following(call)).HasField("finished"):
            pass
        call.cancel()
    # Queued behind others, who then run out of time themselves.
    ahead = [endless(9) for _ in range(MAX_SEQUENCES)]
    for call in ahead:
        await call.read()
    queued = [endless(9) for _ in range(NUM_TIMES)]
    late = [endless(9, timeout=0.2) for _ in range(NUM_TIMES)]
    await asyncio.gather(*(leave(call, after=0) for call in queued), *(expire(call) for call in late))
    await asyncio.gather(*(leave(call, after=0) for call in ahead))
    # Wherever the deadline meets it.
    for _ in range(NUM_TIMES):
        await expire(endless(300, timeout=chance.uniform(0.001, 0.1)))

    await wait_idle(running)
    assert text_of(await generate(running, control)) == before


async def test_those_too_many_are_told_when_to_come_back_and_the_others_are_answered(
    tmp_path: Path, tiny_folder: Path
):
    retries_s: list[float] = []

    async def ask(running: Running) -> bool:
        """Whether it was answered."""
        try:
            events = await generate(
                running, text_request(stop=pb.StopConditions(max_tokens=8, ignore_eos=True))
            )
        except QueueFull as error:
            retries_s.append(error.retry_after_s or 0.0)
            return False
        assert events[-2].usage.completion_tokens == 8
        return True

    max_waiting = 20
    async with serve(tmp_path, tiny_folder, max_waiting=max_waiting) as running:
        assert await ask(running)
        answered = await asyncio.gather(*(ask(running) for _ in range(200)))
        assert max_waiting <= sum(answered) < 200
        assert len(retries_s) == 200 - sum(answered)
        assert min(retries_s) > 0
        await wait_idle(running)
        assert all(await asyncio.gather(*(ask(running) for _ in range(max_waiting))))


async def test_memory_is_flat_however_many_were_answered(running: Running):
    chance = random.Random(2)

    async def ask(number: int) -> None:
        request = text_request(
            "".join(chance.choice("abcdef") for _ in range(chance.randint(1, 400))),
            sampling=pb.SamplingParameters(temperature=1.0, top_p=0.9, seed=number),
            stop=pb.StopConditions(max_tokens=chance.randint(1, 16), ignore_eos=True),
            output=pb.OutputOptions(num_choices=chance.randint(1, 2), logprobs=True, top_logprobs=5),
        )
        call = running.stub.Generate(request)
        for _ in range(chance.choice([3, 10_000])):
            if await call.read() is grpc.aio.EOF:
                break
        call.cancel()

    async def rss_after(numbers: range) -> int:
        for start in range(numbers.start, numbers.stop, 10):
            await asyncio.gather(*(ask(number) for number in range(start, start + 10)))
        await wait_idle(running)
        with translate_errors():
            listed = (await running.stub.ListLoadedModels(pb.ListLoadedModelsRequest())).loaded_models
        return int(psutil.Process(listed[0].worker_pid).memory_info().rss)

    first, last = await rss_after(range(50)), await rss_after(range(50, 200))
    assert last - first < 8 * 1024**2
