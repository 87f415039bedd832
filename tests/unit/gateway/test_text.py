import json

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from gateway.openai.completions import Completion
from tests.unit.gateway.fake_services import MODEL, FakeServices


async def test_several_prompts_are_answered_in_order(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(model=MODEL, prompt=["one two", "three"], n=2)
    assert [choice.text for choice in answer.choices] == ["one two", "one two", "three", "three"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6


async def test_tokens_are_continued(client: AsyncOpenAI, services: FakeServices) -> None:
    answer = await client.completions.create(model=MODEL, prompt=[5, 6], max_tokens=1)
    assert answer.choices[0].text == "5"
    assert answer.choices[0].finish_reason == "length"
    assert list(services.inference.requests[-1].tokens.token_ids) == [5, 6]


async def test_several_prompts_stream_side_by_side(client: AsyncOpenAI) -> None:
    texts = ["", ""]
    async for chunk in await client.completions.create(model=MODEL, prompt=["a b c", "d e"], stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["a b c", "d e"]


async def test_log_probabilities_come_in_four_lists(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(model=MODEL, prompt="one two", logprobs=1)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["one", " two"]
    assert logprobs.text_offset == [0, 3]
    assert logprobs.top_logprobs == [{"one": -0.5}, {" two": -0.5}]


async def test_every_event_of_a_completion_fits_the_documented_model(http: httpx2.AsyncClient) -> None:
    body = {
        "model": MODEL,
        "prompt": "a b",
        "stream": True,
        "logprobs": 2,
        "stream_options": {"include_usage": True},
    }
    events = [line[6:] for line in (await http.post("/v1/completions", json=body)).text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    for event in events[:-1]:
        Completion.model_validate_json(event)
    assert json.loads(events[-2])["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["x"] * 129}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"logprobs": 21}, "logprobs"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 0, "logprobs": 1, "echo": False}, "max_tokens"),
        ({"max_tokens": 0, "echo": True, "stream": True}, "max_tokens"),
    ],
)
async def test_a_bad_field_of_a_completion_is_named(
    http: httpx2.AsyncClient, extra: dict[str, object], param: str
) -> None:
    answer = await http.post("/v1/completions", json={"model": MODEL, "prompt": "x"} | extra)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


SCORED: dict[str, list[object]] = {
    "tokens": ["<s>", "one", " two"],
    "token_logprobs": [None, -0.5, -1.0],
    "top_logprobs": [None, {"top": -0.25}, {"top": -0.25}],
    "text_offset": [0, 0, 3],
}


async def test_prompts_are_scored_without_an_answer(http: httpx2.AsyncClient) -> None:
    body = {"model": MODEL, "prompt": ["one two", "three"], "echo": True, "logprobs": 1, "max_tokens": 0}
    answer = (await http.post("/v1/completions", json=body)).json()
    assert [choice["text"] for choice in answer["choices"]] == ["one two", "three"]
    assert answer["choices"][0]["logprobs"] == SCORED
    assert answer["choices"][1]["logprobs"]["text_offset"] == [0, 0]
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (3, 0)

    silent = (await http.post("/v1/completions", json=body | {"logprobs": None, "n": 2})).json()
    assert [choice["text"] for choice in silent["choices"]] == ["one two", "one two", "three", "three"]
    assert {choice["logprobs"] is None for choice in silent["choices"]} == {True}


async def test_a_prompt_of_an_unknown_model_is_not_scored(http: httpx2.AsyncClient) -> None:
    body = {"model": "nope", "prompt": ["a", "b"], "echo": True, "logprobs": 1, "max_tokens": 0}
    assert (await http.post("/v1/completions", json=body)).status_code == 404


async def test_an_echo_tells_the_logprobs_of_prompt_and_answer(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model=MODEL, prompt="one two", echo=True, logprobs=1, max_tokens=1, n=2
    )
    for choice in answer.choices:
        assert choice.text == "one twoone"
        assert choice.logprobs is not None
        assert choice.logprobs.tokens == [*SCORED["tokens"], "one"]
        assert choice.logprobs.token_logprobs == [None, -0.5, -1.0, -0.5]
        assert choice.logprobs.text_offset == [0, 0, 3, 7]


async def test_a_stream_echoes_the_prompt_with_its_logprobs(client: AsyncOpenAI) -> None:
    texts = ["", ""]
    tokens: list[list[str]] = [[], []]
    offsets: list[list[int]] = [[], []]
    async for chunk in await client.completions.create(
        model=MODEL, prompt="one two", echo=True, logprobs=1, max_tokens=1, n=2, stream=True
    ):
        choice = chunk.choices[0]
        texts[choice.index] += choice.text
        if choice.logprobs is not None:
            tokens[choice.index] += choice.logprobs.tokens or []
            offsets[choice.index] += choice.logprobs.text_offset or []
    assert texts == ["one twoone"] * 2
    assert tokens == [["<s>", "one", " two", "one"]] * 2
    assert offsets == [[0, 0, 3, 7]] * 2


async def test_an_embedding_is_the_same_in_base64_and_as_numbers(client: AsyncOpenAI) -> None:
    packed = await client.embeddings.create(
        model=MODEL, input=["a", "b"]
    )  # The client asks for base64 itself.
    plain = await client.embeddings.create(model=MODEL, input=["a", "b"], encoding_format="float")
    assert packed.data[1].embedding == pytest.approx(plain.data[1].embedding)
    assert [item.index for item in plain.data] == [0, 1]
    assert plain.usage.total_tokens == 6


async def test_an_embedding_has_the_dimensions_asked_for(client: AsyncOpenAI) -> None:
    answer = await client.embeddings.create(model=MODEL, input=[1, 2, 3], dimensions=4)
    assert len(answer.data) == 1
    assert len(answer.data[0].embedding) == 4


@pytest.mark.parametrize("given", ["", [], [""], ["x"] * 2049, 5, None, [[]]])
async def test_an_input_that_cannot_be_embedded_is_named(http: httpx2.AsyncClient, given: object) -> None:
    answer = await http.post("/v1/embeddings", json={"model": MODEL, "input": given})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("input")


async def test_an_unknown_embedding_model_is_a_404(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        await client.embeddings.create(model="nope", input="x")


async def test_documents_come_back_best_first(http: httpx2.AsyncClient) -> None:
    body = {
        "model": MODEL,
        "query": "red cat",
        "documents": ["a dog", {"text": "a red cat", "id": 7}, "a cat"],
    }
    answer = (await http.post("/v1/rerank", json=body)).json()
    assert [(result["index"], result["relevance_score"]) for result in answer["results"]] == [
        (1, 1.0),
        (2, 0.5),
        (0, 0.0),
    ]
    assert all(result["document"] is None for result in answer["results"])
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}

    best = (await http.post("/v1/rerank", json=body | {"top_n": 1, "return_documents": True})).json()
    assert [result["document"] for result in best["results"]] == [{"text": "a red cat"}]


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"query": ""}, "query"),
        ({"query": None}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": "a"}, "documents"),
        ({"documents": ["a"] * 1025}, "documents"),
        ({"documents": ["a", ""]}, "documents[1]"),
        ({"documents": ["a", {"title": "b"}]}, "documents[1].text"),
        ({"documents": ["a", {"text": 5}]}, "documents[1].text"),
        ({"top_n": 0}, "top_n"),
        ({"top_n": "2"}, "top_n"),
        ({"return_documents": 1}, "return_documents"),
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"model": ""}, "model"),
    ],
)
async def test_a_bad_field_of_a_reranking_is_named(
    http: httpx2.AsyncClient, extra: dict[str, object], param: str
) -> None:
    body = {"model": MODEL, "query": "x", "documents": ["x"]} | extra
    answer = await http.post("/v1/rerank", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


async def test_an_unknown_reranker_is_a_404(http: httpx2.AsyncClient) -> None:
    body = {"model": "nope", "query": "x", "documents": ["x"]}
    assert (await http.post("/v1/rerank", json=body)).status_code == 404
