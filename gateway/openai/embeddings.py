"""Embeddings."""

import base64
import sys
from array import array
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from gateway.openai import common
from gateway.openai.common import KeepAlive, ModelName, RequestModel, ResponseModel, TokenId
from lares.inference.v1 import inference_pb2 as pb

_MAX_INPUTS = 2048

Text = Annotated[str, Field(min_length=1)]
Tokens = Annotated[list[TokenId], Field(fail_fast=True, min_length=1)]
Inputs = (
    Text
    | Tokens
    | Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=_MAX_INPUTS)]
    | Annotated[list[Tokens], Field(fail_fast=True, min_length=1, max_length=_MAX_INPUTS)]
)


class EmbeddingRequest(RequestModel):
    """The body of POST /v1/embeddings."""

    model: ModelName
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=common.UINT32_MAX)] | None = None
    keep_alive: Annotated[KeepAlive | None, AfterValidator(common.check_keep_alive)] = None
    user: str | None = None


class EmbeddingItem(ResponseModel):
    """One vector: a list of numbers, or the base64 of little-endian 32-bit floats."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(ResponseModel):
    """Tokens used."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(ResponseModel):
    """The vectors, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage


def request_to_proto(request: EmbeddingRequest) -> pb.EmbedRequest:
    """One input for each text or list of tokens."""
    inputs: list[Any] = request.input if isinstance(request.input, list) else [request.input]
    if isinstance(inputs[0], int):
        inputs = [inputs]
    return pb.EmbedRequest(
        model=request.model,
        inputs=[
            pb.EmbedInput(text=item)
            if isinstance(item, str)
            else pb.EmbedInput(tokens=pb.TokenPrompt(token_ids=item))
            for item in inputs
        ],
        dimensions=request.dimensions,
        keep_alive=common.keep_alive_to_proto(request.keep_alive),
    )


def response_from_proto(response: pb.EmbedResponse, request: EmbeddingRequest) -> EmbeddingList:
    """The vectors as the request wants them."""
    encode = _to_base64 if request.encoding_format == "base64" else _to_list
    return EmbeddingList(
        data=[
            EmbeddingItem(index=i, embedding=encode(vector)) for i, vector in enumerate(response.embeddings)
        ],
        model=request.model,
        usage=EmbeddingUsage(
            prompt_tokens=response.usage.prompt_tokens, total_tokens=response.usage.prompt_tokens
        ),
    )


def _to_list(vector: pb.Embedding) -> list[float] | str:
    return list(vector.values)


def _to_base64(vector: pb.Embedding) -> list[float] | str:
    values = array("f", vector.values)
    if sys.byteorder == "big":
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode()
