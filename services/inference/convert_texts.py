"""Messages <-> domain of what is asked of given texts: vectors, an order, scores."""

from lares.inference.v1 import inference_pb2 as pb
from services.inference.convert import (
    keep_alive_from_proto,
    prompt_from_proto,
    required_model,
    scored_token_to_proto,
)
from services.inference.core.inference import EmbedRequest, Reranking, RerankRequest, Score, ScoreRequest
from services.inference.core.ports import Embeddings, EmbedItem


def embed_request_from_proto(request: pb.EmbedRequest) -> EmbedRequest:
    """Raises InvalidArgument."""
    return EmbedRequest(
        model=required_model(request.model),
        inputs=[EmbedItem(item.text, tuple(item.tokens.token_ids)) for item in request.inputs],
        dimensions=request.dimensions if request.HasField("dimensions") else None,
        truncate=request.truncate,
        keep_alive_s=keep_alive_from_proto(request),
    )


def embeddings_to_proto(embeddings: Embeddings, version: str) -> pb.EmbedResponse:
    """In order."""
    return pb.EmbedResponse(
        embeddings=[pb.Embedding(values=vector) for vector in embeddings.vectors],
        usage=pb.Usage(prompt_tokens=embeddings.num_tokens),
        version=version,
    )


def rerank_request_from_proto(request: pb.RerankRequest) -> RerankRequest:
    """Raises InvalidArgument."""
    return RerankRequest(
        model=required_model(request.model),
        query=request.query,
        documents=request.documents,
        top_n=request.top_n if request.HasField("top_n") else None,
        truncate=request.truncate,
        keep_alive_s=keep_alive_from_proto(request),
    )


def reranking_to_proto(reranking: Reranking) -> pb.RerankResponse:
    """Best first."""
    return pb.RerankResponse(
        results=[pb.RerankResult(index=index, score=score) for index, score in reranking.results],
        usage=pb.Usage(prompt_tokens=reranking.num_tokens),
        version=reranking.version,
    )


def score_request_from_proto(request: pb.ScoreRequest) -> ScoreRequest:
    """Raises InvalidArgument."""
    return ScoreRequest(
        model=required_model(request.model),
        prompt=prompt_from_proto(request),
        top_logprobs=request.top_logprobs,
        keep_alive_s=keep_alive_from_proto(request),
        cache_salt=request.cache_salt,
        priority=request.priority,
    )


def score_to_proto(score: Score) -> pb.ScoreResponse:
    """All of it."""
    return pb.ScoreResponse(
        tokens=[scored_token_to_proto(token) for token in score.tokens],
        sum_logprob=score.sum_logprob,
        perplexity=score.perplexity,
        usage=pb.Usage(prompt_tokens=len(score.tokens)),
        version=score.version,
        adapter=score.adapter,
    )
