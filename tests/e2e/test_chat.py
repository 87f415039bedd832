"""A chat, as each kind of user has it: the OpenAI client, the command, and a gRPC client."""

import asyncio
import json
import urllib.request

import openai
import pytest

from lares.inference.v1 import inference_pb2 as pb
from lares.inference.v1 import inference_pb2_grpc as rpc
from tests.e2e.conftest import STARTER, House

QUESTION = "What is the capital of France?"


@pytest.fixture
def client(house: House) -> openai.OpenAI:
    return openai.OpenAI(base_url=house.url, api_key="none", max_retries=0)


def test_openai_client_streams_an_answer_from_the_starter(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=STARTER,
        messages=[{"role": "user", "content": QUESTION}],
        stream=True,
        stream_options={"include_usage": True},
        temperature=0,
        max_tokens=24,
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "Paris" in text
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] in (
        ["stop"],
        ["length"],
    )
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 3
    assert len(chunks) > 4


def test_openai_client_gets_the_same_answer_plain_and_async(house: House, client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(
        model=STARTER, messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=24
    )

    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=house.url, api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model=STARTER,
                messages=[{"role": "user", "content": QUESTION}],
                temperature=0,
                max_tokens=24,
                stream=True,
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    assert "Paris" in (plain.choices[0].message.content or "")
    assert asyncio.run(ask()) == plain.choices[0].message.content


async def test_grpc_client_streams_started_deltas_usage_finished(house: House) -> None:
    request = pb.GenerateRequest(
        model=STARTER,
        chat=pb.ChatPrompt(
            messages=[pb.ChatMessage(role=pb.ROLE_USER, content=[pb.ContentPart(text=QUESTION)])]
        ),
        sampling=pb.SamplingParameters(temperature=0),
        stop=pb.StopConditions(max_tokens=24),
    )
    async with house.channel() as channel:
        events = [event async for event in rpc.InferenceServiceStub(channel).Generate(request, timeout=120)]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started"
    assert kinds[-2:] == ["usage", "finished"]
    assert set(kinds[1:-2]) == {"delta"}
    assert "Paris" in "".join(event.delta.text for event in events)


def test_command_answers_and_tells_what_was_used(house: House) -> None:
    said = house.lares("chat", QUESTION, "--temperature", "0", "--max-tokens", "24").stdout
    assert "Paris" in said
    answer = house.json("chat", QUESTION, "--temperature", "0", "--max-tokens", "24")
    assert answer["text"].strip() == said.strip()
    assert answer["usage"]["completion_tokens"] > 3


def test_text_completion_continues_what_is_given(client: openai.OpenAI) -> None:
    done = client.completions.create(model=STARTER, prompt="One, two, three,", max_tokens=8, temperature=0)
    assert "four" in done.choices[0].text


def test_seed_repeats_an_answer(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str:
        done = client.chat.completions.create(
            model=STARTER,
            messages=[{"role": "user", "content": "Tell me a story."}],
            temperature=1.0,
            seed=seed,
            max_tokens=24,
        )
        return done.choices[0].message.content or ""

    assert ask(7) == ask(7)
    assert ask(7) != ask(8)


def test_stop_string_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    done = client.completions.create(
        model=STARTER, prompt="One, two, three,", max_tokens=40, temperature=0, stop=[" six"]
    )
    assert done.choices[0].finish_reason == "stop"
    assert "five" in done.choices[0].text
    assert "six" not in done.choices[0].text


async def test_embeddings_tell_near_from_far(house: House, client: openai.OpenAI) -> None:
    model = house.pull("all-minilm-l6-v2")
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "Stocks fell sharply on Monday."]
    vectors = [item.embedding for item in client.embeddings.create(model=model, input=texts).data]

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert len(vectors[0]) == 384
    assert cosine(vectors[0], vectors[1]) > 0.5 > 0.2 > cosine(vectors[0], vectors[2])

    async with house.channel() as channel:
        request = pb.EmbedRequest(model=model, inputs=[pb.EmbedInput(text=texts[0])])
        answer = await rpc.InferenceServiceStub(channel).Embed(request, timeout=120)
    assert list(answer.embeddings[0].values) == pytest.approx(vectors[0], abs=1e-5)


def test_models_in_memory_are_listed(house: House) -> None:
    house.lares("chat", "Hi", "--max-tokens", "1", "--model", STARTER)
    loaded = house.json("ps")["loaded_models"]
    assert [model["state"] for model in loaded if model["name"] == f"loadedModels/{STARTER}"] == [
        "LOADED_MODEL_STATE_READY"
    ]


def test_every_event_of_a_stream_is_json_and_the_last_is_done(house: House) -> None:
    body = {
        "model": STARTER,
        "messages": [{"role": "user", "content": "Xin chào 👋"}],
        "stream": True,
        "max_tokens": 8,
    }
    request = urllib.request.Request(
        f"{house.url}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        lines = [line for line in response.read().decode().splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(
        json.loads(line.removeprefix("data: "))["object"] == "chat.completion.chunk" for line in lines[:-1]
    )
