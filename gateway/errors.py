"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}`."""

from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from services.kit.errors import InternalError, LaresError, PayloadTooLarge
from services.kit.status import to_openai

# HTTP's own refusals, which no service knows: (type, code).
_HTTP_ERRORS = {
    404: ("not_found_error", "unknown_url"),
    405: ("invalid_request_error", "method_not_allowed"),
    408: ("invalid_request_error", "request_timeout"),
    415: ("invalid_request_error", "unsupported_media_type"),
}


# The contract groups its fields; OpenAI's requests are flat. Some fields have another name there.
_GROUPS = ("sampling.", "stop.", "output.", "config.", "chat.", "job.hyperparameters.", "job.")
_PARAMS = {
    "chunk": "file",
    "text": "prompt",
    "tokens": "prompt",
    "num_choices": "n",
    "base_model": "model",
    "dataset": "training_file",
    "validation_dataset": "validation_file",
    "adapter_id": "suffix",
}


class ClientDisconnected(Exception):
    """The client hung up: nobody is left to answer."""


def error_body(error: Exception, request_id: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """(HTTP status, body, headers) for whatever was raised. What is not ours to tell is told as an internal error."""
    match error:
        case LaresError():
            status, body, headers = to_openai(error)
            body["error"]["param"] = _param(body["error"]["param"])
            if isinstance(error, PayloadTooLarge):
                headers["connection"] = "close"  # The rest of the body is not worth reading.
            return status, body, headers
        case HTTPException():
            kind, code = _HTTP_ERRORS.get(error.status_code, ("invalid_request_error", "bad_request"))
            detail = {"message": error.detail, "type": kind, "param": None, "code": code}
            return error.status_code, {"error": detail}, dict(error.headers or {})
        case _:
            return to_openai(
                InternalError(f"something broke inside Lares; its log tells what, under request {request_id}")
            )


def _param(field: str | None) -> str | None:
    """What the HTTP request calls a field of the contract: `sampling.temperature` is `temperature`."""
    if field is None:
        return None
    group = next((group for group in _GROUPS if field.startswith(group)), "")
    name = field.removeprefix(group)
    return _PARAMS.get(name, name)


def error_response(error: Exception, request_id: str) -> Response:
    """The error as an answer."""
    status, body, headers = error_body(error, request_id)
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")
