"""What a server of language models promises, through all of the house: tiny random models, so that it is quick."""

import asyncio
import json
import os
import re
import signal
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from peft import LoraConfig, get_peft_model

from lares.inference.v1 import inference_pb2 as pb
from lares.inference.v1 import inference_pb2_grpc as rpc
from lares.registry.v1 import registry_pb2 as rpb
from lares.registry.v1 import registry_pb2_grpc as rrpc
from services.trainer.adapters.house_adapters import HouseAdapterSink
from tests.contract.tiny_llama import tiny_llama
from tests.e2e.conftest import House
from tests.unit.services.inference.tiny_folder import save_tiny_model

# peft reads every attribute of a module by name, deprecated ones too.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

# By name behind the starter, which is the first that others find.
ONE, OTHER = "tiny-one", "tiny-other"
ADAPTERS = ("left", "right", "up")
NUM_HANGUPS = 50
NUM_STREAMS = 200
MIB = 1024**2


@pytest.fixture(scope="module")
def tiny(house: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model that answers in milliseconds, pulled from a folder."""
    pull_tiny(house, tmp_path_factory.mktemp("tiny") / "one", ONE)
    yield ONE
    house.lares("rm", ONE, "--yes")


@pytest.fixture
async def client(house: House) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=house.url, api_key="none", max_retries=0) as client:
        yield client


def pull_tiny(house: House, folder: Path, name: str, *, seed: int = 0) -> None:
    save_tiny_model(folder, seed=seed)
    house.lares("pull", f"file:{folder}", f"--name={name}")


async def record_adapter(house: House, base: str, name: str, folder: Path, *, seed: int) -> None:
    """A random adapter into the store and the registry, as a training job leaves it."""
    base_model = tiny_llama()
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"target_modules": "all-linear", "init_lora_weights": False}
    model = get_peft_model(base_model, LoraConfig(r=4, lora_alpha=16, task_type="CAUSAL_LM", **settings))
    model.save_pretrained(str(folder))
    async with house.channel() as channel:
        registry: rrpc.RegistryServiceAsyncStub = rrpc.RegistryServiceStub(channel)
        resolved = await registry.ResolveModel(rpb.ResolveModelRequest(reference=base), timeout=60)
        files = await HouseAdapterSink(lambda _: channel).upload(folder)
        version = rpb.Version(
            kind=rpb.VERSION_KIND_ADAPTER,
            format=rpb.FORMAT_PEFT,
            base_version=resolved.version.name,
            files=[
                rpb.File(path=file.path, size_bytes=file.size_bytes, digest=file.digest) for file in files
            ],
        )
        request = rpb.CreateVersionRequest(parent=f"models/{base}", version_id=name, version=version)
        await registry.CreateVersion(request, timeout=60)


def ask(client: openai.AsyncOpenAI, model: str, *, max_tokens: int, **options: Any) -> Any:
    """A completion that goes on to its last token."""
    return client.completions.create(
        model=model,
        prompt="Once upon a time",
        max_tokens=max_tokens,
        extra_body={"ignore_eos": True},
        **options,
    )


async def loaded(house: House, model: str) -> pb.LoadedModel:
    async with house.channel() as channel:
        request = pb.GetLoadedModelRequest(name=f"loadedModels/{model}")
        return (await rpc.InferenceServiceStub(channel).GetLoadedModel(request, timeout=60)).loaded_model


def num_requests(house: House, model: str) -> float:
    now = held(house, model)
    return now["model_requests_active"] + now["model_requests_waiting"]


def held(house: House, model: str) -> dict[str, float]:
    """What the model's requests hold: slots, blocks, places in the queue."""
    with urllib.request.urlopen(f"http://{house.http}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    gauges = (
        r"sequences_running|sequences_waiting|kv_blocks_used|model_requests_active|model_requests_waiting"
    )
    found = re.findall(rf'^lares_({gauges}){{model="{model}"}} (\S+)$', text, re.MULTILINE)
    return {name: float(value) for name, value in found}


async def wait_for(condition: Callable[[], bool]) -> None:
    """A worker tells how it stands once a second at most."""
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(condition):
            pass


async def test_clients_that_hang_up_leave_nothing_behind(
    house: House, tiny: str, client: openai.AsyncOpenAI
) -> None:
    await ask(client, tiny, max_tokens=1)
    for number in range(NUM_HANGUPS):
        stream = await ask(client, tiny, max_tokens=400, stream=True)
        for _ in range(number % 4):
            await anext(stream)
        await stream.close()
    plain = [asyncio.ensure_future(ask(client, tiny, max_tokens=400)) for _ in range(NUM_HANGUPS)]

    await wait_for(lambda: num_requests(house, tiny) >= NUM_HANGUPS)
    for asking in plain:
        asking.cancel()
    await asyncio.gather(*plain, return_exceptions=True)
    await wait_for(lambda: not any(held(house, tiny).values()))
    assert len(held(house, tiny)) == 5
    assert (await ask(client, tiny, max_tokens=3)).usage.completion_tokens == 3


async def test_two_hundred_streams_at_once_all_end_well(tiny: str, client: openai.AsyncOpenAI) -> None:
    async def stream() -> str:
        options = {"include_usage": True}
        chunks = [
            chunk
            async for chunk in await ask(client, tiny, max_tokens=8, stream=True, stream_options=options)
        ]
        assert chunks[-1].usage.completion_tokens == 8
        reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
        return str(reasons[-1])

    assert await asyncio.gather(*(stream() for _ in range(NUM_STREAMS))) == ["length"] * NUM_STREAMS


async def test_a_worker_killed_under_load_costs_each_request_one_error_and_the_next_is_answered(
    house: House, tiny: str, client: openai.AsyncOpenAI
) -> None:
    streams = [await ask(client, tiny, max_tokens=450, stream=True) for _ in range(10)]
    for stream in streams:
        await anext(stream)
    before = await loaded(house, tiny)

    async def read(stream: Any) -> None:
        async for _ in stream:
            pass

    async with house.channel() as channel:
        watch: Any = rpc.InferenceServiceStub(channel).WatchLoadedModels(pb.WatchLoadedModelsRequest())
        reading = [asyncio.ensure_future(read(stream)) for stream in streams]
        plain = asyncio.ensure_future(ask(client, tiny, max_tokens=450))
        await wait_for(lambda: num_requests(house, tiny) > len(streams))
        os.kill(before.worker_pid, signal.SIGKILL)
        for end in await asyncio.gather(*reading, plain, return_exceptions=True):
            assert isinstance(end, openai.APIError)
            assert end.code == "worker_lost"
            assert "SIGKILL" in str(end)
        assert (await ask(client, tiny, max_tokens=3)).usage.completion_tokens == 3
        # Meanwhile whoever looked was told.
        async with asyncio.timeout(60):
            while True:
                model = (await watch.read()).loaded_model
                if model.name == before.name and model.state != pb.LOADED_MODEL_STATE_READY:
                    break
        assert model.state == pb.LOADED_MODEL_STATE_LOADING
        assert "SIGKILL" in model.failure_message
    after = await loaded(house, tiny)
    assert (after.num_worker_restarts, after.num_ready_workers) == (before.num_worker_restarts + 1, 1)
    told = {model["name"]: model for model in house.json("ps")["loaded_models"]}[f"loadedModels/{tiny}"]
    assert told["worker_pid"] == after.worker_pid != before.worker_pid


async def test_cached_prompts_are_shared_by_those_with_the_same_key_only(house: House, tiny: str) -> None:
    question = "What was asked before is not computed again, but only for whom asked it before."

    async def num_cached(key: str, path: str) -> int:
        async with openai.AsyncOpenAI(base_url=house.url, api_key=key, max_retries=0) as client:
            if path == "chat":
                messages: Any = [{"role": "user", "content": question}]
                done = await client.chat.completions.create(model=tiny, messages=messages, max_tokens=1)
                usage = done.usage
            else:
                usage = (await client.completions.create(model=tiny, prompt=question, max_tokens=1)).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        return usage.prompt_tokens_details.cached_tokens or 0

    for path in ("chat", "text"):
        keys = [f"{path}-mine", f"{path}-mine", f"{path}-yours", f"{path}-yours", f"{path}-mine"]
        told = [await num_cached(key, path) for key in keys]
        assert [cached > 0 for cached in told] == [False, True, False, True, True]


async def test_two_models_and_three_adapters_answer_together(
    house: House, tiny: str, client: openai.AsyncOpenAI, tmp_path: Path
) -> None:
    pull_tiny(house, tmp_path / "other", OTHER, seed=1)
    for seed, adapter in enumerate(ADAPTERS):
        await record_adapter(house, tiny, adapter, tmp_path / adapter, seed=seed)
    names = [tiny, OTHER, *(f"{tiny}:{adapter}" for adapter in ADAPTERS)]
    listed = [model.id async for model in client.models.list()]
    assert set(names) <= set(listed)

    async def answer(name: str) -> list[float]:
        """Log probabilities of the prompt's tokens, which tell one model's weights from another's."""
        done = await ask(client, name, max_tokens=12, logprobs=0, echo=True, temperature=0)
        assert done.model == name
        logprobs = done.choices[0].logprobs
        assert logprobs is not None
        return [logprob for logprob in logprobs.token_logprobs or () if logprob is not None][:10]

    alone = {name: await answer(name) for name in names}
    for name in names:  # bfloat16 rounds by what else is in the step; other weights are another matter.
        for other in names:
            near = alone[other] == pytest.approx(alone[name], abs=0.3)
            assert near == (name == other)
    together = await asyncio.gather(*(answer(name) for name in names * 8))
    for name, said in zip(names * 8, together, strict=True):
        assert said == pytest.approx(alone[name], abs=0.3)
    base = await loaded(house, tiny)
    assert sorted(base.adapters) == sorted(f"models/{tiny}/versions/{adapter}" for adapter in ADAPTERS)
    house.lares("rm", OTHER, "--yes")


def test_a_model_that_does_not_fit_is_refused_with_numbers_and_nobody_goes_for_it(
    new_house: Callable[..., House], tmp_path: Path
) -> None:
    house = new_house(SKIP_MODEL_DOWNLOADS="1", LARES_INFERENCE_MEMORY_BYTES=str(1200 * MIB))
    house.start()
    names = ["small", "smaller"]
    for name in names:
        pull_tiny(house, tmp_path / name, name)
    # Its config says that a step takes gigabytes.
    config = save_tiny_model(tmp_path / "large") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 2**21}))
    house.lares("pull", f"file:{config.parent}", "--name=large")
    with openai.OpenAI(base_url=house.url, api_key="none", max_retries=0) as client:
        for name in names:
            client.completions.create(model=name, prompt="x", max_tokens=1)
        pids = {model["name"]: model["worker_pid"] for model in house.json("ps")["loaded_models"]}
        assert set(pids) == {f"loadedModels/{name}" for name in names}
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(model="large", prompt="x", max_tokens=1)
        assert caught.value.status_code == 507
        assert caught.value.code == "insufficient_memory"
        for number in (r"needs [\d.]+ GiB", r"there is [\d.]+ GiB", r"would free [\d.]+ GiB"):
            assert re.search(number, caught.value.message), caught.value.message
        for name in names:
            client.completions.create(model=name, prompt="x", max_tokens=1)
    assert pids == {model["name"]: model["worker_pid"] for model in house.json("ps")["loaded_models"]}
    assert house.stop() == 0
