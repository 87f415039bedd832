"""POST /v1/embeddings."""

from starlette.requests import Request
from starlette.responses import Response

from gateway.body import read_json
from gateway.endpoint import Endpoint, Gateway, json_response, until_disconnect
from gateway.openai.embeddings import EmbeddingList, EmbeddingRequest, request_to_proto, response_from_proto
from gateway.upstream import unary


async def create_embeddings(gateway: Gateway, request: Request) -> Response:
    """One vector for each input."""
    wanted = await read_json(request, EmbeddingRequest)
    timeout_s = gateway.settings.generation_timeout_s
    call = gateway.upstream.inference.Embed(request_to_proto(wanted), timeout=timeout_s)
    return json_response(response_from_proto(await until_disconnect(request.receive, unary(call)), wanted))


ENDPOINTS = [
    Endpoint(
        "POST",
        "/v1/embeddings",
        create_embeddings,
        "Turn texts into vectors",
        request=EmbeddingRequest,
        response=EmbeddingList,
    )
]
