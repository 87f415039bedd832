"""Reranking. OpenAI has none; this is the form of Jina's and Cohere's."""

import secrets
from typing import Annotated

from pydantic import AfterValidator, Field

from gateway.openai import common
from gateway.openai.common import KeepAlive, ModelName, RequestModel, ResponseModel
from lares.inference.v1 import inference_pb2 as pb

_MAX_DOCUMENTS = 1024

Text = Annotated[str, Field(min_length=1)]


class Document(RequestModel):
    """A document. What else a client keeps in it is ignored."""

    text: Text


class RerankRequest(RequestModel):
    """The body of POST /v1/rerank."""

    model: ModelName
    query: Text
    documents: Annotated[
        list[Text | Document], Field(fail_fast=True, min_length=1, max_length=_MAX_DOCUMENTS)
    ]
    top_n: Annotated[int, Field(ge=1, le=common.UINT32_MAX, description="Unset: all.")] | None = None
    return_documents: bool | None = None
    truncate: Annotated[bool, Field(description="Cut documents that are too long.")] | None = None
    keep_alive: Annotated[KeepAlive | None, AfterValidator(common.check_keep_alive)] = None

    def texts(self) -> list[str]:
        """The documents as texts."""
        return [item if isinstance(item, str) else item.text for item in self.documents]


class RankedDocument(ResponseModel):
    """The text of a document."""

    text: str


class RankedResult(ResponseModel):
    """One document's score. document: if the request asks for it."""

    index: int
    relevance_score: Annotated[
        float, Field(description="0 to 1 by a reranking model; by an embedding model a cosine, -1 to 1.")
    ]
    document: RankedDocument | None = None


class RerankUsage(ResponseModel):
    """Tokens used."""

    prompt_tokens: int
    total_tokens: int


class Reranking(ResponseModel):
    """The documents, best first."""

    id: str
    model: str
    results: list[RankedResult]
    usage: RerankUsage


def request_to_proto(request: RerankRequest) -> pb.RerankRequest:
    """All of it but `return_documents`, which is for the answer."""
    return pb.RerankRequest(
        model=request.model,
        query=request.query,
        documents=request.texts(),
        top_n=request.top_n,
        truncate=bool(request.truncate),
        keep_alive=common.keep_alive_to_proto(request.keep_alive),
    )


def response_from_proto(response: pb.RerankResponse, request: RerankRequest) -> Reranking:
    """The results as the request wants them."""
    texts = request.texts() if request.return_documents else None
    tokens = response.usage.prompt_tokens
    return Reranking(
        id=f"rerank-{secrets.token_hex(12)}",
        model=request.model,
        results=[
            RankedResult(
                index=result.index,
                relevance_score=result.score,
                document=RankedDocument(text=texts[result.index]) if texts else None,
            )
            for result in response.results
        ],
        usage=RerankUsage(prompt_tokens=tokens, total_tokens=tokens),
    )
