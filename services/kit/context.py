"""What travels along with a request, through every await and every call: its id and its trace."""

import re
import uuid
from collections.abc import Iterable
from contextvars import ContextVar

REQUEST_ID_KEY = "x-request-id"
TRACEPARENT_KEY = "traceparent"

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the request that is being served; empty outside of one."""

traceparent: ContextVar[str] = ContextVar("traceparent", default="")
"""The caller's `traceparent` as W3C Trace Context spells it; empty if there was none."""

# Both come from outside and go into logs and headers.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def new_request_id() -> str:
    """32 hex digits that nobody else has."""
    return uuid.uuid4().hex


def bind_request(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Take id and trace from a request's metadata or headers, into this task's context. Returns the id.

    metadata: (lower-case key, value). A request without a usable id is given one.
    """
    found = {key: value for key, value in metadata if key in (REQUEST_ID_KEY, TRACEPARENT_KEY)}
    given_id, given_trace = found.get(REQUEST_ID_KEY), found.get(TRACEPARENT_KEY)
    bound = given_id if isinstance(given_id, str) and _REQUEST_ID.fullmatch(given_id) else new_request_id()
    request_id.set(bound)
    traceparent.set(
        given_trace if isinstance(given_trace, str) and _TRACEPARENT.fullmatch(given_trace) else ""
    )
    return bound


def outgoing() -> list[tuple[str, str]]:
    """What to send along with a call that is made on behalf of this request."""
    pairs = ((REQUEST_ID_KEY, request_id.get()), (TRACEPARENT_KEY, traceparent.get()))
    return [(key, value) for key, value in pairs if value]
