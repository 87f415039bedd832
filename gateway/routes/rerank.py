"""POST /v1/rerank."""

from starlette.requests import Request
from starlette.responses import Response

from gateway.body import read_json
from gateway.endpoint import Endpoint, Gateway, json_response, until_disconnect
from gateway.openai.rerank import Reranking, RerankRequest, request_to_proto, response_from_proto
from gateway.upstream import unary


async def rerank(gateway: Gateway, request: Request) -> Response:
    """The documents, best first."""
    wanted = await read_json(request, RerankRequest)
    timeout_s = gateway.settings.generation_timeout_s
    call = gateway.upstream.inference.Rerank(request_to_proto(wanted), timeout=timeout_s)
    return json_response(response_from_proto(await until_disconnect(request.receive, unary(call)), wanted))


ENDPOINTS = [
    Endpoint(
        "POST",
        "/v1/rerank",
        rerank,
        "Order documents by how well they fit a query",
        request=RerankRequest,
        response=Reranking,
    )
]
