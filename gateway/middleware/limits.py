"""How much a client may send, and how long it may take."""

import asyncio
import contextlib
import time

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import error_response
from gateway.settings import GatewaySettings
from services.kit import context
from services.kit.errors import InvalidArgument, PayloadTooLarge

_MIN_BYTES_PER_S = 64 * 1024
"""An upload that keeps up this speed is never cut."""

_LINGER_S = 2.0


class BodyLimit:
    """Answers 413 as soon as a body is, or says it is, too large; 408 to one that trickles."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve with a `receive` that counts."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, send, self._limit(scope["path"]), self._settings.body_timeout_s)
        try:
            body.check_declared(scope)
        except (InvalidArgument, PayloadTooLarge) as error:
            await error_response(error, context.request_id.get())(scope, receive, body.send)
            return
        await self._app(scope, body.receive, body.send)

    def _limit(self, path: str) -> int:
        if path.startswith("/v1/audio/"):
            return self._settings.max_audio_bytes
        if path.startswith("/v1/files"):
            return self._settings.max_dataset_bytes
        return self._settings.max_body_bytes


class _Body:
    """One request's body on its way in."""

    def __init__(self, receive: Receive, send: Send, limit_bytes: int, timeout_s: float) -> None:
        self._receive = receive
        self._send = send
        self._limit_bytes = limit_bytes
        self._timeout_s = timeout_s
        self._start_s = time.monotonic()
        self._num_bytes = 0
        self._complete = False

    def check_declared(self, scope: Scope) -> None:
        """Raise PayloadTooLarge if the headers say that it will be too large."""
        for name, value in scope["headers"]:
            if name == b"content-length":
                if not value.isdigit():
                    raise InvalidArgument("content-length must be a number")
                if len(value) > 18 or int(value) > self._limit_bytes:
                    raise self._too_large()

    async def receive(self) -> Message:
        """The next message. Raises PayloadTooLarge and HTTPException 408."""
        if self._complete:
            return await self._receive()
        deadline_s = self._start_s + self._timeout_s + self._num_bytes / _MIN_BYTES_PER_S
        try:
            async with asyncio.timeout(deadline_s - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, "the body did not arrive in time", {"connection": "close"}) from None
        self._num_bytes += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._num_bytes > self._limit_bytes:
            raise self._too_large()
        return message

    async def send(self, message: Message) -> None:
        """Pass a message on; before the last one, hear the client out for a while.

        To hang up on a client that is still sending resets the connection, and the answer is lost on its way.
        """
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if is_last and not self._complete:
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _linger(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while not self._complete:
                    self._complete = not (await self._receive()).get("more_body", False)

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the body is larger than the {self._limit_bytes:,} bytes that are taken here")
