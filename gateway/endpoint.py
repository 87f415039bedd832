"""An endpoint: one row from which both the route and its part of the OpenAPI document are made."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.errors import ClientDisconnected
from gateway.openai.common import ErrorBody
from gateway.repos import Repos
from gateway.settings import GatewaySettings
from gateway.upstream import Upstream
from gateway.validation import validate

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

ROUTE_KEY = "lares.route"
"""Where a request's scope tells which endpoint it met: the route's template, never a raw path."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """What handlers work with. draining: set when the process begins to stop. document: OpenAPI's, as JSON."""

    upstream: Upstream
    repos: Repos
    settings: GatewaySettings
    draining: asyncio.Event
    document: bytes


Handler = Callable[[Gateway, Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path. path: as Starlette writes it, with `{model:path}` where an id may hold a `/`."""

    method: str
    path: str
    handler: Handler
    summary: str
    request: type[BaseModel] | None = None
    form: type[BaseModel] | None = None
    """For an upload: the fields beside `file`."""
    query: type[BaseModel] | None = None
    response: type[BaseModel] | None = None
    stream: type[BaseModel] | None = None
    """The data of one server-sent event, where the answer can be a stream."""
    error: type[BaseModel] = ErrorBody
    """The body of its refusals."""
    media_type: str = "application/json"
    also: tuple[int, ...] = ()
    """Other statuses that carry the response's body."""

    @property
    def template(self) -> str:
        """The path as OpenAPI writes it."""
        return re.sub(r":\w+}", "}", self.path)

    def route(self, gateway: Gateway) -> Route:
        """The route that serves it."""
        return Route(
            self.path, _Answer(self, gateway), methods=[self.method], name=f"{self.method} {self.template}"
        )


class _Answer:
    """What an endpoint is to Starlette: no function, which it would wrap in a layer that each token passes."""

    def __init__(self, endpoint: Endpoint, gateway: Gateway) -> None:
        self._endpoint = endpoint
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[ROUTE_KEY] = self._endpoint.template
        response = await self._endpoint.handler(self._gateway, Request(scope, receive, send))
        await response(scope, receive, send)


def read_query(request: Request, model: type[M]) -> M:
    """The query string as a model. Raises InvalidArgument."""
    return validate(dict(request.query_params), model, strict=False)


def json_response(body: BaseModel, status_code: int = 200) -> Response:
    """A model as an answer."""
    return Response(body.model_dump_json().encode(), status_code, media_type="application/json")


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, unless the client hangs up first: then it is cancelled, and with it the call it waits for.

    The request's body must have been read. Raises ClientDisconnected.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(disconnected(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnected
        return working.result()
    finally:
        pending = [task for task in (working, gone) if not task.done()]
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)


async def disconnected(receive: Receive) -> None:
    """Return when the client hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass
