"""Embed and Rerank over real gRPC with real workers and tiny random encoders."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from lares.inference.v1 import inference_pb2 as pb
from lares.registry.v1 import registry_pb2 as rpb
from services.kit.channels import translate_errors
from services.kit.errors import InvalidArgument, LaresError, WrongModelKind
from tests.contract.tiny_encoders import save_bert_embedder, save_cross_encoder
from tests.unit.services.inference.conftest import Running

DOCUMENTS = ["the dog sits", "a cat", "stocks fell on monday", "a cat"]


@pytest.fixture
def encoders(running: Running, tmp_path: Path) -> Running:
    embedder, reranker = save_bert_embedder(tmp_path / "bert"), save_cross_encoder(tmp_path / "cross")
    running.house.add("bert", embedder, rpb.MODEL_KIND_EMBEDDING, rpb.FORMAT_SAFETENSORS)
    running.house.add("cross", reranker, rpb.MODEL_KIND_RERANKING, rpb.FORMAT_SAFETENSORS)
    return running


def embed_request(*texts: str, **fields: Any) -> pb.EmbedRequest:
    return pb.EmbedRequest(model="bert", inputs=[pb.EmbedInput(text=text) for text in texts], **fields)


def rerank_request(**fields: Any) -> pb.RerankRequest:
    return pb.RerankRequest(**{"model": "cross", "query": "cat", "documents": DOCUMENTS} | fields)


async def test_documents_are_ranked_by_a_reranker_and_by_an_embedder(encoders: Running):
    for model in ("cross", "bert"):
        with translate_errors():
            answer = await encoders.stub.Rerank(rerank_request(model=model))
            best = await encoders.stub.Rerank(rerank_request(model=model, top_n=2))
        assert answer.version == f"models/{model}/versions/v1"
        assert sorted(result.index for result in answer.results) == [0, 1, 2, 3]
        scores = [result.score for result in answer.results]
        assert scores == sorted(scores, reverse=True)
        # The two equal documents have one score, and the earlier goes first.
        order = [result.index for result in answer.results]
        assert order.index(3) == order.index(1) + 1
        assert [result.index for result in best.results] == order[:2]
        assert answer.usage.prompt_tokens > 10
    await check_refusals(encoders)
    await check_fairness_and_cancellation(encoders)


async def check_refusals(running: Running) -> None:
    refusals: list[tuple[Any, type[LaresError], str]] = [
        (rerank_request(query=" "), InvalidArgument, "query"),
        (rerank_request(documents=[]), InvalidArgument, "documents"),
        (rerank_request(documents=["a"] * 1025), InvalidArgument, "documents"),
        (rerank_request(documents=["a", ""]), InvalidArgument, "documents[1]"),
        (rerank_request(documents=["a", "cat " * 99]), InvalidArgument, "documents[1]"),
        (rerank_request(top_n=0), InvalidArgument, "top_n"),
        (rerank_request(model=""), InvalidArgument, "model"),
        (embed_request(), InvalidArgument, "inputs"),
        (embed_request(*["a"] * 2049), InvalidArgument, "inputs"),
        (embed_request("a", ""), InvalidArgument, "inputs[1]"),
        (embed_request("cat " * 99), InvalidArgument, "inputs[0]"),
        (embed_request("a", dimensions=0), InvalidArgument, "dimensions"),
        (embed_request("a", dimensions=33), InvalidArgument, "dimensions"),
    ]
    for request, error_class, field in refusals:
        call = running.stub.Rerank if isinstance(request, pb.RerankRequest) else running.stub.Embed
        with pytest.raises(error_class) as caught, translate_errors():
            await call(request)
        assert [violation.field for violation in caught.value.violations] == [field]
    with pytest.raises(WrongModelKind, match="not for reranking; these can: cross, bert"), translate_errors():
        await running.stub.Rerank(rerank_request(model="tiny"))
    with translate_errors():
        cut = await running.stub.Rerank(rerank_request(documents=["a", "cat " * 99], truncate=True))
    assert len(cut.results) == 2


async def check_fairness_and_cancellation(running: Running) -> None:
    big = embed_request(*["the dog sits on the mat a river a stone a sky"] * 2048)
    finished: list[str] = []

    async def embed(name: str, request: pb.EmbedRequest) -> None:
        with translate_errors():
            answer = await running.stub.Embed(request)
        assert len(answer.embeddings) == len(request.inputs)
        finished.append(name)

    big_task = asyncio.create_task(embed("big", big))
    await asyncio.gather(big_task, embed("small", embed_request("a cat")))
    assert finished == ["small", "big"]

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.stub.Embed(big, timeout=0.001)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    gone = asyncio.create_task(embed("gone", big))
    await asyncio.sleep(0)
    gone.cancel()
    await embed("after", embed_request("a cat"))
    assert finished == ["small", "big", "after"]
    with translate_errors():
        listed = (await running.stub.ListLoadedModels(pb.ListLoadedModelsRequest())).loaded_models
    assert {model.name: model.num_active_requests for model in listed}["loadedModels/bert"] == 0
