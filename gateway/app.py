"""The ASGI application: endpoints inside, middleware around them."""

import asyncio
from collections.abc import Callable

import grpc
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from gateway import openapi
from gateway.endpoint import Gateway
from gateway.errors import error_response
from gateway.middleware.guard import Guard
from gateway.middleware.limits import BodyLimit
from gateway.middleware.observe import Observe
from gateway.repos import Repos
from gateway.routes import ENDPOINTS
from gateway.settings import GatewaySettings
from gateway.upstream import Upstream
from services.kit import context
from services.kit.errors import LaresError


def create_app(
    channel: Callable[[str], grpc.aio.Channel],
    settings: GatewaySettings,
    *,
    on_loopback: bool,
    draining: asyncio.Event | None = None,
) -> Starlette:
    """channel: gives the channel to a service by its short name, as `Host.channel` does.

    on_loopback: whether only this machine reaches the gateway, so that a foreign Host is an attack. draining: makes
    /readyz say 503 when set.
    """
    upstream = Upstream(channel)
    gateway = Gateway(
        upstream=upstream,
        repos=Repos(upstream, timeout_s=settings.request_timeout_s, remember_s=settings.remember_repos_s),
        settings=settings,
        draining=draining or asyncio.Event(),
        document=openapi.document_json(ENDPOINTS),
    )
    app = Starlette(
        routes=[endpoint.route(gateway) for endpoint in ENDPOINTS],
        middleware=_middleware(settings, on_loopback=on_loopback),
        exception_handlers={HTTPException: _answer_http_error, LaresError: _answer_error},
    )
    app.router.redirect_slashes = False
    return app


def _middleware(settings: GatewaySettings, *, on_loopback: bool) -> list[Middleware]:
    stack = [
        Middleware(Observe),
        Middleware(
            Guard,
            on_loopback=on_loopback,
            allowed_hosts=settings.allowed_hosts,
            allowed_origins=settings.allowed_origins,
        ),
    ]
    if settings.allowed_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
        stack.append(cors)
    return [*stack, Middleware(BodyLimit, settings=settings)]


async def _answer_error(request: Request, error: Exception) -> Response:
    return error_response(error, context.request_id.get())


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:200]}"
    if error.status_code == 404:
        error = HTTPException(404, f"there is nothing at {where}; /openapi.json tells what there is")
    elif error.status_code == 405:
        error = HTTPException(405, f"{where} is not offered; its allow header tells what is", error.headers)
    return error_response(error, context.request_id.get())
