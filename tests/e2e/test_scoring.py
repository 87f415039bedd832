"""Embeddings, reranking and scores, as users ask for them."""

import json
import math
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.contract.tiny_encoders import save_cross_encoder
from tests.e2e.conftest import STARTER, House

EMBEDDER = "all-minilm-l6-v2"
DOCUMENTS = ["Stocks fell sharply on Monday", "A kitten rests on a rug", "The bank raised its rates"]
TEXT = "The capital of France is Paris."


@pytest.fixture
def client(house: House) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=house.url, api_key="none", max_retries=0) as client:
        yield client


def post(house: House, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{house.url}/{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


def test_documents_are_reranked_over_http_and_by_the_command(house: House) -> None:
    house.pull(EMBEDDER)
    body = {"model": EMBEDDER, "query": "a cat on a mat", "documents": DOCUMENTS, "return_documents": True}
    answer = post(house, "rerank", body)
    assert answer["results"][0]["document"] == {"text": DOCUMENTS[1]}
    assert sorted(result["index"] for result in answer["results"]) == [0, 1, 2]
    told = house.json("rerank", EMBEDDER, "a cat on a mat", *DOCUMENTS, "--top-n=1")
    assert told["results"] == [
        {"index": 1, "score": pytest.approx(answer["results"][0]["relevance_score"], abs=1e-5)}
    ]
    assert DOCUMENTS[1] in house.lares("rerank", EMBEDDER, "a cat on a mat", *DOCUMENTS).stdout


def test_a_cross_encoder_is_pulled_as_a_reranker(house: House, tmp_path: Path) -> None:
    folder = save_cross_encoder(tmp_path / "tiny-reranker")
    house.lares("pull", f"file:{folder}", "--name=tiny-reranker")
    assert house.json("show", "tiny-reranker")["model"]["kind"] == "MODEL_KIND_RERANKING"
    answer = post(house, "rerank", {"model": "tiny-reranker", "query": "cat", "documents": ["a cat", "sky"]})
    assert all(0 <= result["relevance_score"] <= 1 for result in answer["results"])
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(house, "embeddings", {"model": "tiny-reranker", "input": "a cat"})
    with caught.value as refused:
        assert refused.code == 400


def test_a_text_is_scored_as_evaluation_harnesses_do(house: House, client: openai.OpenAI) -> None:
    only = client.completions.create(model=STARTER, prompt=TEXT, echo=True, logprobs=1, max_tokens=0)
    scored = only.choices[0].logprobs
    assert only.choices[0].text == TEXT
    assert scored is not None
    assert scored.tokens is not None
    assert scored.token_logprobs is not None
    assert scored.top_logprobs is not None
    assert "".join(scored.tokens) == TEXT
    assert scored.token_logprobs[0] is None
    # lm-eval's way: one token more than the prompt, of which it takes no notice.
    more = client.completions.create(
        model=STARTER, prompt=TEXT, echo=True, logprobs=1, max_tokens=1, temperature=0
    )
    echoed = more.choices[0].logprobs
    assert more.choices[0].text.startswith(TEXT)
    assert echoed is not None
    assert echoed.token_logprobs is not None
    assert echoed.token_logprobs[1:-1] == pytest.approx(scored.token_logprobs[1:], abs=0.05)
    for logprob, top in zip(scored.token_logprobs[1:], scored.top_logprobs[1:], strict=True):
        assert logprob <= max(top.values()) + 1e-6

    told = house.json("score", STARTER, TEXT)
    assert told["sum_logprob"] == pytest.approx(sum(scored.token_logprobs[1:]), abs=0.1)
    assert told["perplexity"] == pytest.approx(math.exp(-told["sum_logprob"] / (len(told["tokens"]) - 1)))
    unlikely = house.json("score", STARTER, "Capital the Paris is France of.")
    assert unlikely["perplexity"] > 3 * told["perplexity"]
    assert "perplexity" in house.lares("score", STARTER, TEXT).stdout
