"""/metrics and /openapi.json."""

import prometheus_client
from starlette.requests import Request
from starlette.responses import Response

from gateway.endpoint import Endpoint, Gateway


async def metrics(gateway: Gateway, request: Request) -> Response:
    """Prometheus metrics of this process."""
    return Response(
        prometheus_client.generate_latest(), headers={"content-type": prometheus_client.CONTENT_TYPE_LATEST}
    )


async def document(gateway: Gateway, request: Request) -> Response:
    """What this gateway offers."""
    return Response(gateway.document, media_type="application/json")


ENDPOINTS = [
    Endpoint("GET", "/metrics", metrics, "Prometheus metrics", media_type="text/plain"),
    Endpoint("GET", "/openapi.json", document, "This document"),
]
