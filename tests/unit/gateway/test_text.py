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
    ],
)
async def test_a_bad_field_of_a_completion_is_named(
    http: httpx2.AsyncClient, extra: dict[str, object], param: str
) -> None:
    answer = await http.post("/v1/completions", json={"model": MODEL, "prompt": "x"} | extra)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


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
