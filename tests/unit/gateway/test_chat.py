import asyncio
import json

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam

from gateway.openai.chat_stream import ChatChunk
from services.kit.host import Host
from tests.unit.gateway.fake_services import ADAPTER, MODEL, FakeServices

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "xin chào 👋 thế giới"}]


def ask(text: str, **extra: object) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **extra}


async def test_a_chat_is_answered_whole(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.choices[0].message.content == "xin chào 👋 thế giới"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 10
    assert answer.system_fingerprint is not None
    assert answer.id.startswith("chatcmpl-")


async def test_a_chat_streams_word_by_word_and_ends_with_usage(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=ADAPTER,
        messages=HELLO,
        stream=True,
        n=2,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    texts = ["", ""]
    for chunk in chunks[:-1]:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert chunk.usage is None
    assert texts == ["xin chào 👋 thế giới"] * 2
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 10
    assert {chunk.choices[0].finish_reason for chunk in chunks[-3:-1]} == {"stop"}


async def test_the_synchronous_client_works_too(url: str) -> None:
    def talk() -> str:
        transport = openai.DefaultHttpxClient(trust_env=False)
        with OpenAI(base_url=f"{url}/v1", api_key="none", http_client=transport) as client:
            stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert await asyncio.to_thread(talk) == "xin chào 👋 thế giới"


async def test_every_event_of_a_stream_fits_the_documented_model(http: httpx2.AsyncClient) -> None:
    wanted = ask(
        'say "hi"\n  <b>', stream=True, logprobs=True, top_logprobs=2, stream_options={"include_usage": True}
    )
    for body in (wanted, ask("plain words", stream=True), ask("call it", stream=True, tools=[TOOL])):
        answer = await http.post("/v1/chat/completions", json=body)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache"
        events = [line[6:] for line in answer.text.split("\n\n") if line]
        assert events[-1] == "[DONE]"
        for event in events[:-1]:
            ChatChunk.model_validate_json(event)


async def test_log_probabilities_have_openais_shape(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        logprobs=True,
        top_logprobs=3,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [token.token for token in logprobs.content][:2] == ["xin", " chào"]
    assert bytes(logprobs.content[1].bytes or []).decode() == " chào"
    assert len(logprobs.content[0].top_logprobs) == 3


TOOL: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object"}},
}


async def test_tool_calls_come_back_whole_and_streamed(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        tools=[TOOL],
    )
    call = (answer.choices[0].message.tool_calls or [])[0]
    assert call.type == "function"
    assert call.function.name == "weather"
    assert call.function.arguments == "xin chào 👋 thế giới"
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None


async def test_what_the_client_asks_for_reaches_the_engine(
    client: AsyncOpenAI, services: FakeServices
) -> None:
    await client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "one two"}]},
        ],
        temperature=0,
        top_p=0.5,
        max_completion_tokens=7,
        stop="END",
        seed=-1,
        presence_penalty=1.5,
        logit_bias={"42": -100},
        extra_body={
            "top_k": 5,
            "min_p": 0.1,
            "repetition_penalty": 1.25,
            "keep_alive": "5m",
            "ignore_eos": True,
        },
    )
    request = services.inference.requests[-1]
    assert request.sampling.HasField("temperature")
    assert request.sampling.temperature == 0
    assert request.sampling.top_k == 5
    assert request.sampling.seed == 2**64 - 1
    assert not request.sampling.HasField("frequency_penalty")
    assert request.stop.max_tokens == 7
    assert list(request.stop.stop) == ["END"]
    assert request.stop.ignore_eos
    assert request.keep_alive.seconds == 300
    assert dict(request.sampling.logit_bias) == {42: -100.0}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_callers_with_different_keys_share_no_cached_prompts(
    http: httpx2.AsyncClient, services: FakeServices, path: str
) -> None:
    async def salt(authorization: str | None) -> str:
        headers = {} if authorization is None else {"authorization": authorization}
        body = ask("hi") if path.endswith("chat/completions") else {"model": MODEL, "prompt": "hi"}
        answer = await http.post(path, json=body, headers=headers)
        assert answer.status_code == 200
        return services.inference.requests[-1].cache_salt

    mine = await salt("Bearer sk-mine")
    assert mine == await salt("bearer  sk-mine")
    assert "mine" not in mine
    assert 0 < len(mine) <= 128
    assert len({mine, await salt("Bearer sk-yours"), await salt("Bearer Sk-mine"), await salt(None)}) == 4
    assert {await salt(None), await salt("Bearer")} == {""}


async def test_a_failure_before_the_first_event_is_an_http_error(client: AsyncOpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError) as raised:
            await client.chat.completions.create(**ask("!model-not-found", stream=stream))  # type: ignore[call-overload]
        assert raised.value.code == "model_not_found"
        assert raised.value.param == "model"


async def test_a_full_queue_says_when_to_come_back(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", json=ask("!queue-full"))
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "3"


async def test_a_bug_behind_is_told_without_its_insides(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", json=ask("!bug"), headers={"x-request-id": "abc-1"})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "abc-1"
    assert "secret" not in answer.text


async def test_a_failure_amid_the_stream_is_its_last_event(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", json=ask("one two !break", stream=True))
    events = [line[6:] for line in answer.text.split("\n\n") if line]
    assert answer.status_code == 200
    assert json.loads(events[-1])["error"]["code"] == "worker_lost"
    assert "[DONE]" not in answer.text


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_frees_its_slot(
    http: httpx2.AsyncClient, services: FakeServices, stream: bool
) -> None:
    for _ in range(50):
        services.inference.busy.clear()
        asking = asyncio.create_task(http.post("/v1/chat/completions", json=ask("one !hang", stream=stream)))
        await asyncio.wait_for(services.inference.busy.wait(), 5)
        asking.cancel()
        await asyncio.wait_for(services.inference.idle.wait(), 0.25)


async def test_the_request_id_travels_to_the_service_and_back(
    http: httpx2.AsyncClient, services: FakeServices
) -> None:
    answer = await http.post("/v1/chat/completions", json=ask("hi"), headers={"x-request-id": "from-me"})
    assert answer.headers["x-request-id"] == "from-me"
    assert services.inference.request_ids[-1] == "from-me"


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 1000}, "n"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": 2**64}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": 2**40}, "max_tokens"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": ["x", "y" * 513]}, "stop[1]"),
        ({"stop": 5}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": "x"}] * 2049}, "messages"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"store": True}, "store"),
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"seed": 2**70}, "seed"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
    ],
)
async def test_a_bad_field_is_named(http: httpx2.AsyncClient, extra: dict[str, object], param: str) -> None:
    answer = await http.post("/v1/chat/completions", json=ask("x", **extra))
    error = answer.json()["error"]
    assert answer.status_code == 400, answer.text
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


async def test_a_picture_from_the_web_is_not_fetched(http: httpx2.AsyncClient) -> None:
    part = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}
    body = {"model": MODEL, "messages": [{"role": "user", "content": [part]}]}
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages[0].content[0].image_url.url"


async def test_unknown_fields_and_nulls_are_ignored(http: httpx2.AsyncClient) -> None:
    body = ask("hi", some_new_field=1, temperature=None, stop=None, modalities=["text"], store=False)
    assert (await http.post("/v1/chat/completions", json=body)).status_code == 200


async def test_a_service_that_is_away_is_a_503(
    http: httpx2.AsyncClient, services: FakeServices, host: Host
) -> None:
    await services.stop()
    answer = await http.post("/v1/chat/completions", json=ask("hi"))
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "service_unreachable"
    assert "retry-after" in answer.headers
