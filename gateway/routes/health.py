"""/healthz and /readyz."""

import asyncio
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from gateway.endpoint import Endpoint, Gateway, json_response
from gateway.openai.common import ResponseModel

_TIMEOUT_S = 2.0


class Alive(ResponseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(ResponseModel):
    """Whether requests can be served, and how each service stands: `serving`, or what it is instead."""

    status: Literal["ready", "not_ready", "draining"]
    services: dict[str, str]


async def healthz(gateway: Gateway, request: Request) -> Response:
    """The gateway's own process, whatever the services do."""
    return json_response(Alive())


async def readyz(gateway: Gateway, request: Request) -> Response:
    """Ask every service that is required. 503 unless all serve."""
    names = gateway.settings.required_services
    found = await asyncio.gather(*(gateway.upstream.health(name, timeout_s=_TIMEOUT_S) for name in names))
    services = dict(zip(names, found, strict=True))
    if gateway.draining.is_set():
        return json_response(Readiness(status="draining", services=services), 503)
    if any(state != "serving" for state in found):
        return json_response(Readiness(status="not_ready", services=services), 503)
    return json_response(Readiness(status="ready", services=services))


ENDPOINTS = [
    Endpoint("GET", "/healthz", healthz, "Tell whether the process is alive", response=Alive),
    Endpoint("GET", "/readyz", readyz, "Tell whether all services answer", response=Readiness, also=(503,)),
]
