"""Server-sent events, close to the wire: one `send` a frame, nothing between the generator and the server."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.endpoint import disconnected
from gateway.errors import ClientDisconnected, error_body
from gateway.openai.frames import encode_json, event
from services.kit import context

_log = structlog.get_logger("lares.http")
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ServerSentEvents(Response):
    """Answers 200 with the first frame, and sends the others as they come.

    What is raised before the first frame is raised here; after it, an error becomes a last event. A client that leaves
    ends the frames. frames: whole events; an empty one only begins the answer. Closed when the answer ends, however it
    ends.
    """

    def __init__(self, frames: AsyncGenerator[bytes, None]) -> None:
        super().__init__()
        self.raw_headers = list(_HEADERS)
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve. Raises ClientDisconnected, and what the frames raise before the first."""
        sending = asyncio.ensure_future(self._send_all(send))
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                raise ClientDisconnected
            sending.result()
        finally:
            pending = [task for task in (sending, gone) if not task.done()]
            for task in pending:
                task.cancel()
            if pending:
                await asyncio.wait(pending)

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._frames) as frames:
            first = await anext(frames)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": first, "more_body": True})
            try:
                async for frame in frames:
                    await send({"type": "http.response.body", "body": frame, "more_body": True})
            except Exception as error:
                # The status line is long gone: an event is all that is left to tell it with.
                await send({"type": "http.response.body", "body": _error_event(error), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _error_event(error: Exception) -> bytes:
    status, body, _ = error_body(error, context.request_id.get())
    if status == 500:
        _log.exception("a stream broke")
    else:
        _log.warning("a stream ended with an error", error=str(error))
    return event(encode_json(body))
